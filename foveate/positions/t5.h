// T5's relative positions: s_ij = q_i.k_j + table[bucket(j - i), h]; near distances have buckets of their own, far ones share.   arXiv 1910.10683
#pragma once
#include <foveate/relative_position.h>

namespace foveate {

namespace positions {

struct T5Buckets {
  bool bidirectional = true;  ///< half of the buckets for keys after the query; else those all share bucket 0
  int64_t buckets = 32;
  int64_t max_distance = 128;  ///< from here on every distance shares the last bucket
};

/// int [...] relative positions (key minus query) -> int [...] buckets.
FOVEATE_API Tensor t5_buckets(const Tensor& relative, const T5Buckets& o);

/// bias_table [buckets,H], expanded over the distances that buckets tell apart, however long the sequences.
FOVEATE_API ops::ScoreBias t5(const Tensor& bias_table, const T5Buckets& o);

}  // namespace positions

struct FOVEATE_API T5Attention {
  static constexpr Form form{.card = &relative_position,
                             .summary = "attention with a learned bias for each bucket of distances (T5)",
                             .returns = "[B,H,N,Dv] attended values",
                             .example = R"(attend = foveate.nn.T5Attention(num_heads=4, buckets=16)
q = k = v = torch.randn(2, 4, 20, 8)
assert attend(q, k, v).shape == (2, 4, 20, 8)
assert torch.ops.foveate.t5_buckets(torch.tensor([-200, -1, 0, 1])).tolist() == [15, 1, 0, 17])"};
  struct Options {
    int64_t num_heads = 0;
    int64_t buckets = 32;
    int64_t max_distance = 128;
    bool bidirectional = true;
    bool causal = false;
    double scale = 1.0;
    int64_t model_dim = 512;
    void fields(auto&& f) {
      f("num_heads", num_heads, "heads H", required);
      f("buckets", buckets, "buckets of distances (paper: 32)");
      f("max_distance", max_distance, "distances from here on share a bucket (paper: 128)");
      f("bidirectional", bidirectional, "half of the buckets for keys after the query (T5's encoder); False: those share bucket 0 (decoder)");
      f("causal", causal, "a query sees no key after it; the last query meets the last key");
      f("scale", scale, "multiplies q.k, not the bias (T5: 1, the initial values carry 1/sqrt(D))");
      f("model_dim", model_dim, "width of the model, for the initial values N(0, model_dim^-0.5) alone");
    }
  };
  using Inputs = RelativeInputs;
  struct Parameters {
    Tensor bias_table;
    void fields(auto&& f) { f("bias_table", bias_table, "[*,H] added to the score of each bucket's distances"); }
  };
  using State = layers::KVCache;
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

}  // namespace foveate
