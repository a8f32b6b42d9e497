// Linear Transformer: out_i = phi(q_i) (sum_j phi(k_j) v_j^T) / (phi(q_i) . sum_j phi(k_j) + eps), phi = elu + 1.   arXiv 2006.16236
#pragma once
#include <foveate/contract.h>
#include <foveate/feature_map.h>
#include <foveate/heads.h>

namespace foveate {

inline constexpr Card linear_transformer{.slug = "linear-transformer",
                                         .title = "Linear Transformer",
                                         .paper = "2006.16236",
                                         .year = 2020,
                                         .family = Family::linear,
                                         .cost = "O(N D^2)",
                                         .causality = Causality::strict,
                                         .equation = "out_i = phi(q_i) (sum_j phi(k_j) v_j^T) / (phi(q_i) . sum_j phi(k_j) + eps), phi = elu + 1"};

/// The bare function.
struct FOVEATE_API LinearTransformerAttention {
  static constexpr Form form{.card = &linear_transformer,
                             .summary = "linear attention of q, k, v through a feature map",
                             .returns = "[B,H,N,Dv] attended values",
                             .example = R"(q, k, v = torch.randn(3, 2, 4, 16, 8)
whole = foveate.linear_transformer_attention(q, k, v, causal=True)
out, state = foveate.linear_transformer_attention_step(q[:, :, :1], k[:, :, :1], v[:, :, :1], causal=True)
torch.testing.assert_close(out, whole[:, :, :1])
assert state[0].shape == (2, 4, 8, 8))"};
  struct Options {
    bool causal = false;
    layers::FeatureMap feature_map = layers::FeatureMap::elu_plus_one;
    double eps = 1e-6;
    void fields(auto&& f) {
      f("causal", causal, "query i sees keys 0 to i, both counted from the start");
      f("feature_map", feature_map, "phi, elementwise (paper: elu+1)");
      f("eps", eps, "added to the denominator (authors' code: 1e-6)");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,Hk,M,D] keys; Hk divides H");
      f("v", v, "[B,Hk,M,Dv] values");
      f("key_mask", key_mask, "bool [B,M] True where a key takes part");
    }
  };
  using Parameters = None;
  /// The sums over the keys so far.
  struct State {
    Tensor S, z;
    void fields(auto&& f) {
      f("S", S, "[B,Hk,D,Dv] sum of phi(k) v^T so far; float32 for half precision");
      f("z", z, "[B,Hk,D] sum of phi(k) so far");
    }
  };
  static void check(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  /// Some more queries and keys. Without `causal` the keys join the sums before any query reads them: a memory is given once, with the
  /// first queries, and later queries come with no keys (M = 0).
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// The layer: projections, heads, output projection; of a sequence with itself or with a context.
struct FOVEATE_API LinearTransformer {
  static constexpr Form form{.card = &linear_transformer,
                             .summary = "linear attention layer",
                             .returns = "[B,N,E] attended sequence",
                             .example = R"(layer = foveate.nn.LinearTransformer(d_model=32, n_heads=4, causal=True)
x = torch.randn(2, 16, 32)
first, state = layer.step(x[:, :10])
rest, state = layer.step(x[:, 10:], state=state)
torch.testing.assert_close(torch.cat([first, rest], 1), layer(x)))"};
  struct Options {
    int64_t d_model = 0;
    int64_t n_heads = 0;
    optional<int64_t> d_keys, d_values, d_model_keys;
    bool causal = false;
    layers::FeatureMap feature_map = layers::FeatureMap::elu_plus_one;
    double eps = 1e-6;
    void fields(auto&& f) {
      f("d_model", d_model, "width E of the sequence", required);
      f("n_heads", n_heads, "heads H", required);
      f("d_keys", d_keys, "width of a head's queries and keys, default E/H");
      f("d_values", d_values, "width of a head's values, default E/H");
      f("d_model_keys", d_model_keys, "width of the context, default E");
      f("causal", causal, "position i sees positions 0 to i");
      f("feature_map", feature_map, "phi, elementwise (paper: elu+1)");
      f("eps", eps, "added to the denominator (authors' code: 1e-6)");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> context, key_mask;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence that asks");
      f("context", context, "[B,M,*] sequence that is attended to, default x");
      f("key_mask", key_mask, "bool [B,*] True where a position of the context takes part");
    }
  };
  using Parameters = layers::Heads;
  using State = LinearTransformerAttention::State;
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  /// As the step of LinearTransformerAttention: without `causal` the context is given once, and is empty (M = 0) in later calls.
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

}  // namespace foveate
