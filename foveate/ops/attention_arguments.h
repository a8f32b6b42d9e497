// Everything that one call of the primitive foveate::_attention takes: what attention and sparse_attention come down to.
#pragma once
#include <foveate/contract.h>

#include <tuple>

namespace foveate::ops {

struct AttentionArguments {
  Tensor q, k, v;              // [B,H,N,D], [B,Hk,M,D], [B,Hk,M,Dv]
  std::vector<Tensor> tables;  // of the pattern
  optional<std::string> pattern;
  optional<Tensor> mask, key_mask, query_mask, bias, slopes, table, rows, row_query, value_rows, dropout_keep, dropout_seed, q_index, k_index;
  Size offset = 0;  // query i stands at key i + offset
  Size origin = 0;
  optional<int64_t> window;
  bool causal = false;
  double scale = 1;
  double dropout = 0;
  optional<double> softcap;

  void fields(auto&& f) {
    f("q", q, "queries");
    f("k", k, "keys");
    f("v", v, "values");
    f("tables", tables, "of the pattern");
    f("pattern", pattern, "an expression; absent: every key is seen");
    f("mask", mask, "bool");
    f("key_mask", key_mask, "bool");
    f("query_mask", query_mask, "bool, by place in line");
    f("bias", bias, "added to scores");
    f("slopes", slopes, "of distance");
    f("table", table, "by distance, added to scores");
    f("rows", rows, "by distance, scored by queries");
    f("row_query", row_query, "what scores rows");
    f("value_rows", value_rows, "by distance, added to values");
    f("dropout_keep", dropout_keep, "bool");
    f("dropout_seed", dropout_seed, "int, of the draw where none is given");
    f("q_index", q_index, "int, which query stands where");
    f("k_index", k_index, "int, which key stands where");
    f("offset", offset, "of queries among keys");
    f("origin", origin, "of tables");
    f("window", window, "keys back");
    f("causal", causal, "hides the future");
    f("scale", scale, "of scores");
    f("dropout", dropout, "probability");
    f("softcap", softcap, "of scaled scores");
  }
};

/// How many queries and keys stand in line.
inline Size queries_of(const AttentionArguments& c) { return c.q_index ? extent(*c.q_index, 2) : extent(c.q, 2); }
inline Size keys_of(const AttentionArguments& c) { return c.k_index ? extent(*c.k_index, 2) : extent(c.k, 2); }

using OutAndLse = std::tuple<Tensor, Tensor>;  // [B,H,N,Dv], [B,H,N]

}  // namespace foveate::ops
