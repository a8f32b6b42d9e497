#include <foveate/conv_norm_relu.h>

namespace foveate::layers {

Tensor normalised(const Convolution& conv, const BatchNorm& norm, const Tensor& x, bool training, double momentum, double eps,
                  const Convolution::Steps& steps) {
  if (training) return norm(conv(x, steps), training, momentum, eps);
  const Tensor gain = norm.weight * (norm.running_var + eps).rsqrt();  // [out]
  const Tensor shift = norm.bias + ((conv.bias ? *conv.bias : at::zeros_like(gain)) - norm.running_mean) * gain;
  std::vector<int64_t> each(static_cast<std::size_t>(conv.weight.dim()), 1);
  each.front() = -1;
  const auto type = conv.weight.scalar_type();
  return Convolution{.weight = (conv.weight * gain.view(each)).to(type), .bias = shift.to(type)}(x, steps);
}

ConvNormRelu ConvNormRelu::init(int64_t in, int64_t out, int64_t taps) {
  const std::vector<int64_t> window{taps, taps};
  return {.conv = Convolution::init(in, out, window, /*bias=*/false), .norm = BatchNorm::init(out)};
}

Tensor ConvNormRelu::operator()(const Tensor& x, const Steps& s) const {
  const Tensor y = normalised(conv, norm, x, s.training, s.momentum, s.eps, {.padding = plain_extent(conv.weight, 2) / 2});
  if (s.slope != 0) return at::leaky_relu(y, s.slope);
  return s.training ? y.relu() : y.relu_();  // a convolution's result is nobody's but ours
}

}  // namespace foveate::layers
