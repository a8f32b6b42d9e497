// foveate::_linear_attention and foveate::_delta_attention on the CPU: the linear engine, in order or whole.
#pragma once
#include <foveate/op.h>

#include <string>
#include <string_view>
#include <tuple>

namespace foveate::ops {

std::tuple<Tensor, Tensor, Tensor> linear_attention_cpu(const Tensor& q, const Tensor& k, const Tensor& v, const optional<Tensor>& key_mask,
                                                        const optional<Tensor>& log_decay, const optional<Tensor>& S, const optional<Tensor>& z,
                                                        Size offset, bool causal, std::string_view normalizer, double eps);

Gradients linear_attention_backward_cpu(const Backward& call, Tensor q, Tensor k, Tensor v, optional<Tensor> key_mask, optional<Tensor> log_decay,
                                        optional<Tensor> S, optional<Tensor> z, Size offset, bool causal, const std::string& normalizer, double eps);

std::tuple<Tensor, Tensor> delta_attention_cpu(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                                               const optional<Tensor>& key_mask, const optional<Tensor>& state, Size offset, bool causal);

Gradients delta_attention_backward_cpu(const Backward& call, Tensor q, Tensor k, Tensor v, Tensor beta, optional<Tensor> key_mask,
                                       optional<Tensor> state, Size offset, bool causal);

}  // namespace foveate::ops
