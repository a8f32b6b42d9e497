// sparse_attention: softmax attention in which a pattern says who attends to whom, at a cost in proportion to the pattern.
//
//   s_ij as in attention where the pattern and the masks show key j to query i, -inf elsewhere;
//   lse_i = log sum_j exp(s_ij);  out_i = sum_j exp(s_ij - lse_i) v_j
//
// A query that sees nothing gets out 0 and lse -inf, and passes no gradient. A key that several rules show counts once.
#pragma once
#include <foveate/attention.h>
#include <foveate/pattern.h>

namespace foveate::ops {

/// q [B,H,N,D], k [B,Hk,M,D], v [B,Hk,M,Dv]; Hk divides H (grouped-query attention).
FOVEATE_API Attended sparse_attention(const Tensor& q, const Tensor& k, const Tensor& v, const patterns::Pattern& pattern,
                                      const Attention& options = {});

}  // namespace foveate::ops
