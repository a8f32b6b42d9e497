// Relative positions in softmax attention: s_ij = scale q_i.k_j + what the distance delta = j - a_i says; query i stands at a_i = i + M - N.
// Shaw 1803.02155, Transformer-XL 1901.02860 and XLNet 1906.08237, T5 1910.10683, ALiBi 2108.12409, rotary 2104.09864.
//
// Each scheme has a file here: a pure function in foveate::positions, which any mechanism may use, and a form of attention that does.
#pragma once
#include <foveate/attention.h>
#include <foveate/contract.h>
#include <foveate/kv_cache.h>

namespace foveate {

inline constexpr Card relative_position{.slug = "relative-position",
                                        .title = "Relative positions",
                                        .paper = "1803.02155",
                                        .year = 2018,
                                        .family = Family::positions,
                                        .cost = "O(N M D)",
                                        .causality = Causality::strict,
                                        .equation = "out = softmax(scale Q K^T + position(j - i)) V"};

/// What the forms of attention with a relative position are given.
struct RelativeInputs {
  Tensor q, k, v;
  optional<Tensor> key_mask;
  void fields(auto&& f) {
    f("q", q, "[B,H,N,D] queries");
    f("k", k, "[B,Hk,M,D] keys; Hk divides H");
    f("v", v, "[B,Hk,M,Dv] values");
    f("key_mask", key_mask, "bool [B,*] True where a key takes part; in step, of all keys so far");
  }
};

}  // namespace foveate
