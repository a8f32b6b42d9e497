// Normalisations: over features (LayerNorm), over batch and positions with running statistics (BatchNorm).
#pragma once
#include <foveate/contract.h>

namespace foveate::layers {

/// y = (x - mean) / sqrt(var + eps) * weight + bias over the last dimension.
struct FOVEATE_API LayerNorm {
  Tensor weight;  // [E]
  Tensor bias;    // [E]

  void fields(auto&& f) {
    f("weight", weight, "[*] gain, initially 1");
    f("bias", bias, "[*] shift, initially 0");
  }
  static LayerNorm init(int64_t width);
  Tensor operator()(const Tensor& x, double eps = 1e-5) const;
};

/// The same per channel, over batch and positions: statistics of the batch in training (the running ones follow), running ones else.
struct FOVEATE_API BatchNorm {
  Tensor weight, bias;               // [C]
  Tensor running_mean, running_var;  // [C], buffers

  void fields(auto&& f) {
    f("weight", weight, "[*] gain, initially 1");
    f("bias", bias, "[*] shift, initially 0");
    f("running_mean", running_mean, "[*] running mean, initially 0", buffer);
    f("running_var", running_var, "[*] running unbiased variance, initially 1", buffer);
  }
  static BatchNorm init(int64_t channels, double gain = 1);

  /// x [B,C,...]; momentum is the weight of the new statistics.
  Tensor operator()(const Tensor& x, bool training, double momentum = 0.1, double eps = 1e-5) const;
};

}  // namespace foveate::layers
