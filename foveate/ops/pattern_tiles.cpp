#include <foveate/pattern_tiles.h>

#include "kernels/softmax.h"

#include <foveate/lowering.h>
#include <foveate/recent.h>
#include <foveate/rules.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <sstream>
#include <string>
#include <unordered_map>

namespace foveate::ops {
namespace {

using kernels::key_tile;
using kernels::query_tile;
static_assert(query_tile == key_tile, "patterns are lowered to square blocks");
/// Where the pattern shows a tile in part, element by element: bool [tiles,height,key_tile].
Tensor tested(const patterns::Rule& rule, patterns::Tables tables, const std::vector<int64_t>& heads, const std::vector<int64_t>& rows,
              const std::vector<int64_t>& columns, int64_t height, int64_t offset) {
  const auto first = [](const std::vector<int64_t>& n) { return at::tensor(n, at::kLong).view({-1, 1, 1}); };
  const Tensor i = first(rows) * query_tile + at::arange(height, at::kLong).view({1, -1, 1}) + offset;
  const Tensor j = first(columns) * key_tile + at::arange(key_tile, at::kLong);
  return rule.test({.h = first(heads), .i = i, .j = j}, tables).expand({-1, height, key_tile}).contiguous();
}

/// Masks that tiles share, told apart by their content: most patterns have a handful.
class Masks {
 public:
  Masks(std::vector<uint8_t>& all, int64_t elements) : all_(all), elements_(elements) {}
  /// -1 for one that shows everything, -2 for one that shows nothing.
  int32_t find(const uint8_t* mask) {
    const auto shown = std::count(mask, mask + elements_, uint8_t{1});
    if (shown == elements_) return -1;
    if (shown == 0) return -2;
    const auto [known, added] = known_.try_emplace(std::string(mask, mask + elements_), static_cast<int32_t>(known_.size()));
    if (added) all_.insert(all_.end(), mask, mask + elements_);
    return known->second;
  }

 private:
  std::vector<uint8_t>& all_;
  int64_t elements_;
  std::unordered_map<std::string, int32_t> known_;
};

PatternTiles lowered(const patterns::Pattern& pattern, int64_t heads, int64_t N, int64_t M, int64_t offset) {
  const auto rule = patterns::parse(pattern.expression);
  const auto blocks = patterns::lower(pattern, heads, N, M, offset, key_tile);
  std::vector<Tensor> tables;
  for (const auto& t : pattern.tables) tables.push_back(t.to(at::kCPU));
  PatternTiles made{.heads = blocks->heads, .start = {0}, .tiles = {}, .mask = {}, .height = std::min(N, query_tile), .masks = {}, .chunks = {}};
  Masks masks(made.masks, made.height * key_tile);
  for (int64_t row = 0; row < blocks->rows(); ++row) {  // tested row by row, so that little is held at a time
    const int64_t begin = blocks->start[static_cast<std::size_t>(row)], end = begin + blocks->count(row);
    std::vector<int64_t> head, query, key;
    for (int64_t e = begin; e < end; ++e) {
      if (blocks->full[static_cast<std::size_t>(e)]) continue;
      head.push_back(row / blocks->query_blocks);
      query.push_back(row % blocks->query_blocks);
      key.push_back(blocks->key_block[static_cast<std::size_t>(e)]);
    }
    const Tensor partial = key.empty() ? Tensor() : tested(*rule, tables, head, query, key, made.height, offset);
    const auto* next = key.empty() ? nullptr : static_cast<const uint8_t*>(partial.const_data_ptr());
    for (int64_t e = begin; e < end; ++e) {
      int32_t mask = -1;
      if (!blocks->full[static_cast<std::size_t>(e)]) {
        mask = masks.find(next);
        next += made.height * key_tile;
      }
      if (mask == -2) continue;
      made.tiles.push_back(blocks->key_block[static_cast<std::size_t>(e)]);
      made.mask.push_back(mask);
    }
    made.start.push_back(static_cast<int64_t>(made.tiles.size()));
  }
  for (auto row = made.masks.begin(); row != made.masks.end(); row += key_tile) {
    uint8_t seen = 0;
    for (int64_t c = 0; c < key_tile; ++c) seen |= static_cast<uint8_t>(row[c] << (c / kernels::chunk_keys));
    made.chunks.push_back(seen);
  }
  return made;
}

/// What a table holds, in few characters: two sums of 64 bits, each of its numbers mixed with its place.
std::string digest(const Tensor& table) {
  const Tensor here = table.to(at::kCPU).contiguous();
  const auto* bytes = static_cast<const uint8_t*>(here.const_data_ptr());
  uint64_t a = 0x9e3779b97f4a7c15, b = 0xc2b2ae3d27d4eb4f;
  for (std::size_t at = 0; at < here.nbytes(); at += sizeof(uint64_t)) {
    uint64_t word = 0;
    std::memcpy(&word, bytes + at, std::min(sizeof word, here.nbytes() - at));
    a = (std::rotl(a, 29) ^ word) * 0xff51afd7ed558ccd;
    b = (std::rotl(b, 23) + word) * 0x94d049bb133111eb ^ b >> 31;
  }
  return c10::str(here.scalar_type(), here.sizes(), ":", a, ":", b);
}

}  // namespace

std::shared_ptr<const PatternTiles> pattern_tiles(const patterns::Pattern& pattern, int64_t heads, int64_t N, int64_t M, int64_t offset) {
  static patterns::Recent<PatternTiles> recent(/*most=*/32);
  const auto make = [&] { return std::make_shared<const PatternTiles>(lowered(pattern, heads, N, M, offset)); };
  std::ostringstream name;
  name << pattern.expression;
  for (const Tensor& table : pattern.tables) name << ';' << digest(table);  // by what it holds, which may change
  return recent.get({name.str(), heads, N, M, offset, key_tile}, make);
}

}  // namespace foveate::ops
