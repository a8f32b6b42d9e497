// partition_attention: softmax attention of the nodes of a binary partition, each to those that it reads (binary_partition.h).
//
//   s_ab = scale q_b.(k_a + table[type of the edge a -> b]);  out_b = sum over edges of softmax(s_.b) v_a
//
// A span's edges are all of one type, which adds the same to all its scores: it cancels.
#pragma once
#include <foveate/binary_partition.h>

namespace foveate::ops {

struct PartitionAttention {
  patterns::BinaryPartition how = {};
  optional<Tensor> table = {};         ///< [types or more,D]
  optional<Tensor> lengths = {};       ///< int [B]: each sequence is partitioned by itself, the rest is padding and gets zeros
  optional<double> scale = {};         ///< default 1/sqrt(D)
  double dropout = 0;                  ///< probability of dropping a weight, in [0,1), where there is a seed
  optional<Tensor> dropout_seed = {};  ///< int []: the draw depends on it and on the place of a weight alone
  Size before = 0;                     ///< tokens that ask no more
  bool complete = false;               ///< spans are there only where all their tokens are; for causal partitions that grow
};

/// k [B,H,T,D] and v [B,H,T,Dv] of `tokens` tokens, then of their spans, level by level. q [B,H,*,D] of the tokens from `before`, then of
/// the spans that end behind it. -> [B,H,*,Dv]. There may be more rows, which are left alone and get zeros.
FOVEATE_API Tensor partition_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Size& tokens, const PartitionAttention& options);

}  // namespace foveate::ops
