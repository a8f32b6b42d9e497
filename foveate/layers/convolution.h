// Convolutions over one to three spatial dimensions, from the shape of their weight.
#pragma once
#include <foveate/contract.h>

namespace foveate::layers {

struct FOVEATE_API Convolution {
  Tensor weight;          // [out, in, taps...]
  optional<Tensor> bias;  // [out]

  void fields(auto&& f) {
    f("weight", weight, "output by input channels by taps");
    f("bias", bias, "[*] output channels");
  }

  /// torch's default: weight and bias uniform, bound 1/sqrt(in taps).
  static Convolution init(int64_t in, int64_t out, at::IntArrayRef taps, bool bias = true);

  struct Steps {
    int64_t stride = 1, padding = 0, dilation = 1, groups = 1;
  };
  Tensor operator()(const Tensor& x, const Steps& steps) const;  // [B,in,...] -> [B,out,...]
  Tensor operator()(const Tensor& x) const { return (*this)(x, Steps{}); }
};

}  // namespace foveate::layers
