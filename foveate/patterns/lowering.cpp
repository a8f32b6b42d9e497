#include <foveate/lowering.h>
#include <foveate/recent.h>
#include <foveate/rules.h>

namespace foveate::patterns {
namespace {

/// Appends the key blocks of one row.
void append_row(BlockTable& table, const Seen& seen, int64_t keys) {
  const int64_t block = table.block;
  int64_t next = 0;  // the first key block not yet considered
  std::size_t e = 0;
  for (const auto& [first, last] : seen.some) {
    for (int64_t b = std::max(next, first / block); b * block < last; ++b) {
      const int64_t from = b * block, to = std::min(from + block, keys);
      while (e < seen.every.size() && seen.every[e].last < to) ++e;
      const bool full = e < seen.every.size() && seen.every[e].first <= from;
      table.key_block.push_back(static_cast<int32_t>(b));
      table.full.push_back(full ? 1 : 0);
      next = b + 1;
    }
  }
  table.start.push_back(static_cast<int64_t>(table.key_block.size()));
}

BlockTable lowered(const Rule& rule, Tables tables, int64_t heads, int64_t N, int64_t M, int64_t offset, int64_t block) {
  // Below function transforms, which would wrap every tensor made here.
  const c10::impl::ExcludeDispatchKeyGuard below(
      c10::DispatchKeySet({c10::DispatchKey::FuncTorchDynamicLayerFrontMode, c10::DispatchKey::FuncTorchDynamicLayerBackMode}));
  std::vector<Tensor> here;
  for (const auto& t : tables) here.push_back(t.to(at::kCPU));
  BlockTable table{.heads = check_heads(rule, here, heads),
                   .block = block,
                   .query_blocks = (N + block - 1) / block,
                   .key_blocks = (M + block - 1) / block,
                   .start = {0},
                   .key_block = {},
                   .full = {}};
  const Seer see = rule.lower(here);
  for (int64_t h = 0; h < table.heads; ++h) {
    for (int64_t first = 0; first < N; first += block) {
      append_row(table, see({.head = h, .first = first + offset, .last = std::min(first + block, N) + offset, .keys = M, .grain = block}), M);
    }
  }
  return table;
}

}  // namespace

std::shared_ptr<const BlockTable> lower(const Pattern& pattern, int64_t heads, int64_t N, int64_t M, int64_t offset, int64_t block) {
  const auto rule = parse(pattern.expression);
  const auto make = [&] { return std::make_shared<const BlockTable>(lowered(*rule, pattern.tables, heads, N, M, offset, block)); };
  static Recent<BlockTable> recent(/*most=*/32);
  // What a table holds may change.
  return pattern.tables.empty() ? recent.get({pattern.expression, heads, N, M, offset, block}, make) : make();
}

}  // namespace foveate::patterns
