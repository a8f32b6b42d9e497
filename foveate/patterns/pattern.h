// Patterns: who attends to whom, as data.
//
// A pattern is a rule on coordinates, or several joined by & | ~. The coordinates are the position i of a query among the keys (the
// query's index + offset; by default the last query meets the last key), the position j of a key, and the head h. A rule knows no
// length, so one pattern serves every length, and a sequence that arrives piece by piece.
//
//   using namespace foveate::patterns;
//   const auto pattern = (sliding_window(128, 0) | strided(64)) & causal();
//
// It is kept as a compact expression, "and(or(sliding_window(128,0),strided(64)),causal())", and the tables that the expression
// names, "dense(#0)": that is how a pattern crosses the boundary of an operator. rules.h gives expressions their meaning,
// lowering.h turns them into tables of blocks.
#pragma once
#include <ATen/core/Generator.h>
#include <foveate/tensor.h>

#include <string>

namespace foveate::patterns {

struct Pattern {
  std::string expression;
  std::vector<Tensor> tables = {};
};

FOVEATE_API Pattern operator&(const Pattern& a, const Pattern& b);
FOVEATE_API Pattern operator|(const Pattern& a, const Pattern& b);
FOVEATE_API Pattern operator~(const Pattern& a);

/// i - left <= j <= i + right
FOVEATE_API Pattern sliding_window(int64_t left, int64_t right);
/// j <= i
FOVEATE_API Pattern causal();
/// i - j is a multiple of `stride`, before and after i
FOVEATE_API Pattern strided(int64_t stride);
/// The last `columns` keys of every `stride`: j mod stride >= stride - columns (the summary cells of the Sparse Transformer)
FOVEATE_API Pattern fixed(int64_t stride, int64_t columns);
/// A window of `left` steps back and `right` steps ahead, each of `dilation` positions
FOVEATE_API Pattern dilated(int64_t left, int64_t right, int64_t dilation);
/// i and j lie in the same run of `size` positions
FOVEATE_API Pattern block_diagonal(int64_t size);
/// From `left` positions before the run of `size` positions in which i lies to `right` positions behind it
FOVEATE_API Pattern block_window(int64_t size, int64_t left, int64_t right);
/// Keys of which each stands for `step` positions: step j + first <= i, so first = step - 1 shows those that are complete at i
FOVEATE_API Pattern staircase(int64_t step, int64_t first);

/// Keys first <= j < last, for every query
FOVEATE_API Pattern keys(int64_t first, int64_t last);
/// Queries first <= i < last, which see every key
FOVEATE_API Pattern queries(int64_t first, int64_t last);
/// The same for positions given one by one, int [P]
FOVEATE_API Pattern keys(const Tensor& positions);
FOVEATE_API Pattern queries(const Tensor& positions);
/// Tokens that see all and are seen by all: the first `count`, or those at `positions`, int [P]
FOVEATE_API Pattern global_tokens(int64_t count);
FOVEATE_API Pattern global_tokens(const Tensor& positions);

/// Every key, in heads first, first + step, first + 2 step, ... only: what gives each head a pattern of its own
FOVEATE_API Pattern heads(int64_t first, int64_t step);

/// The pattern on positions counted from `by` on; what stands before `by` neither sees nor is seen
FOVEATE_API Pattern shifted(const Pattern& pattern, int64_t by);

/// table int [H or 1, query blocks, r]: the key blocks that each query block sees; numbers that name no block are passed over
FOVEATE_API Pattern random_blocks(int64_t block, const Tensor& table);
/// A table for random_blocks: `count` different key blocks, drawn uniformly, for each query block of each head
FOVEATE_API Tensor draw_blocks(int64_t heads, Size query_blocks, Size key_blocks, int64_t count, optional<at::Generator> generator = {},
                               at::TensorOptions options = {});
/// layout bool or int [H or 1, query blocks, key blocks]
FOVEATE_API Pattern from_blocks(const Tensor& layout, int64_t block);
/// The layout [heads,T,T] of a pattern of blocks, for N tokens: what the first of a block sees of the first of another
FOVEATE_API Tensor to_blocks(const Pattern& pattern, int64_t heads, const Size& N, int64_t block, at::Device device);
/// mask bool [N,M] or [H,N,M]; its last row is the query that meets its last key, so row r stands at position r + M - N
FOVEATE_API Pattern from_dense(const Tensor& mask);

}  // namespace foveate::patterns
