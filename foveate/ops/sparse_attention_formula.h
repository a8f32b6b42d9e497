// The portable formula of sparse_attention.
#pragma once
#include <foveate/tensor.h>

#include <string_view>
#include <tuple>

namespace foveate::ops {

std::tuple<Tensor, Tensor> sparse_attention_formula(const Tensor& q, const Tensor& k, const Tensor& v, std::string_view pattern,
                                                    at::TensorList tables, const optional<Tensor>& key_mask, const optional<Tensor>& mask,
                                                    const optional<Tensor>& bias, double scale, Size offset);

}  // namespace foveate::ops
