// y = x W^T + b
#pragma once
#include <foveate/contract.h>

namespace foveate::layers {

struct FOVEATE_API Linear {
  Tensor weight;          // [out,in]
  optional<Tensor> bias;  // [out]

  void fields(auto&& f) {
    f("weight", weight, "[*,*] output features by input features");
    f("bias", bias, "[*] output features");
  }

  /// torch's default: weight and bias uniform, bound 1/sqrt(in).
  static Linear init(int64_t in, int64_t out, bool bias = true);

  Tensor operator()(const Tensor& x) const;  // [...,in] -> [...,out]
};

}  // namespace foveate::layers
