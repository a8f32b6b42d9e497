// A pattern as the softmax engine reads it: the key tiles that each query tile sees, and masks for those it sees in part.
#pragma once
#include <foveate/pattern.h>

#include <memory>

namespace foveate::ops {

struct PatternTiles {
  int64_t heads;                     ///< 1 where all heads are alike
  std::vector<int64_t> start;        ///< [heads * query tiles + 1]
  std::vector<int32_t> tiles, mask;  ///< beside each other; mask -1: seen whole
  int64_t height;                    ///< rows of a mask: query_tile, or fewer where there are fewer queries
  std::vector<uint8_t> masks;        ///< [masks,height,key_tile]
  std::vector<uint8_t> chunks;       ///< [masks,height]: bit c is set where some of the keys [16 c, 16 c + 16) are seen
};

/// N queries, the first at position `offset`, before M keys. Recent ones are kept.
std::shared_ptr<const PatternTiles> pattern_tiles(const patterns::Pattern& pattern, int64_t heads, int64_t N, int64_t M, int64_t offset);

}  // namespace foveate::ops
