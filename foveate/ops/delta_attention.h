// delta_attention: linear attention whose memory corrects itself: a key writes what its value lacks in what the memory holds for it.
//
//   S_j = S_{j-1} + k_j u_j^T;  u_j = beta_j (v_j - S_{j-1}^T k_j);  out_i = q_i S_i
//
// q and k are features already. With beta_j = 1 and |k_j| = 1 the memory then returns v_j for k_j exactly, whatever it held before.
// A hidden key leaves the memory as it is. A denominator, where a paper has one, is a linear_attention of the same features.
#pragma once
#include <foveate/tensor.h>

namespace foveate::ops {

struct DeltaAttention {
  bool causal = true;              ///< hides j > i + offset; else every query reads the memory after all keys
  optional<Tensor> key_mask = {};  ///< bool [B,M], True where a key takes part
  Tensor state = {};               ///< [B,Hk,F,Dv] the memory before the first key, float32 for half-precision inputs; undefined: empty
  optional<Size> offset = {};      ///< where query 0 stands among the keys; default M - N: the last query meets the last key
};

struct DeltaAttended {
  Tensor out;    ///< [B,H,N,Dv]
  Tensor state;  ///< [B,Hk,F,Dv] after all keys
};

/// q [B,H,N,F], k [B,Hk,M,F], v [B,Hk,M,Dv], beta [B,Hk,M]; Hk divides H.
FOVEATE_API DeltaAttended delta_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta, const DeltaAttention& options = {});

}  // namespace foveate::ops
