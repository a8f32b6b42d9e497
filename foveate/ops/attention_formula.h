// The portable formula of attention, and the pieces of it that sparse_attention shares.
#pragma once
#include <foveate/tensor.h>

#include <tuple>

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

std::tuple<Tensor, Tensor> attention_formula(const Tensor& q, const Tensor& k, const Tensor& v, const optional<Tensor>& mask,
                                             const optional<Tensor>& key_mask, const optional<Tensor>& bias, const optional<Tensor>& slopes,
                                             const optional<Tensor>& table, const optional<Tensor>& rows, const optional<Tensor>& row_query,
                                             const optional<Tensor>& value_rows, const optional<Tensor>& dropout_keep, Size offset, Size origin,
                                             optional<int64_t> window, bool causal, double scale, double dropout);

}  // namespace foveate::ops
