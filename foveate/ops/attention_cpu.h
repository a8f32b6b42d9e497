// The softmax engine on tensors, for attention and sparse_attention; and attention on the CPU: the engine where it serves, the formula
// elsewhere.
#pragma once
#include <foveate/op.h>

#include <memory>
#include <tuple>

namespace foveate::ops {

/// A pattern as the engine reads it: key tiles of each query tile, and the masks of those that are seen in part.
struct PatternTiles {
  int64_t heads;                     ///< 1 where all heads are alike
  std::vector<int64_t> start;        ///< [heads * query tiles + 1]
  std::vector<int32_t> tiles, mask;  ///< beside each other; mask -1: seen whole
  std::vector<uint8_t> masks;        ///< [masks,query_tile,key_tile]
};

/// The arguments of one call that the engine looks at.
struct AttentionArguments {
  Tensor q, k, v;
  optional<Tensor> mask, key_mask, bias, slopes, table, rows, row_query, value_rows, dropout_keep;
  int64_t offset, origin;
  optional<int64_t> window;
  bool causal;
  double scale;
  std::shared_ptr<const PatternTiles> pattern = nullptr;
};

/// out and lse; gradients of q, k, v, those wanted. No input may be empty.
std::tuple<Tensor, Tensor> engine_forward(const AttentionArguments& c);
std::vector<Tensor> engine_backward(const Backward& call, const AttentionArguments& c);

std::tuple<Tensor, Tensor> attention_cpu(const Tensor& q, const Tensor& k, const Tensor& v, const optional<Tensor>& mask,
                                         const optional<Tensor>& key_mask, const optional<Tensor>& bias, const optional<Tensor>& slopes,
                                         const optional<Tensor>& table, const optional<Tensor>& rows, const optional<Tensor>& row_query,
                                         const optional<Tensor>& value_rows, const optional<Tensor>& dropout_keep, Size offset, Size origin,
                                         optional<int64_t> window, bool causal, double scale, double dropout);

Gradients attention_backward_cpu(const Backward& call, Tensor q, Tensor k, Tensor v, optional<Tensor> mask, optional<Tensor> key_mask,
                                 optional<Tensor> bias, optional<Tensor> slopes, optional<Tensor> table, optional<Tensor> rows,
                                 optional<Tensor> row_query, optional<Tensor> value_rows, optional<Tensor> dropout_keep, Size offset, Size origin,
                                 optional<int64_t> window, bool causal, double scale, double dropout);

}  // namespace foveate::ops
