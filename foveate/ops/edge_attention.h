// edge_attention: softmax attention along edges, a list for each sequence and head: query i sees the keys that edges from i name.
//
//   s_ij = scale q_i.k_j where an edge i -> j is listed;  lse_i = log sum_j exp(s_ij);  out_i = sum_j exp(s_ij - lse_i) v_j
//
// Edges stand in any order; one that is listed several times counts once, one whose end or start is none of the numbers (-1) not at all. A
// query without an edge gets out 0 and lse -inf, and passes no gradient. Selections of keys (a table of so many for each query) are the case
// without starts.
#pragma once
#include <foveate/attention.h>

namespace foveate::ops {

struct EdgeAttention {
  optional<Tensor> from = {};          ///< int [B or 1,H or 1,L] queries; absent: the list has L/N places for each query, in their order
  optional<Tensor> key_mask = {};      ///< bool [B,M] True where a key takes part
  optional<double> scale = {};         ///< default 1/sqrt(D)
  double dropout = 0;                  ///< probability of dropping a weight, in [0,1), where there is a seed
  optional<Tensor> dropout_seed = {};  ///< int []: the draw depends on it and on b, h, i, j alone
};

struct AlongEdges {
  Tensor out;     ///< [B,H,N,Dv]
  Tensor lse;     ///< [B,H,N]; float32 for half-precision inputs
  Tensor degree;  ///< int [B,H or 1,N]: how many keys a query sees
};

/// q [B,H,N,D], k [B,H,M,D], v [B,H,M,Dv], to: int [B or 1,H or 1,L] keys.
FOVEATE_API AlongEdges edge_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& to, const EdgeAttention& options = {});

}  // namespace foveate::ops
