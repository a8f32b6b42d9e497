// The portable formula of attention, dense and by the blocks of a pattern.
#pragma once
#include <foveate/attention_arguments.h>

#include <functional>

namespace foveate::ops {

/// Half precision accumulates in float32, everything else in itself.
inline at::ScalarType accumulation_type(at::ScalarType type) { return type == at::kBFloat16 || type == at::kHalf ? at::kFloat : type; }

/// [B,Hk,M,D] -> [B,H,M,D]: each key head serves H / Hk query heads.
Tensor repeat_heads(const Tensor& k, int64_t heads);

/// Softmax over the last dimension of s [...,N,M] (already -inf where hidden), times v [...,M,Dv]; safe for rows that see nothing.
struct Softmax {
  Tensor probabilities;  // [...,N,M]
  Tensor lse;            // [...,N]
};
Softmax safe_softmax(const Tensor& scores);

/// Some of the scores [B,H,N,M], laid out in any way: whose they are, each broadcastable to them.
struct Scores {
  Tensor products;                                   // [...,n,m] scale q.k
  Tensor b, head, i, j;                              // int: batch row, head, query, key of each score
  Tensor row_query;                                  // [...,n,D] in the same layout, undefined where there are no rows
  std::function<Tensor(const Tensor&)> of_all;       // what is broadcastable to [B,H,N,M] -> to `products`
  std::function<Tensor(const Tensor&)> of_all_keys;  // what is [B,M] -> to `products`
  optional<Tensor> seen = {};                        // bool
};

/// From scores to probabilities: biases, masks, softmax, dropout.
Softmax weigh(const AttentionArguments& c, const Scores& scores);

/// out [...,n,Dv] with what c.value_rows adds to it.
Tensor plus_value_rows(const AttentionArguments& c, const Scores& scores, const Tensor& probabilities, const Tensor& out);

OutAndLse attention_formula(const AttentionArguments& c);

/// Where there is a pattern.
OutAndLse sparse_attention_formula(const AttentionArguments& c);

}  // namespace foveate::ops
