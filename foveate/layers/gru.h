// A gated recurrent unit: h' = (1 - z) n + z h, r = sigmoid(..), z = sigmoid(..), n = tanh(i_n + r s_n), of an input y and a state h.
#pragma once
#include <foveate/contract.h>

namespace foveate::layers {

struct FOVEATE_API GRU {
  Tensor input_weight, state_weight;  // [3E,E]: reset, update, new
  Tensor input_bias, state_bias;      // [3E]

  void fields(auto&& f) {
    f("input_weight", input_weight, "[*,*] reset, update and new, of the input");
    f("state_weight", state_weight, "[*,*] reset, update and new, of the state");
    f("input_bias", input_bias, "[*] likewise");
    f("state_bias", state_bias, "[*] likewise");
  }
  /// torch's default: uniform, bound 1/sqrt(width).
  static GRU init(int64_t width);
  Tensor operator()(const Tensor& y, const Tensor& h) const;  // [...,E], [...,E] -> [...,E]
};

}  // namespace foveate::layers
