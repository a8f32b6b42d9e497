// Initial values, in the default dtype, from the global generator.
#pragma once
#include <foveate/tensor.h>

namespace foveate::layers {

FOVEATE_API Tensor uniform(at::IntArrayRef shape, double bound);  ///< in [-bound, bound]
FOVEATE_API Tensor normal(at::IntArrayRef shape, double deviation, double mean = 0);
FOVEATE_API Tensor zeros(at::IntArrayRef shape);
FOVEATE_API Tensor ones(at::IntArrayRef shape);

/// Xavier-uniform of a weight [out, in, ...]: bound = gain sqrt(6 / (fan in + fan out)).
FOVEATE_API Tensor xavier_uniform(at::IntArrayRef shape, double gain = 1);
/// Xavier-normal of a weight [out, in, ...]: deviation = gain sqrt(2 / (fan in + fan out)).
FOVEATE_API Tensor xavier_normal(at::IntArrayRef shape, double gain = 1);
/// torch's default for linear and convolution weights [out, in, ...]: uniform, bound 1/sqrt(fan in).
FOVEATE_API Tensor default_weight(at::IntArrayRef shape);

}  // namespace foveate::layers
