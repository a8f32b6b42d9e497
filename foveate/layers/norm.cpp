#include <foveate/init.h>
#include <foveate/norm.h>

namespace foveate::layers {

LayerNorm LayerNorm::init(int64_t width) { return {.weight = ones({width}), .bias = zeros({width})}; }

Tensor LayerNorm::operator()(const Tensor& x, double eps) const { return at::layer_norm_symint(x, {extent(x, -1)}, weight, bias, eps); }

BatchNorm BatchNorm::init(int64_t channels, double gain) {
  return {.weight = at::full({channels}, gain), .bias = zeros({channels}), .running_mean = zeros({channels}), .running_var = ones({channels})};
}

Tensor BatchNorm::operator()(const Tensor& x, bool training, double momentum, double eps) const {
  if (training) {  // one value has no variance: its gradient is zero and its unbiased variance infinite
    const auto values = x.sym_numel().maybe_as_int(), channels = weight.sym_numel().maybe_as_int();
    TORCH_CHECK_VALUE(!values || !channels || *values > *channels, "batch normalisation: training needs more than one value per channel, got ",
                      x.sym_sizes());
  }
  const Tensor y = at::batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps, /*cudnn_enabled=*/true);
  // libtorch 2.13 differentiates batch_norm wrongly on the CPU where B = 1 and the incoming gradient is ordered channels-last.
  // Through this pair of views the gradient arrives contiguous.
  return y.reshape({-1}).view_symint(y.sym_sizes());
}

}  // namespace foveate::layers
