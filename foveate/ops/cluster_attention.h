// cluster_attention: softmax attention inside clusters of tokens that stand in line.
//
// Queries stand in line as q_index says, keys as k_index says, -1 where nobody stands. Both lines are cut into equally many clusters, of
// q_size and k_size places; a query sees keys of its own cluster c, of `before` clusters before it and `after` behind it:
//
//   s_ij = scale q_t.k_u of the tokens t = q_index[i], u = k_index[j];   lse_i = log sum_j exp(s_ij);   out_i = sum_j exp(s_ij - lse_i) v_u
//
// Rules know tokens, not places: a causal query t sees u <= t. They are applied in the order in which they stand in ClusterAttention. A
// query that sees nothing, or a place without one, gets out 0 and lse -inf, and passes no gradient. Indices have none.
//
// A token may stand at several places, once in each round of hashing say. `merged` makes one query of them, whose softmax is over all keys that
// it meets at any of its places, one that it meets twice twice: the same as joining the places by their log-sum-exp.
#pragma once
#include <foveate/attention.h>

namespace foveate::ops {

struct ClusterAttention {
  /// int [B,H,P], [B,H,Pk]; default: tokens as they come. If merged also rounds [B,H,R,P], [B,H,R,Pk], cut into clusters one by one.
  optional<Tensor> q_index = {}, k_index = {};
  optional<Tensor> k_weight = {};  ///< [B,H,Pk], of lines without rounds: what the key and the value at each place are multiplied with
  int64_t q_size = 0, k_size = 0;  ///< places of a cluster; 0: all in one. The last cluster may be short
  int64_t before = 0, after = 0;
  bool circular = false;               ///< the first cluster follows the last one, which may be met twice; else there is none beyond the ends
  optional<Tensor> key_mask = {};      ///< bool [B,M], True where a key takes part
  optional<Tensor> query_mask = {};    ///< bool [B,N], False where a query sees nothing (but itself)
  bool causal = false;                 ///< hides u > t
  optional<Size> causal_keys = {};     ///< of the first so many keys only
  optional<double> self_score = {};    ///< the score of u = t
  bool self_seen = true;               ///< a token that has a self_score is seen by itself whatever the masks say
  optional<Tensor> label = {};         ///< int [B,H,P], of lines of equally many places: only keys of its own label are seen by a query
  optional<Tensor> meetings = {};      ///< int [2,B,H,R,N]: log(n + 1e-9) is subtracted, n = sum_r [a_rt = a_ru] + [a_rt = b_ru]
  optional<double> scale = {};         ///< default 1/sqrt(D)
  optional<Tensor> dropout_keep = {};  ///< bool [*,(before + 1 + after) k_size], * as of q_index: the draw of dropout, True where kept
  optional<Tensor> dropout_seed = {};  ///< int []: the draw depends on it and on the places alone
  double dropout = 0;
  bool merged = false;  ///< one result for each token, not for each place
};

/// q [B,H,N,D], k [B,H,M,D], v [B,H,M,Dv] -> out [B,H,P,Dv], lse [B,H,P], in line; merged: out [B,H,N,Dv], lse [B,H,N].
FOVEATE_API Attended cluster_attention(const Tensor& q, const Tensor& k, const Tensor& v, const ClusterAttention& options);

/// Gradients of q, k, v and, where there is one, of k_weight, from what cluster_attention found: for primitives made of it. Either gradient
/// of the results may be undefined.
std::vector<Tensor> cluster_attention_gradients(const Tensor& q, const Tensor& k, const Tensor& v, const ClusterAttention& options,
                                                const Attended& found, const Attended& gradients);

}  // namespace foveate::ops
