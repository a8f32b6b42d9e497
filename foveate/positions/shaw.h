// Shaw's relative positions: s_ij = scale q_i.(k_j + a_{j-i}), out_i = sum_j p_ij (v_j + b_{j-i}), distances clipped to c.   arXiv 1803.02155
#pragma once
#include <foveate/relative_position.h>

namespace foveate {

namespace positions {

/// key_rows [2c+1,D] or [H,2c+1,D] for the distances -c..c, value_rows [...,2c+1,Dv]: what a distance adds to keys and values.
FOVEATE_API ops::ScoreBias shaw(const Tensor& key_rows, const optional<Tensor>& value_rows = {});

}  // namespace positions

struct FOVEATE_API ShawAttention {
  static constexpr Form form{.card = &relative_position,
                             .summary = "attention whose keys and values depend on clipped distance (Shaw)",
                             .returns = "[B,H,N,Dv] attended values",
                             .example = R"(attend = foveate.nn.ShawAttention(head_dim=8, max_distance=4, causal=True)
q = k = v = torch.randn(2, 4, 16, 8)
assert attend(q, k, v).shape == (2, 4, 16, 8) and attend.rel_key.shape == (9, 8))"};
  struct Options {
    int64_t head_dim = 0;
    optional<int64_t> value_dim;
    int64_t max_distance = 16;
    bool values = true;
    optional<int64_t> table_heads;
    bool causal = false;
    optional<double> scale;
    void fields(auto&& f) {
      f("head_dim", head_dim, "width D of a head", required);
      f("value_dim", value_dim, "width Dv of a head's values, default D");
      f("max_distance", max_distance, "clipping distance c; farther keys share the last row (paper: 16)");
      f("values", values, "whether values depend on distance too (paper: yes)");
      f("table_heads", table_heads, "H for tables of each head's own, default one table for all heads (paper: shared)");
      f("causal", causal, "a query sees no key after it; the last query meets the last key");
      f("scale", scale, "multiplies q.k and its position term, default 1/sqrt(D)");
    }
  };
  using Inputs = RelativeInputs;
  struct Parameters {
    Tensor rel_key;
    optional<Tensor> rel_value;
    void fields(auto&& f) {
      f("rel_key", rel_key, "[...,*,D] added to a key, a row for each distance -c..c");
      f("rel_value", rel_value, "[...,*,Dv] added to a value, likewise");
    }
  };
  using State = layers::KVCache;
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

}  // namespace foveate
