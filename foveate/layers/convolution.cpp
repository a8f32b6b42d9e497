#include <foveate/convolution.h>
#include <foveate/init.h>

#include <cmath>

namespace foveate::layers {

Convolution Convolution::init(int64_t in, int64_t out, at::IntArrayRef taps, bool bias) {
  std::vector<int64_t> shape{out, in};
  shape.insert(shape.end(), taps.begin(), taps.end());
  Convolution made{.weight = default_weight(shape)};
  if (bias) made.bias = uniform({out}, 1 / std::sqrt(static_cast<double>(made.weight[0].numel())));
  return made;
}

Tensor Convolution::operator()(const Tensor& x, const Steps& s) const {
  if (weight.dim() == 3) {  // as torch does itself; but fake tensors of a device that is not there refuse the one-dimensional call
    return at::convolution(x.unsqueeze(2), weight.unsqueeze(2), bias, {1, s.stride}, {0, s.padding}, {1, s.dilation}, /*transposed=*/false, {0, 0},
                           s.groups)
        .squeeze(2);
  }
  const std::vector<int64_t> each(static_cast<std::size_t>(weight.dim() - 2), 0);
  const auto all = [&](int64_t value) { return std::vector<int64_t>(each.size(), value); };
  return at::convolution(x, weight, bias, all(s.stride), all(s.padding), all(s.dilation), /*transposed=*/false, all(0), s.groups);
}

}  // namespace foveate::layers
