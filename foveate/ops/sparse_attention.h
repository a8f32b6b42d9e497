// sparse_attention: softmax attention in which a pattern says who attends to whom, at a cost in proportion to the pattern.
//
//   s_ij = scale q_i.k_j + bias_ij where the pattern and the masks show key j to query i, -inf elsewhere;
//   lse_i = log sum_j exp(s_ij);  out_i = sum_j exp(s_ij - lse_i) v_j
//
// A query that sees nothing gets out 0 and lse -inf, and passes no gradient. A key that several rules show counts once.
#pragma once
#include <foveate/attention.h>
#include <foveate/pattern.h>

namespace foveate::ops {

struct SparseAttention {
  optional<Tensor> mask = {};         ///< bool, broadcastable to [B,H,N,M], True where a key takes part
  optional<Tensor> key_mask = {};     ///< bool [B,M], True where a key takes part
  optional<Tensor> key_lengths = {};  ///< int [B]: keys beyond them take no part
  optional<Tensor> bias = {};         ///< broadcastable to [B,H,N,M], added after scaling
  optional<double> scale = {};        ///< default 1/sqrt(D)
  optional<Size> offset = {};         ///< where query 0 stands among the keys; default M - N: the last query meets the last key
};

/// q [B,H,N,D], k [B,Hk,M,D], v [B,Hk,M,Dv]; Hk divides H (grouped-query attention).
FOVEATE_API Attended sparse_attention(const Tensor& q, const Tensor& k, const Tensor& v, const patterns::Pattern& pattern,
                                      const SparseAttention& options = {});

}  // namespace foveate::ops
