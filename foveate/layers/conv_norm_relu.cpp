#include <foveate/conv_norm_relu.h>

namespace foveate::layers {

ConvNormRelu ConvNormRelu::init(int64_t in, int64_t out, int64_t taps) {
  const std::vector<int64_t> window{taps, taps};
  return {.conv = Convolution::init(in, out, window, /*bias=*/false), .norm = BatchNorm::init(out)};
}

Tensor ConvNormRelu::operator()(const Tensor& x, const Steps& s) const {
  const Tensor y = norm(conv(x, {.padding = plain_extent(conv.weight, 2) / 2}), s.training, s.momentum, s.eps);
  return s.slope == 0 ? y.relu() : at::leaky_relu(y, s.slope);
}

}  // namespace foveate::layers
