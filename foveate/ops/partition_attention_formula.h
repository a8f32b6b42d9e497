// The portable formula of partition_attention.
#pragma once
#include <foveate/tensor.h>

namespace foveate::ops {

Tensor partition_attention_formula(const Tensor& q, const Tensor& k, const Tensor& v, const optional<Tensor>& table, const optional<Tensor>& lengths,
                                   const optional<Tensor>& dropout_seed, Size tokens, Size before, int64_t step, int64_t clip_dist, bool causal,
                                   bool right_overflow, bool complete, double scale, double dropout);

}  // namespace foveate::ops
