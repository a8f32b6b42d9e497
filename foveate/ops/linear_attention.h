// linear_attention: attention whose weights are dot products of features, so that keys and values are summed once.
//
//   S_i = sum_{j <= i} k_j v_j^T;  z_i = sum_{j <= i} k_j;  out_i = q_i S_i / d(q_i . z_i)
//
// Without `causal` every query reads the sums over all keys. With decay, S_j = g_j S_{j-1} + k_j v_j^T and z likewise, g_j = exp(log_decay_j).
// q and k are features already; a hidden key adds nothing, and does not decay what came before it.
#pragma once
#include <foveate/contract.h>

namespace foveate::ops {

/// The denominator d(z) that a paper writes under q S. Where it would be exactly 0 it is 1: a query that sees nothing gives zeros.
enum class Normalizer {
  none,       ///< 1
  add,        ///< z + eps
  clamp,      ///< max(z, eps)
  clamp_abs,  ///< max(|z|, eps)
  guard,      ///< z, but z + 2 eps where |z| <= eps
};

/// The sums that linear attention carries from chunk to chunk; float32 for half-precision inputs. Undefined tensors: nothing seen yet.
struct LinearState {
  Tensor S;  ///< [B,Hk,F,Dv], sum of k v^T
  Tensor z;  ///< [B,Hk,F], sum of k
};

struct LinearAttention {
  bool causal = false;                ///< hides j > i + offset
  optional<Tensor> key_mask = {};     ///< bool [B,M], True where a key takes part
  optional<Tensor> key_lengths = {};  ///< int [B]: keys beyond them take no part
  optional<Tensor> log_decay = {};    ///< [B,Hk,M]: log g_j <= 0, -inf forgets everything before j; needs causal
  LinearState state = {};             ///< what every query sees besides the keys
  Normalizer normalizer = Normalizer::add;
  double eps = 1e-6;
  optional<Size> offset = {};  ///< where query 0 stands among the keys; default M - N: the last query meets the last key
};

struct LinearAttended {
  Tensor out;         ///< [B,H,N,Dv]
  LinearState state;  ///< after all keys
};

/// q [B,H,N,F], k [B,Hk,M,F], v [B,Hk,M,Dv]; Hk divides H.
FOVEATE_API LinearAttended linear_attention(const Tensor& q, const Tensor& k, const Tensor& v, const LinearAttention& options = {});

}  // namespace foveate::ops

namespace foveate {
template <> inline constexpr auto names<ops::Normalizer> = std::array<std::string_view, 5>{"none", "add", "clamp", "clamp_abs", "guard"};
}  // namespace foveate
