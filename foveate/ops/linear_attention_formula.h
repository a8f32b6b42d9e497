// The portable formula of linear_attention.
#pragma once
#include <foveate/linear_attention.h>

#include <string_view>
#include <tuple>

namespace foveate::ops {

std::tuple<Tensor, Tensor, Tensor> linear_attention_formula(const Tensor& q, const Tensor& k, const Tensor& v, const optional<Tensor>& key_mask,
                                                            const optional<Tensor>& log_decay, const optional<Tensor>& S, const optional<Tensor>& z,
                                                            Size offset, bool causal, std::string_view normalizer, double eps);

}  // namespace foveate::ops
