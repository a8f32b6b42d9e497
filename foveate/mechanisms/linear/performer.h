// Performer (FAVOR+): linear attention on phi(x) = exp(W x - |x|^2/2), positive features of softmax, W orthogonal at random.   arXiv 2009.14794
#pragma once
#include <foveate/contract.h>
#include <foveate/feature_attention.h>
#include <foveate/heads.h>
#include <foveate/memory.h>

namespace foveate {

inline constexpr Card performer{.slug = "performer",
                                .title = "Performer",
                                .paper = "2009.14794",
                                .year = 2020,
                                .family = Family::linear,
                                .cost = "O(N m D)",
                                .causality = Causality::strict,
                                .equation = "out_i = phi(q_i) (sum_j phi(k_j) v_j^T) / (phi(q_i) . sum_j phi(k_j)), phi(x) = exp(W x - |x|^2/2)"};

enum class PerformerFeatures {
  positive,    ///< exp(W x - |x|^2/2)
  hyperbolic,  ///< [exp(W x - |x|^2/2), exp(-W x - |x|^2/2)], of lower variance
};
template <> inline constexpr auto names<PerformerFeatures> = std::array<std::string_view, 2>{"positive", "hyperbolic"};

/// What is under the sum, R = phi(q).sum phi(k).
enum class PerformerDenominator {
  guard,        ///< R, but R + 2 s where |R| <= s
  add,          ///< R + s
  add_to_keys,  ///< phi(q).(sum phi(k) + s)
};
template <> inline constexpr auto names<PerformerDenominator> = std::array<std::string_view, 3>{"guard", "add", "add_to_keys"};

namespace detail {
/// The options that function and layer have.
void performer_fields(auto&& f, auto& o) {
  f("features", o.features, "positive (authors' code); hyperbolic: two for each row of W, of lower variance (paper, fast-transformers)");
  f("nb_features", o.nb_features, "rows m of W where it is drawn (authors' JAX code: 256; performer-pytorch: D ln D; fast-transformers: D / 2)");
  layers::draw_fields(f, o);
  f("scale", o.scale, "estimates exp(scale q.k), default 1/sqrt(D) (fast-transformers' softmax_temp; without normalize_data: 1.0)");
  f("stabilizer", o.stabilizer,
    "the maximum that keeps features in range. running: of the exponents of the keys so far; sequence: of W k over all positions, which looks "
    "ahead by eps (authors' code), with hyperbolic features of |x|^2 (fast-transformers' stabilize); none");
  f("eps", o.eps, "added to every feature, under the maximum (authors' code: 1e-6, with the stabilizer sequence; performer-pytorch: 1e-4)");
  f("causal", o.causal, "a query sees no key after it; the last query meets the last key");
  if constexpr (requires { o.renormalize; }) {
    f("renormalize", o.renormalize, "divides by phi(q).sum phi(k); False needs the stabilizer sequence or none");
  }
  f("denominator", o.denominator,
    "guard: adds 2 s where R is within s of 0 (authors' code); add: adds s (fast-transformers); add_to_keys: adds s to every sum of a key's "
    "feature (performer-pytorch, causal), not with the stabilizer running");
  f("denominator_eps", o.denominator_eps, "s (authors' code: eps; fast-transformers and performer-pytorch: 1e-6)");
  layers::memory_fields(f, o);
}
}  // namespace detail

/// The bare function.
struct FOVEATE_API PerformerAttention {
  static constexpr Form form{.card = &performer,
                             .summary = "softmax attention estimated by positive random features",
                             .returns = "[B,H,N,Dv] attended values",
                             .example = R"(q, k, v = torch.randn(3, 2, 4, 64, 8)
out = foveate.performer_attention(q, k, v, projection=foveate.random_projection(2048, 8))
exact = foveate.attention(q, k, v)
assert (out - exact).norm() < 0.5 * exact.norm())"};
  struct Options {
    PerformerFeatures features = PerformerFeatures::positive;
    int64_t nb_features = 256;
    bool orthogonal = true;
    layers::RowNorm row_norm = layers::RowNorm::gaussian;
    layers::Rotation rotation = layers::Rotation::uniform;
    optional<double> scale;
    layers::Stabilizer stabilizer = layers::Stabilizer::running;
    double eps = 0;
    bool causal = false;
    bool renormalize = true;
    PerformerDenominator denominator = PerformerDenominator::guard;
    double denominator_eps = 0;
    Memory memory = Memory::full;
    int64_t chunk = 1024;
    void fields(auto&& f) { detail::performer_fields(f, *this); }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> key_mask, projection;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,Hk,M,D] keys; Hk divides H");
      f("v", v, "[B,Hk,M,Dv] values");
      f("key_mask", key_mask, "bool [B,M] True where a key takes part, in the sums and in the maximum");
      f("projection", projection, "[R,D] the draw W of R = m features; default a new one");
    }
  };
  using Parameters = None;
  using State = layers::FeatureSums;
  static void check(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  /// One draw serves a whole sequence, so that it must be given. Without `causal` the keys join the sums before any query reads them: a
  /// memory is given once, with the first queries, and later queries come with no keys (M = 0).
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// The layer: projections, heads, output projection; its draw is kept until it is drawn anew.
struct FOVEATE_API PerformerMultiheadAttention {
  static constexpr Form form{.card = &performer,
                             .summary = "multi-head attention layer with FAVOR+",
                             .returns = "[B,N,E] attended sequence",
                             .example = R"(layer = foveate.nn.PerformerMultiheadAttention(embed_dim=32, num_heads=4, nb_features=16, causal=True)
x = torch.randn(2, 16, 32)
first, state = layer.step(x[:, :10])
rest, state = layer.step(x[:, 10:], state=state)
torch.testing.assert_close(torch.cat([first, rest], 1), layer(x))
layer.redraw())"};
  struct Options {
    int64_t embed_dim = 0;
    int64_t num_heads = 0;
    optional<int64_t> head_dim, context_dim;
    bool bias = false;
    bool output_bias = true;
    PerformerFeatures features = PerformerFeatures::positive;
    int64_t nb_features = 256;
    bool orthogonal = true;
    layers::RowNorm row_norm = layers::RowNorm::gaussian;
    layers::Rotation rotation = layers::Rotation::uniform;
    optional<double> scale;
    layers::Stabilizer stabilizer = layers::Stabilizer::running;
    double eps = 0;
    bool causal = false;
    PerformerDenominator denominator = PerformerDenominator::guard;
    double denominator_eps = 0;
    Memory memory = Memory::full;
    int64_t chunk = 1024;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E of the sequence", required);
      f("num_heads", num_heads, "heads H", required);
      f("head_dim", head_dim, "width D of a head, default E/H (performer-pytorch: 64)");
      f("context_dim", context_dim, "width of the context, default E");
      f("bias", bias, "whether query, key and value projections have biases (performer-pytorch: False; fast-transformers: True)");
      f("output_bias", output_bias, "whether the output projection has one (performer-pytorch and fast-transformers: True)");
      detail::performer_fields(f, *this);
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
  struct Parameters {
    layers::Linear query, key, value, out;
    layers::DrawnProjection drawn;
    void fields(auto&& f) {
      f("query", query, "query projection");
      f("key", key, "key projection");
      f("value", value, "value projection");
      f("out", out, "output projection");
      f("drawn", drawn, "the draw");
    }
  };
  using State = layers::FeatureSums;
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

}  // namespace foveate
