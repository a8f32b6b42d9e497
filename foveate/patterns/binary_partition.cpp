#include <foveate/binary_partition.h>
#include <torch/library.h>

#include <algorithm>
#include <array>

namespace foveate::patterns {
namespace {

using Edge = std::array<int64_t, 3>;  // target, type, source

/// The nodes that token i reads, but for itself.
void walk(int64_t i, const std::vector<int64_t>& sizes, const BinaryPartition& how, std::vector<Edge>& edges) {
  int64_t left = i - 1, right = i + 1, start = 0, start_below = 0;  // where levels start among the nodes
  bool left_half = false, right_half = false;                       // of the next node only one child is left to read
  for (int64_t level = 0; level < static_cast<int64_t>(sizes.size()); ++level) {
    const auto at = static_cast<std::size_t>(level);
    const int64_t base = how.type_base(level);
    for (int64_t m = 0; m < how.step; ++m, ++right, --left) {
      if (!how.causal && right < sizes[at]) {
        const int64_t child = 2 * right + 1;
        if (!right_half) edges.push_back({i, base + 2 * (m + 1), start + right});
        else if (how.right_overflow || child < sizes[at - 1]) edges.push_back({i, base + 2 * (m + 1), start_below + child});
        right_half = false;
      }
      if (left >= 0) {
        edges.push_back({i, base + 2 * m + 1, left_half ? start_below + 2 * left : start + left});
        left_half = false;
      }
    }
    left_half = left_half || (left & 1) == 0;
    right_half = right_half || (right & 1) == 1;
    left >>= 1;
    right >>= 1;
    start_below = start;
    start += sizes[at];
  }
}

std::tuple<Tensor, Tensor> public_graph(int64_t tokens, int64_t step, int64_t clip_dist, bool causal, bool right_overflow) {
  auto [edges, node_pos] = partition_graph(tokens, {.step = step, .clip_dist = clip_dist, .causal = causal, .right_overflow = right_overflow});
  return {std::move(edges), std::move(node_pos)};
}

}  // namespace

std::vector<int64_t> partition_levels(int64_t tokens, bool complete) {
  std::vector<int64_t> sizes{tokens};
  while (sizes.back() > 1) sizes.push_back((sizes.back() + (complete ? 0 : 1)) / 2);
  return sizes;
}

constexpr int64_t most_levels = 24;  // over a symbolic number of tokens: up to 16 million

Size span_room(const Size& tokens) { return tokens.maybe_as_int() ? span_count(tokens) : tokens + most_levels; }

Size span_count(const Size& tokens) {
  if (const auto known = tokens.maybe_as_int()) {
    int64_t count = 0;
    for (const int64_t size : partition_levels(*known)) count += size;
    return count - *known;
  }
  Size count = 0, below = tokens - 1;  // level j > 0 is there where (N - 1) >> (j - 1) is not 0, and has ((N - 1) >> j) + 1 nodes
  for (int64_t level = 1; level < most_levels; ++level) {
    count += below.min(1);
    below = (tokens - 1) / (int64_t{1} << level);
    count += below;
  }
  return count;
}

PartitionGraph partition_graph(int64_t tokens, const BinaryPartition& how) {
  TORCH_CHECK_VALUE(tokens >= 0 && how.step > 0 && how.clip_dist >= 0,
                    "partition_graph: tokens and clip_dist must not be negative, and step be positive, got ", tokens, ", ", how.clip_dist, " and ",
                    how.step);
  const auto sizes = partition_levels(tokens);
  std::vector<Edge> edges;
  std::vector<int64_t> node_pos;
  for (int64_t i = 0; i < tokens; ++i) {
    edges.push_back({i, 0, i});
    walk(i, sizes, how, edges);
    node_pos.push_back(i);
  }
  int64_t node = tokens;
  for (int64_t level = 1; level < static_cast<int64_t>(sizes.size()); ++level) {
    for (int64_t u = 0; u < sizes[static_cast<std::size_t>(level)]; ++u, ++node) {
      const int64_t end = std::min((u + 1) << level, tokens);
      for (int64_t i = u << level; i < end; ++i) edges.push_back({node, how.type_base(level), i});
      node_pos.push_back(end - 1);
    }
  }
  std::sort(edges.begin(), edges.end());
  Tensor table = at::empty({3, static_cast<int64_t>(edges.size())}, at::kLong);
  auto to = table.accessor<int64_t, 2>();
  for (std::size_t e = 0; e < edges.size(); ++e) {
    const auto& [target, type, source] = edges[e];
    const auto column = static_cast<int64_t>(e);
    to[0][column] = source;
    to[1][column] = target;
    to[2][column] = type;
  }
  return {.edges = table, .node_pos = at::tensor(node_pos, at::kLong)};
}

TORCH_LIBRARY_FRAGMENT(foveate, m) {
  m.def("partition_graph(int tokens, int step=4, int clip_dist=4, bool causal=False, bool right_overflow=False) -> (Tensor edges, Tensor node_pos)",
        &public_graph);
}

}  // namespace foveate::patterns
