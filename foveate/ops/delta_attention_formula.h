// The portable formula of delta_attention.
#pragma once
#include <foveate/tensor.h>

#include <tuple>

namespace foveate::ops {

std::tuple<Tensor, Tensor> delta_attention_formula(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                                                   const optional<Tensor>& key_mask, const optional<Tensor>& state, Size offset, bool causal);

}  // namespace foveate::ops
