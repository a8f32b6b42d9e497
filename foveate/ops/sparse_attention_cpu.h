// sparse_attention on the CPU: the softmax engine over the tiles of a pattern.
#pragma once
#include <foveate/op.h>

#include <string_view>
#include <tuple>

namespace foveate::ops {

std::tuple<Tensor, Tensor> sparse_attention_cpu(const Tensor& q, const Tensor& k, const Tensor& v, std::string_view pattern, at::TensorList tables,
                                                const optional<Tensor>& key_mask, const optional<Tensor>& mask, const optional<Tensor>& bias,
                                                double scale, Size offset);

Gradients sparse_attention_backward_cpu(const Backward& call, Tensor q, Tensor k, Tensor v, const std::string& pattern,
                                        const std::vector<Tensor>& tables, optional<Tensor> key_mask, optional<Tensor> mask, optional<Tensor> bias,
                                        double scale, Size offset);

}  // namespace foveate::ops
