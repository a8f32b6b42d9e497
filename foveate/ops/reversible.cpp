#include <foveate/reversible.h>

#include <ATen/ops/zeros_like.h>
#include <foveate/op.h>
#include <torch/csrc/autograd/autograd.h>

namespace foveate::ops {
namespace {

/// What a sublayer adds, and the gradients of its input and parameters once that of the sum is known.
class Replayed {
 public:
  Replayed(const Sublayer& sublayer, const Tensor& x) : x_(x.detach().requires_grad_()) {
    for (const Tensor& p : sublayer.parameters) parameters_.push_back(p.defined() ? p.detach().requires_grad_() : Tensor());
    const Recording recording;
    added_ = sublayer.add(x_, parameters_);
  }
  Tensor added() const { return added_.detach(); }

  /// Adds to the gradient of the input, returns those of the parameters.
  std::vector<Tensor> pull(const Tensor& d_added, Tensor& d_x) const {
    std::vector<Tensor> leaves{x_};
    for (const Tensor& p : parameters_) {
      if (p.defined()) leaves.push_back(p);
    }
    const Recording recording;
    const auto found = torch::autograd::grad({added_}, leaves, {d_added}, /*retain_graph=*/false, /*create_graph=*/false, /*allow_unused=*/true);
    if (found[0].defined()) d_x = d_x + found[0].detach();
    std::vector<Tensor> of_parameters;
    std::size_t next = 1;
    for (const Tensor& p : parameters_) {
      Tensor d_p;
      if (p.defined()) {
        d_p = found[next].defined() ? found[next].detach() : at::zeros_like(p);
        ++next;
      }
      of_parameters.push_back(std::move(d_p));
    }
    return of_parameters;
  }

 private:
  Tensor x_, added_;
  std::vector<Tensor> parameters_;
};

}  // namespace

Streams run_reversible(std::span<const ReversibleLayer> layers, Streams x) {
  for (const auto& layer : layers) {
    x.one = x.one + layer.f.add(x.two, layer.f.parameters);
    x.two = x.two + layer.g.add(x.one, layer.g.parameters);
  }
  return x;
}

ReversibleGradients reversible_gradients(std::span<const ReversibleLayer> layers, Streams y, Streams d) {
  std::vector<std::vector<Tensor>> backwards;  // last layer first, g before f
  for (std::size_t l = layers.size(); l-- > 0;) {
    {
      const Replayed g(layers[l].g, y.one);
      y.two = y.two - g.added();
      backwards.push_back(g.pull(d.two, d.one));
    }
    const Replayed f(layers[l].f, y.two);
    y.one = y.one - f.added();
    backwards.push_back(f.pull(d.one, d.two));
  }
  ReversibleGradients found{.x = d, .parameters = {}};
  for (auto it = backwards.rbegin(); it != backwards.rend(); ++it) found.parameters.insert(found.parameters.end(), it->begin(), it->end());
  return found;
}

}  // namespace foveate::ops
