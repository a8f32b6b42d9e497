// From a pattern to blocks: which key blocks each block of queries attends to, and whether wholly.
#pragma once
#include <foveate/pattern.h>

#include <memory>

namespace foveate::patterns {

/// Key blocks per query block, as compressed rows. Block b of queries holds queries b*block ... ; the last may be short, as may the
/// last of keys. A partial block shows some of its keys to some of its queries (in doubt, none); a full one every key to every query.
struct BlockTable {
  int64_t heads;  ///< 1 where all heads are alike
  int64_t block, query_blocks, key_blocks;
  std::vector<int64_t> start;      ///< [heads*query_blocks + 1]: where the key blocks of query block h*query_blocks + b begin
  std::vector<int32_t> key_block;  ///< ascending in each row
  std::vector<uint8_t> full;       ///< beside key_block: 1 where full, 0 where partial

  int64_t rows() const { return heads * query_blocks; }
  int64_t count(int64_t row) const { return start[static_cast<std::size_t>(row) + 1] - start[static_cast<std::size_t>(row)]; }
};

/// N queries, of which the first stands at position `offset`, before M keys. Never N x M in time or memory, except for the cells of
/// tables. Results of patterns without tables are kept, the latest of them.
FOVEATE_API std::shared_ptr<const BlockTable> lower(const Pattern& pattern, int64_t heads, int64_t N, int64_t M, int64_t offset, int64_t block);

}  // namespace foveate::patterns
