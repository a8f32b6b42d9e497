#include <foveate/sparse_attention_cpu.h>

#include "kernels/softmax.h"

#include <foveate/attention_cpu.h>
#include <foveate/lowering.h>
#include <foveate/recent.h>
#include <foveate/rules.h>
#include <foveate/sparse_attention_formula.h>

#include <algorithm>
#include <string>
#include <unordered_map>

namespace foveate::ops {
namespace {

using kernels::key_tile;
using kernels::query_tile;
static_assert(query_tile == key_tile, "patterns are lowered to square blocks");
constexpr int64_t tile_elements = query_tile * key_tile;

/// Where the pattern shows a tile in part, element by element: bool [tiles,query_tile,key_tile].
Tensor tested(const patterns::Rule& rule, patterns::Tables tables, const std::vector<int64_t>& heads, const std::vector<int64_t>& rows,
              const std::vector<int64_t>& columns, int64_t offset) {
  const Tensor within = at::arange(key_tile, at::kLong);
  const auto first = [](const std::vector<int64_t>& n) { return at::tensor(n, at::kLong).view({-1, 1, 1}); };
  const Tensor i = first(rows) * query_tile + within.view({1, -1, 1}) + offset, j = first(columns) * key_tile + within;
  return rule.test({.h = first(heads), .i = i, .j = j}, tables).expand({-1, query_tile, key_tile}).contiguous();
}

/// Masks that tiles share, told apart by their content: most patterns have a handful.
class Masks {
 public:
  explicit Masks(std::vector<uint8_t>& all) : all_(all) {}
  /// -1 for one that shows everything, -2 for one that shows nothing.
  int32_t find(const uint8_t* mask) {
    const auto shown = std::count(mask, mask + tile_elements, uint8_t{1});
    if (shown == tile_elements) return -1;
    if (shown == 0) return -2;
    const auto [known, added] = known_.try_emplace(std::string(mask, mask + tile_elements), static_cast<int32_t>(known_.size()));
    if (added) all_.insert(all_.end(), mask, mask + tile_elements);
    return known->second;
  }

 private:
  std::vector<uint8_t>& all_;
  std::unordered_map<std::string, int32_t> known_;
};

PatternTiles tiles_of(const patterns::Pattern& pattern, int64_t heads, int64_t N, int64_t M, int64_t offset) {
  const auto rule = patterns::parse(pattern.expression);
  const auto blocks = patterns::lower(pattern, heads, N, M, offset, key_tile);
  std::vector<Tensor> tables;
  for (const auto& t : pattern.tables) tables.push_back(t.to(at::kCPU));
  PatternTiles made{.heads = blocks->heads, .start = {0}, .tiles = {}, .mask = {}, .masks = {}};
  Masks masks(made.masks);
  for (int64_t row = 0; row < blocks->rows(); ++row) {  // tested row by row, so that little is held at a time
    const int64_t begin = blocks->start[static_cast<std::size_t>(row)], end = begin + blocks->count(row);
    std::vector<int64_t> head, query, key;
    for (int64_t e = begin; e < end; ++e) {
      if (blocks->full[static_cast<std::size_t>(e)]) continue;
      head.push_back(row / blocks->query_blocks);
      query.push_back(row % blocks->query_blocks);
      key.push_back(blocks->key_block[static_cast<std::size_t>(e)]);
    }
    const Tensor partial = key.empty() ? Tensor() : tested(*rule, tables, head, query, key, offset);
    const auto* next = key.empty() ? nullptr : static_cast<const uint8_t*>(partial.const_data_ptr());
    for (int64_t e = begin; e < end; ++e) {
      int32_t mask = -1;
      if (!blocks->full[static_cast<std::size_t>(e)]) {
        mask = masks.find(next);
        next += tile_elements;
      }
      if (mask == -2) continue;
      made.tiles.push_back(blocks->key_block[static_cast<std::size_t>(e)]);
      made.mask.push_back(mask);
    }
    made.start.push_back(static_cast<int64_t>(made.tiles.size()));
  }
  return made;
}

AttentionArguments arguments(const Tensor& q, const Tensor& k, const Tensor& v, std::string_view pattern, at::TensorList tables,
                             const optional<Tensor>& key_mask, const optional<Tensor>& mask, const optional<Tensor>& bias, double scale,
                             int64_t offset) {
  static patterns::Recent<PatternTiles> recent(/*most=*/32);
  const int64_t H = q.size(1), N = q.size(2), M = k.size(2);
  const patterns::Pattern whole{std::string(pattern), tables.vec()};
  const auto make = [&] { return std::make_shared<const PatternTiles>(tiles_of(whole, H, N, M, offset)); };
  AttentionArguments c{
      .q = q, .k = k, .v = v, .mask = mask, .key_mask = key_mask, .bias = bias, .offset = offset, .origin = 0, .causal = false, .scale = scale};
  c.pattern = tables.empty() ? recent.get({whole.expression, H, N, M, offset, key_tile}, make) : make();  // what a table holds may change
  return c;
}

bool empty(const Tensor& q, const Tensor& k, const Tensor& v) { return q.numel() == 0 || k.numel() == 0 || v.numel() == 0; }

}  // namespace

std::tuple<Tensor, Tensor> sparse_attention_cpu(const Tensor& q, const Tensor& k, const Tensor& v, std::string_view pattern, at::TensorList tables,
                                                const optional<Tensor>& key_mask, const optional<Tensor>& mask, const optional<Tensor>& bias,
                                                double scale, Size offset) {
  if (empty(q, k, v)) return sparse_attention_formula(q, k, v, pattern, tables, key_mask, mask, bias, scale, offset);
  return engine_forward(arguments(q, k, v, pattern, tables, key_mask, mask, bias, scale, offset.expect_int()));
}

Gradients sparse_attention_backward_cpu(const Backward& call, Tensor q, Tensor k, Tensor v, const std::string& pattern,
                                        const std::vector<Tensor>& tables, optional<Tensor> key_mask, optional<Tensor> mask, optional<Tensor> bias,
                                        double scale, Size offset) {
  const bool more = std::any_of(call.wanted.begin() + 3, call.wanted.end(), [](bool w) { return w; });  // of the bias
  if (more || empty(q, k, v)) return std::nullopt;
  return engine_backward(call, arguments(q, k, v, pattern, tables, key_mask, mask, bias, scale, offset.expect_int()));
}

}  // namespace foveate::ops
