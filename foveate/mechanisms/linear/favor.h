// FAVOR: out_i = phi(q_i) (sum_j phi(k_j) v_j^T) / (phi(q_i) . sum_j phi(k_j)), phi(x) = f(W x), W orthogonal at random.   arXiv 2006.03555
#pragma once
#include <foveate/contract.h>
#include <foveate/feature_attention.h>
#include <foveate/heads.h>
#include <foveate/memory.h>

namespace foveate {

inline constexpr Card favor{
    .slug = "favor",
    .title = "FAVOR",
    .paper = "2006.03555",
    .year = 2020,
    .family = Family::linear,
    .cost = "O(N D^2 log D)",
    .causality = Causality::strict,
    .equation = "out_i = phi(q_i) (sum_j phi(k_j) v_j^T) / (phi(q_i) . sum_j phi(k_j)), phi(x) = f(W x), W orthogonal at random"};

enum class FavorFeatures {
  generalized,  ///< f(W x) + epsilon: attention with a kernel of its own
  sincos,       ///< [cos(W x), sin(W x)] exp(|x|^2/2) / sqrt(m): an estimate of softmax
  cos_phase,    ///< cos(W x + b) exp(|x|^2/2) sqrt(2/m): the same, as the paper writes it
};
template <> inline constexpr auto names<FavorFeatures> = std::array<std::string_view, 3>{"generalized", "sincos", "cos_phase"};

namespace detail {
/// The options that function and layer have.
void favor_fields(auto&& f, auto& o) {
  f("features", o.features,
    "generalized: f(W x); sincos: cosines and sines, 2m features that estimate softmax (authors' code); cos_phase: m cosines with random phases "
    "(paper)");
  f("kernel_fn", o.kernel_fn, "f of generalized features, elementwise (authors' code: relu)");
  f("kernel_epsilon", o.kernel_epsilon, "added to generalized features (authors' code: 1e-3)");
  f("nb_features", o.nb_features,
    "rows m of W where it is drawn; default 256, and with generalized features no W: f(x) (authors' code). The paper takes D log D");
  layers::draw_fields(f, o);
  f("divide_by_root", o.divide_by_root, "generalized features f(W x / sqrt(m)) (authors' TensorFlow code; their JAX code: False)");
  f("normalize_data", o.normalize_data, "divides q and k by D^(1/4); default True for the features of softmax, else False (authors' code)");
  f("stabilizer", o.stabilizer,
    "the maximum of |x|^2/2 that keeps features of softmax in range: running, over the keys so far; sequence, of queries and of keys over all "
    "positions (authors' code); none. The results are equal up to numerical_stabilizer");
  f("causal", o.causal, "a query sees no key after it; the last query meets the last key");
  if constexpr (requires { o.renormalize; }) {
    f("renormalize", o.renormalize, "divides by phi(q).sum phi(k) (authors' code: True); False needs the stabilizer sequence or none");
  }
  f("numerical_stabilizer", o.numerical_stabilizer,
    "s: a denominator within s of 0 gets 2 s more; default 1e-6 for the features of softmax, else 0 (authors' code)");
  layers::memory_fields(f, o);
}
}  // namespace detail

/// The bare function.
struct FOVEATE_API FavorAttention {
  static constexpr Form form{.card = &favor,
                             .summary = "attention through generalized or trigonometric random features",
                             .returns = "[B,H,N,Dv] attended values",
                             .example = R"(q, k, v = 0.5 * torch.randn(3, 2, 4, 16, 8)
W = foveate.random_projection(4096, 8)
out = foveate.favor_attention(q, k, v, projection=W, features="sincos")
exact = foveate.attention(q, k, v)
assert (out - exact).norm() < 0.2 * exact.norm())"};
  struct Options {
    FavorFeatures features = FavorFeatures::generalized;
    layers::FeatureMap kernel_fn = layers::FeatureMap::relu;
    double kernel_epsilon = 1e-3;
    optional<int64_t> nb_features;
    bool orthogonal = true;
    layers::RowNorm row_norm = layers::RowNorm::gaussian;
    layers::Rotation rotation = layers::Rotation::uniform;
    bool divide_by_root = false;
    optional<bool> normalize_data;
    layers::Stabilizer stabilizer = layers::Stabilizer::running;
    bool causal = false;
    bool renormalize = true;
    optional<double> numerical_stabilizer;
    Memory memory = Memory::full;
    int64_t chunk = 1024;
    void fields(auto&& f) { detail::favor_fields(f, *this); }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> key_mask, projection, phase;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,Hk,M,D] keys; Hk divides H");
      f("v", v, "[B,Hk,M,Dv] values");
      f("key_mask", key_mask, "bool [B,M] True where a key takes part");
      f("projection", projection, "[R,D] the draw W of R = m features; default a new one");
      f("phase", phase, "[R] the draw of the phases of cos_phase; default a new one, uniform in [0, 2 pi)");
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
struct FOVEATE_API FavorMultiheadAttention {
  static constexpr Form form{.card = &favor,
                             .summary = "multi-head attention layer with FAVOR",
                             .returns = "[B,N,E] attended sequence",
                             .example = R"(layer = foveate.nn.FavorMultiheadAttention(embed_dim=32, num_heads=4, nb_features=16, causal=True)
x = torch.randn(2, 16, 32)
first, state = layer.step(x[:, :10])
rest, state = layer.step(x[:, 10:], state=state)
torch.testing.assert_close(torch.cat([first, rest], 1), layer(x))
layer.redraw())"};
  struct Options {
    int64_t embed_dim = 0;
    int64_t num_heads = 0;
    optional<int64_t> head_dim, context_dim;
    bool bias = true;
    FavorFeatures features = FavorFeatures::generalized;
    layers::FeatureMap kernel_fn = layers::FeatureMap::relu;
    double kernel_epsilon = 1e-3;
    optional<int64_t> nb_features;
    bool orthogonal = true;
    layers::RowNorm row_norm = layers::RowNorm::gaussian;
    layers::Rotation rotation = layers::Rotation::uniform;
    bool divide_by_root = false;
    optional<bool> normalize_data;
    layers::Stabilizer stabilizer = layers::Stabilizer::running;
    bool causal = false;
    optional<double> numerical_stabilizer;
    Memory memory = Memory::full;
    int64_t chunk = 1024;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E of the sequence", required);
      f("num_heads", num_heads, "heads H", required);
      f("head_dim", head_dim, "width D of a head, default E/H");
      f("context_dim", context_dim, "width of the context, default E");
      f("bias", bias, "whether the projections have biases");
      detail::favor_fields(f, *this);
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
    layers::Drawn drawn;
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
