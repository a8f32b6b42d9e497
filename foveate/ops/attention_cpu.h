// attention on the CPU: the softmax engine where it serves, the formula elsewhere.
#pragma once
#include <foveate/op.h>

#include <tuple>

namespace foveate::ops {

/// The arguments of one call that the engine looks at.
struct AttentionArguments {
  Tensor q, k, v;
  optional<Tensor> mask, key_mask, bias, slopes, table, rows, value_rows, dropout_keep;
  int64_t offset, origin;
  optional<int64_t> window;
  bool causal;
  double scale;
};

std::tuple<Tensor, Tensor> attention_cpu(const Tensor& q, const Tensor& k, const Tensor& v, const optional<Tensor>& mask, const optional<Tensor>& key_mask,
                                         const optional<Tensor>& bias, const optional<Tensor>& slopes, const optional<Tensor>& table,
                                         const optional<Tensor>& rows, const optional<Tensor>& row_query, const optional<Tensor>& value_rows,
                                         const optional<Tensor>& dropout_keep, Size offset, Size origin, optional<int64_t> window, bool causal,
                                         double scale, double dropout);

Gradients attention_backward_cpu(const Backward& call, Tensor q, Tensor k, Tensor v, optional<Tensor> mask, optional<Tensor> key_mask, optional<Tensor> bias,
                                 optional<Tensor> slopes, optional<Tensor> table, optional<Tensor> rows, optional<Tensor> row_query,
                                 optional<Tensor> value_rows, optional<Tensor> dropout_keep, Size offset, Size origin, optional<int64_t> window, bool causal,
                                 double scale, double dropout);

}  // namespace foveate::ops
