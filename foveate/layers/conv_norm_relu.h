// A convolution, batch normalisation, a ReLU that may leak.
#pragma once
#include <foveate/convolution.h>
#include <foveate/norm.h>

namespace foveate::layers {

/// norm(conv(x)). Running statistics are constants: the norm is then a gain and a shift of each channel, which the convolution takes in, so
/// that no map is read or kept for it.
FOVEATE_API Tensor normalised(const Convolution& conv, const BatchNorm& norm, const Tensor& x, bool training, double momentum, double eps,
                              const Convolution::Steps& steps = Convolution::Steps{});

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
