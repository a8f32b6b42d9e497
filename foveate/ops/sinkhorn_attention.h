// sinkhorn_attention: buckets of queries attend to sorted buckets of keys and, where there are as many of both, to the keys of their own.
//
//   R scores buckets of queries by buckets of keys;  S: its largest entries, row by row, or sinkhorn(R);  k~_u = sum_c S_uc k_c
//   out_u = softmax(scale q_u [k~_u; k_u]^T) [v~_u; v_u]
//
// Zeros fill the last bucket of a length that is no multiple; they count in its sums. A mixed key takes part where that of the bucket of the
// largest weight does; of equally large ones the first. A query that sees nothing gets zeros.
#pragma once
#include <foveate/attention.h>

namespace foveate::ops {

/// A matrix brought towards one whose rows and columns sum to 1, in log space: `iterations` times t_ij -= log sum_j exp(t_ij), then
/// t_ij -= log sum_i exp(t_ij). logits [...,R,C] -> exp(t) [...,R,C]
FOVEATE_API Tensor sinkhorn(const Tensor& logits, int64_t iterations);

struct SinkhornAttention {
  int64_t bucket_size = 64, kv_bucket_size = 64;
  int64_t top_buckets = 1;             ///< rows of S for each bucket of queries; 0: one, a mixture of all by sinkhorn
  int64_t sortcut = 0;                 ///< so many rows that all queries see, instead; of a mixture one
  int64_t iterations = 7;              ///< of sinkhorn
  double temperature = 1;              ///< divides scores
  bool values_from_keys = false;       ///< mixed values are mixed keys
  optional<Tensor> sort_weight = {};   ///< [1,H,2D,at least U]: scores by sums of queries and keys, instead of means of both
  optional<Tensor> gumbel = {};        ///< [B,H,U,C] added to the logarithm of scores where S is a mixture
  optional<Tensor> key_mask = {};      ///< bool [B,M] True where a key takes part
  double dropout = 0;                  ///< probability of dropping a weight, in [0,1), where there is a seed
  optional<Tensor> dropout_seed = {};  ///< int []
};

struct SinkhornAttended {
  Tensor out;  ///< [B,H,N,D]
  Tensor S;    ///< [B,H,rows,C]
};

/// q [B,H,N,D], k and v [B,H,M,D]; U and C are the numbers of buckets.
FOVEATE_API SinkhornAttended sinkhorn_attention(const Tensor& q, const Tensor& k, const Tensor& v, const SinkhornAttention& options);

/// The causal form. Half of the heads have buckets that begin at token 0, the others, if buckets have more than one, at token b - 1; the
/// tokens before it see only each other. A bucket sees K of those before it, chosen by its first token, and the past of its own; in place
/// of one before it, it may take the null bucket, each of whose tokens is null_k and null_v.
struct SinkhornCausal {
  int64_t bucket_size = 64, top_buckets = 2;
  double temperature = 1;
  Tensor null_k, null_v;              ///< [H,1,D]
  optional<Tensor> sort_weight = {};  ///< [1,H,2D,at least U + K]: scores by a bucket's first key and the mean of keys up to it
  optional<Tensor> key_mask = {};     ///< bool [B,M]
  double dropout = 0;
  optional<Tensor> dropout_seed = {};
  Tensor q_sum, bucket_q;  ///< [B,H,D]: of queries before, see below; zeros at the start
};

struct SinkhornCausalAttended {
  Tensor out;       ///< [B,H,N,D]
  Tensor S;         ///< [B,H,rows,1 + U]: nulls in one column; zeros for buckets none of whose tokens asks
  Tensor q_sum;     ///< [B,H,D] sum of all queries from the first bucket on
  Tensor bucket_q;  ///< [B,H,D] their mean at the first token of the last bucket that began
};

/// q [B,H,N,D], the last N of M tokens; k and v [B,H,M,D].
FOVEATE_API SinkhornCausalAttended sinkhorn_causal_attention(const Tensor& q, const Tensor& k, const Tensor& v, const SinkhornCausal& options);

}  // namespace foveate::ops
