// A convolution without bias, batch normalisation, a ReLU that may leak.
#pragma once
#include <foveate/convolution.h>
#include <foveate/norm.h>

namespace foveate::layers {

struct FOVEATE_API ConvNormRelu {
  Convolution conv;
  BatchNorm norm;

  void fields(auto&& f) {
    f("conv", conv, "convolution without bias, same padding");
    f("norm", norm, "batch normalisation");
  }
  struct Steps {
    double eps, momentum, slope;
    bool training;
  };
  static ConvNormRelu init(int64_t in, int64_t out, int64_t taps = 1);
  Tensor operator()(const Tensor& x, const Steps& steps) const;  // [B,in,H,W] -> [B,out,H,W]
};

/// The steps that options ask for: bn_eps, bn_momentum, negative_slope.
ConvNormRelu::Steps steps_of(const auto& options, bool training) {
  return {.eps = options.bn_eps, .momentum = options.bn_momentum, .slope = options.negative_slope, .training = training};
}

}  // namespace foveate::layers
