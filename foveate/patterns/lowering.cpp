#include <foveate/lowering.h>
#include <foveate/rules.h>

#include <ATen/functorch/BatchedTensorImpl.h>
#include <ATen/functorch/TensorWrapper.h>

#include <list>
#include <mutex>
#include <tuple>

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

/// The numbers of a table, from inside the wrappers of function transforms.
Tensor unwrapped(Tensor table) {
  while (const auto* wrapper = at::functorch::maybeGetTensorWrapper(table)) table = wrapper->value();
  TORCH_CHECK_VALUE(!at::functorch::isBatchedTensor(table), "pattern: vmap over the tables of a pattern is not possible");
  return table.to(at::kCPU);
}

BlockTable lowered(const Rule& rule, Tables tables, int64_t heads, int64_t N, int64_t M, int64_t offset, int64_t block) {
  // Below function transforms, which would wrap every tensor made here.
  const c10::impl::ExcludeDispatchKeyGuard below(
      c10::DispatchKeySet({c10::DispatchKey::FuncTorchDynamicLayerFrontMode, c10::DispatchKey::FuncTorchDynamicLayerBackMode}));
  std::vector<Tensor> here;
  for (const auto& t : tables) here.push_back(unwrapped(t));
  BlockTable table{.heads = check_heads(rule, here, heads), .block = block, .query_blocks = (N + block - 1) / block,
                   .key_blocks = (M + block - 1) / block, .start = {0}, .key_block = {}, .full = {}};
  const Seer see = rule.lower(here);
  for (int64_t h = 0; h < table.heads; ++h) {
    for (int64_t first = 0; first < N; first += block) {
      append_row(table, see({.head = h, .first = first + offset, .last = std::min(first + block, N) + offset, .keys = M, .grain = block}), M);
    }
  }
  return table;
}

/// The latest tables, up to a number of entries in all.
class Kept {
 public:
  using Key = std::tuple<std::string, int64_t, int64_t, int64_t, int64_t, int64_t>;
  std::shared_ptr<const BlockTable> find(const Key& key) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto one = tables_.begin(); one != tables_.end(); ++one) {
      if (one->first != key) continue;
      tables_.splice(tables_.begin(), tables_, one);
      return one->second;
    }
    return nullptr;
  }
  void keep(Key key, std::shared_ptr<const BlockTable> table) {
    constexpr std::size_t most_tables = 64, most_entries = std::size_t{1} << 22;
    const std::lock_guard<std::mutex> lock(mutex_);
    entries_ += entries(*table);
    tables_.emplace_front(std::move(key), std::move(table));
    while (tables_.size() > most_tables || (entries_ > most_entries && tables_.size() > 1)) {
      entries_ -= entries(*tables_.back().second);
      tables_.pop_back();
    }
  }

 private:
  static std::size_t entries(const BlockTable& table) { return table.key_block.size() + table.start.size(); }
  std::mutex mutex_;
  std::list<std::pair<Key, std::shared_ptr<const BlockTable>>> tables_;
  std::size_t entries_ = 0;
};

}  // namespace

std::shared_ptr<const BlockTable> lower(const Pattern& pattern, int64_t heads, int64_t N, int64_t M, int64_t offset, int64_t block) {
  const auto rule = parse(pattern.expression);
  const auto make = [&] { return std::make_shared<const BlockTable>(lowered(*rule, pattern.tables, heads, N, M, offset, block)); };
  if (!pattern.tables.empty()) return make();  // what a table holds may change
  static Kept kept;
  const Kept::Key key{pattern.expression, heads, N, M, offset, block};
  if (auto known = kept.find(key)) return known;
  auto table = make();
  kept.keep(key, table);
  return table;
}

}  // namespace foveate::patterns
