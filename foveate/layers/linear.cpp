#include <foveate/init.h>
#include <foveate/linear.h>

#include <cmath>

namespace foveate::layers {

Linear Linear::init(int64_t in, int64_t out, bool bias) {
  const auto biases = bias ? optional<Tensor>(uniform({out}, 1 / std::sqrt(static_cast<double>(in)))) : std::nullopt;
  return {.weight = default_weight({out, in}), .bias = biases};
}

Tensor Linear::operator()(const Tensor& x) const { return at::linear(x, weight, bias); }

}  // namespace foveate::layers
