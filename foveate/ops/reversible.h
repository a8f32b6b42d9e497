// Reversible residual layers: two streams, of which each sublayer adds to one what it makes of the other,
//
//   y1 = x1 + F(x2);   y2 = x2 + G(y1)
//
// so that x2 = y2 - G(y1) and x1 = y1 - F(x2): the gradient needs no more than the last streams, however many layers there are. For
// primitives of whole stacks: these functions run inside their kernels.
#pragma once
#include <foveate/tensor.h>

#include <functional>
#include <span>

namespace foveate::ops {

struct Streams {
  Tensor one, two;
};

/// What it adds, a function of the other stream and of its parameters; the same at every call, whatever it draws.
struct Sublayer {
  std::vector<Tensor> parameters;  ///< may hold undefined ones
  std::function<Tensor(const Tensor& x, std::span<const Tensor> parameters)> add;
};

struct ReversibleLayer {
  Sublayer f, g;
};

/// Layer by layer; differentiable in the ordinary way where gradients are recorded.
FOVEATE_API Streams run_reversible(std::span<const ReversibleLayer> layers, Streams x);

struct ReversibleGradients {
  Streams x;
  std::vector<Tensor> parameters;  ///< of f and g of each layer in turn; undefined where a parameter is, zeros where nothing depends on it
};

/// From the last streams and their gradients. Below autograd.
FOVEATE_API ReversibleGradients reversible_gradients(std::span<const ReversibleLayer> layers, Streams y, Streams d_y);

}  // namespace foveate::ops
