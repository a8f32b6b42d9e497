// attention: exact softmax attention, the baseline and the engine of everything that computes every score.
//
//   s_ij = scale q_i.k_j + bias_ij + position_ij, -inf where hidden;  lse_i = log sum_j exp(s_ij);  out_i = sum_j exp(s_ij - lse_i) v_j
//
// A query that sees nothing gets out 0 and lse -inf, and passes no gradient.
#pragma once
#include <foveate/pattern.h>

namespace foveate::ops {

/// How much a key's distance counts, delta = j - (i + offset). Distances beyond a table use its ends. At most one of the three.
struct ScoreBias {
  optional<Tensor> slopes;      ///< [H]: -slope |delta|  (ALiBi)
  optional<Tensor> table;       ///< [H,L]: table[h, delta + origin], not scaled  (T5, learned biases)
  optional<Tensor> rows;        ///< [H or 1,L,D]: scale (row_query_i . rows[h, delta + origin])  (Shaw, Transformer-XL)
  optional<Tensor> row_query;   ///< [B,H,N,D]: default q
  optional<Tensor> value_rows;  ///< [H or 1,L,Dv]: added to the value a query takes from a key  (Shaw)
  Size origin = 0;              ///< the index of delta = 0
};

/// What a query has before it meets the first key: one key more, of this score and value. A score of 0 with the value 0 is a null key.
struct Start {
  Tensor logit;                 ///< broadcastable to [B,H,N]
  optional<Tensor> value = {};  ///< broadcastable to [B,H,N,Dv]; default 0
};

struct Attention {
  optional<Tensor> mask = {};         ///< bool, broadcastable to [B,H,N,M], True where a key takes part
  optional<Tensor> key_mask = {};     ///< bool [B,M], True where a key takes part; tiles of 64 keys that do not cost nothing
  optional<Tensor> key_lengths = {};  ///< int [B]: keys beyond them take no part
  bool causal = false;                ///< hides j > i + offset
  optional<int64_t> window = {};      ///< hides j <= i + offset - window
  optional<Tensor> bias = {};         ///< broadcastable to [B,H,N,M], added after scaling
  optional<double> scale = {};        ///< default 1/sqrt(D)
  ScoreBias position = {};
  optional<Size> offset = {};          ///< where query 0 stands among the keys; default M - N: the last query meets the last key
  optional<Tensor> dropout_keep = {};  ///< bool [B,H,N,M]: the draw of dropout, True where a probability is kept
  double dropout = 0;                  ///< probability of dropping, in [0,1); nothing is dropped where neither a draw nor a seed is given
  optional<Tensor> dropout_seed = {};  ///< int []: the draw depends on it and on b, h, i, j alone
  optional<double> softcap = {};       ///< scaled products become softcap tanh(product / softcap), before biases
  optional<Start> start = {};
  optional<Tensor> query_mask = {};  ///< bool [B,N], False where a query gets zeros; tiles of 64 such queries cost nothing
  optional<Tensor> q_index = {};     ///< int [B or 1,H or 1,N']: which query stands at each place in line, -1 none; out and lse are in line
  optional<Tensor> k_index = {};     ///< int [B or 1,Hk or 1,M']: which key stands at each place, -1 none; masks of keys stay by key
};

struct Attended {
  Tensor out;  ///< [B,H,N,Dv]
  Tensor lse;  ///< [B,H,N], natural log; float32 for half-precision inputs
};

/// q [B,H,N,D], k [B,Hk,M,D], v [B,Hk,M,Dv]; Hk divides H (grouped-query attention).
FOVEATE_API Attended attention(const Tensor& q, const Tensor& k, const Tensor& v, const Attention& options = {});

/// A seed for dropout, from the global generator.
FOVEATE_API Tensor draw_seed(const Tensor& like);

/// What attention and sparse_attention share: checks, defaults, the primitive. Without a pattern every key is seen.
Attended attention_over(const char* op, const Tensor& q, const Tensor& k, const Tensor& v, const optional<patterns::Pattern>& pattern,
                        const Attention& options);

/// key_mask and key_lengths as one bool [B,M], or nothing where every key takes part.
FOVEATE_API optional<Tensor> visible_keys(const Tensor& k, const optional<Tensor>& key_mask, const optional<Tensor>& key_lengths);

/// Refuses q, k, v that do not belong together, naming the argument.
FOVEATE_API void check_qkv(const char* op, const Tensor& q, const Tensor& k, const Tensor& v);

}  // namespace foveate::ops
