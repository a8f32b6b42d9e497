// The binary partition of a sequence, and who reads whom in it (BP-Transformer).
//
// Level 0 holds the tokens, level j + 1 one node for each two of level j, up to a single root: node u of level j stands for tokens
// u 2^j <= i < (u + 1) 2^j. Nodes are numbered level by level; those above level 0 are spans.
//
// A span reads the tokens it stands for. A token i reads itself and, on each side, `step` nodes of every level, coarser with distance:
//
//   left of i    p = i - 1 + step:  of level j the nodes  (p >> j) - step - m,  nearest first
//   right of i   p = i + 1 - step:                        (p >> j) + step + m
//
// with m = 0 ... step - 1, except that m = 0 gives way to its nearer or farther half where the other half has been read already:
// m = step of the level below. So m = 0 of level j > 0 is left out, and m = step of level j - 1 read instead, where bit j - 1 of p is 0
// (left) or 1 (right). What a token reads on the left is the same in every longer sequence.
#pragma once
#include <foveate/tensor.h>

namespace foveate::patterns {

struct BinaryPartition {
  int64_t step = 4;             ///< nodes read of each level on each side
  int64_t clip_dist = 4;        ///< levels whose edges have types of their own; higher ones share the last
  bool causal = false;          ///< nothing on the right is read
  bool right_overflow = false;  ///< m = step that lies just behind the end of its level reads the next one's first node (authors' code)

  int64_t types() const { return (2 * step + 1) * (clip_dist + 1); }
  int64_t type_base(int64_t level) const { return (2 * step + 1) * std::min(level, clip_dist); }
};

/// Sizes of the levels; `complete`: of those spans alone whose tokens are all there.
FOVEATE_API std::vector<int64_t> partition_levels(int64_t tokens, bool complete = false);

/// How many spans there are.
FOVEATE_API Size span_count(const Size& tokens);
/// Room for them: the same, but where the number of tokens is symbolic some more, for the sake of an expression that tracing can work with.
FOVEATE_API Size span_room(const Size& tokens);

struct PartitionGraph {
  Tensor edges;     ///< int [3,edges]: source, target and type, sorted by target, type, source
  Tensor node_pos;  ///< int [nodes]: the last token of each node
};
/// The edges one by one, level by level as the paper walks: what attention over a partition is tested against.
FOVEATE_API PartitionGraph partition_graph(int64_t tokens, const BinaryPartition& how);

}  // namespace foveate::patterns
