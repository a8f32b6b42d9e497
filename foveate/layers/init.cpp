#include <foveate/init.h>

#include <cmath>
#include <functional>
#include <numeric>

namespace foveate::layers {
namespace {

struct Fans {
  double in, out;
};

Fans fans(at::IntArrayRef shape) {
  TORCH_CHECK(shape.size() >= 2, "fans need a weight of two dimensions or more, got ", shape);
  const auto taps = static_cast<double>(std::accumulate(shape.begin() + 2, shape.end(), int64_t{1}, std::multiplies<>()));
  return {.in = static_cast<double>(shape[1]) * taps, .out = static_cast<double>(shape[0]) * taps};
}

}  // namespace

Tensor uniform(at::IntArrayRef shape, double bound) { return at::empty(shape).uniform_(-bound, bound); }
Tensor normal(at::IntArrayRef shape, double deviation, double mean) { return at::empty(shape).normal_(mean, deviation); }
Tensor zeros(at::IntArrayRef shape) { return at::zeros(shape); }
Tensor ones(at::IntArrayRef shape) { return at::ones(shape); }

Tensor xavier_uniform(at::IntArrayRef shape, double gain) {
  const auto [in, out] = fans(shape);
  return uniform(shape, gain * std::sqrt(6 / (in + out)));
}
Tensor xavier_normal(at::IntArrayRef shape, double gain) {
  const auto [in, out] = fans(shape);
  return normal(shape, gain * std::sqrt(2 / (in + out)));
}
Tensor default_weight(at::IntArrayRef shape) { return uniform(shape, 1 / std::sqrt(fans(shape).in)); }

}  // namespace foveate::layers
