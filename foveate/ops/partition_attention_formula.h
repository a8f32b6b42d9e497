// One call of partition_attention, and its portable formula.
#pragma once
#include <foveate/binary_partition.h>

namespace foveate::ops {

struct PartitionArguments {
  Tensor q, k, v;
  optional<Tensor> table, lengths, dropout_seed;
  Size tokens = 0, before = 0;
  int64_t step = 0, clip_dist = 0;
  bool causal = false, right_overflow = false, complete = false;
  double scale = 1, dropout = 0;

  void fields(auto&& f) {
    f("q", q, "queries");
    f("k", k, "keys");
    f("v", v, "values");
    f("table", table, "of the types of edges");
    f("lengths", lengths, "int");
    f("dropout_seed", dropout_seed, "int");
    f("tokens", tokens, "tokens");
    f("before", before, "tokens that ask no more");
    f("step", step, "nodes of each level on each side");
    f("clip_dist", clip_dist, "levels with types of their own");
    f("causal", causal, "nothing on the right");
    f("right_overflow", right_overflow, "what lies behind a level");
    f("complete", complete, "spans that have ended");
    f("scale", scale, "of the products");
    f("dropout", dropout, "probability");
  }
};

/// Levels, and what of each asks.
struct AskedLevels {
  std::vector<int64_t> sizes, firsts, asked;
  /// Checks that q and k have rows for them.
  explicit AskedLevels(const PartitionArguments& c);
};

std::tuple<Tensor> partition_attention_formula(const PartitionArguments& c);

}  // namespace foveate::ops
