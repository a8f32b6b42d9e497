#include <foveate/gru.h>
#include <foveate/init.h>

namespace foveate::layers {

GRU GRU::init(int64_t width) {
  const double bound = 1 / std::sqrt(static_cast<double>(width));
  return {.input_weight = uniform({3 * width, width}, bound),
          .state_weight = uniform({3 * width, width}, bound),
          .input_bias = uniform({3 * width}, bound),
          .state_bias = uniform({3 * width}, bound)};
}

Tensor GRU::operator()(const Tensor& y, const Tensor& h) const {
  const auto i = at::linear(y, input_weight, input_bias).chunk(3, -1), s = at::linear(h, state_weight, state_bias).chunk(3, -1);
  const Tensor reset = (i[0] + s[0]).sigmoid(), update = (i[1] + s[1]).sigmoid();
  return (1 - update) * (i[2] + reset * s[2]).tanh() + update * h;
}

}  // namespace foveate::layers
