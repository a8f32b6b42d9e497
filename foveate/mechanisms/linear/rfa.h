// Random Feature Attention: out_t = phi(q_t) S_t / (phi(q_t) . z_t), S_t = g_t S_{t-1} + (1 - g_t) phi(k_t) v_t^T, z likewise, phi(x) = sines
// and cosines of W x / |x|, W random; without the gate S sums.   arXiv 2103.02143
#pragma once
#include <foveate/contract.h>
#include <foveate/heads.h>

namespace foveate {

inline constexpr Card rfa{.slug = "rfa",
                          .title = "Random Feature Attention",
                          .paper = "2103.02143",
                          .year = 2021,
                          .family = Family::linear,
                          .cost = "O(N m D)",
                          .causality = Causality::strict,
                          .equation = "out = phi(q) (sum_j phi(k_j) v_j^T) / (phi(q) . sum_j phi(k_j)), phi(x) = [sin, cos](W x / |x|)"};

/// phi of u = W x / |x|, m entries.
enum class RFAFeatures {
  sincos,  ///< sines, then cosines: 2m features of a Gaussian kernel, which on the sphere is exp(q.k / tau^2) up to a factor that cancels
  arccos,  ///< relu: m features of the arc-cosine kernel of order 1
};
template <> inline constexpr auto names<RFAFeatures> = std::array<std::string_view, 2>{"sincos", "arccos"};

/// What stands under phi(q) S, from R = phi(q).z, which may be small or negative.
enum class RFADenominator {
  clamp,      ///< max(R, eps)
  abs_clamp,  ///< max(|R|, eps)
};
template <> inline constexpr auto names<RFADenominator> = std::array<std::string_view, 2>{"clamp", "abs_clamp"};

/// How the rows of W are drawn.
enum class RFADraw {
  gaussian,  ///< independent standard normal
  orf,       ///< Q of a Gaussian m x D matrix, its rows scaled by lengths of Gaussian vectors
};
template <> inline constexpr auto names<RFADraw> = std::array<std::string_view, 2>{"gaussian", "orf"};

namespace detail {
/// The options that function and layer have.
void rfa_fields(auto&& f, auto& o) {
  f("feature_map", o.feature_map, "sincos: Gaussian kernel, 2m features; arccos: arc-cosine kernel, m features");
  f("feature_scale", o.feature_scale, "multiplies the features, default m^(-1/2) (paper); 0.1 whatever m (authors' code)");
  f("norm_eps", o.norm_eps, "added to the lengths that q and k are divided by (paper: 0, authors' code: 1e-3)");
  f("denominator", o.denominator,
    "clamp: max(R, denominator_eps) (authors' code, causal); abs_clamp: max(|R|, denominator_eps) (authors' code, else); R = phi(q).z");
  f("denominator_eps", o.denominator_eps, "least denominator; the paper divides by R itself (authors' code: 1, masked causal form 1e-3)");
}
}  // namespace detail

/// The bare function, gated where a gate is given.
struct FOVEATE_API RandomFeatureAttention {
  static constexpr Form form{.card = &rfa,
                             .summary = "attention through random features of q and k, with an optional gate on the memory",
                             .returns = "[B,H,N,Dv] attended values",
                             .example = R"(q, k, v = torch.randn(3, 2, 4, 16, 8)
gate = torch.rand(2, 4, 16)
W = torch.randn(4, 64, 8)
whole = foveate.random_feature_attention(q, k, v, gate=gate, random_matrices=W, causal=True)
out, state = foveate.random_feature_attention_step(q[:, :, :1], k[:, :, :1], v[:, :, :1], gate=gate[:, :, :1], random_matrices=W, causal=True)
torch.testing.assert_close(out, whole[:, :, :1]))"};
  struct Options {
    bool causal = false;
    int64_t proj_dim = 64;
    double tau = 1;
    RFAFeatures feature_map = RFAFeatures::sincos;
    optional<double> feature_scale;
    double norm_eps = 0;
    RFADenominator denominator = RFADenominator::abs_clamp;
    double denominator_eps = 1e-6;
    RFADraw draw = RFADraw::gaussian;
    void fields(auto&& f) {
      f("causal", causal, "query i sees keys 0 to i, both counted from the start");
      f("proj_dim", proj_dim, "rows m of W where random_matrices is absent (authors' code: 64)");
      f("tau", tau, "temperature, divides W (authors' code: 1)");
      detail::rfa_fields(f, *this);
      f("draw", draw, "where random_matrices is absent. gaussian: independent rows; orf: Q of a Gaussian matrix, rows scaled by chi lengths");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> key_mask, mask, gate, random_matrices, sigma;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,H,M,D] keys");
      f("v", v, "[B,H,M,Dv] values");
      f("key_mask", key_mask, "bool [B,M] True where a key takes part; the others leave the memory as it is");
      f("mask", mask, "bool [...] True where a key takes part, broadcastable to [B,H,N,M]; makes the scores of all pairs, so the cost is quadratic");
      f("gate", gate, "[B,H,M] g in [0,1], how much of the memory each token keeps; needs causal");
      f("random_matrices", random_matrices, "[H,R,D] the draw W of each head, default standard normal or as option draw says");
      f("sigma", sigma, "[H,1,D] learned scale of W, default 1");
    }
  };
  using Parameters = None;
  struct State {
    Tensor S, z, random_matrices;
    void fields(auto&& f) {
      f("S", S, "[B,H,F,Dv] sum of phi(k) v^T so far; float32 for half precision");
      f("z", z, "[B,H,F] sum of phi(k) so far");
      f("random_matrices", random_matrices, "[H,R,D] the draw W, kept for later steps");
    }
  };
  static void check(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  /// Some more queries and keys. Without `causal` the keys join the sums before any query reads them: a memory is given once, with the
  /// first queries, and later queries come with no keys (M = 0).
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// The layer: projections, heads, learned scale of the draw, gate, output projection; of a sequence with itself or with a context.
struct FOVEATE_API RFA {
  static constexpr Form form{.card = &rfa,
                             .summary = "random feature attention layer, with or without gate",
                             .returns = "[B,N,E] attended sequence",
                             .example = R"(layer = foveate.nn.RFA(embed_dim=32, num_heads=4, causal=True, gated=True).eval()
x = torch.randn(2, 16, 32)
first, state = layer.step(x[:, :10])
rest, state = layer.step(x[:, 10:], state=state)
torch.testing.assert_close(torch.cat([first, rest], 1), layer(x), rtol=1e-4, atol=1e-4))"};
  struct Options {
    int64_t embed_dim = 0;
    int64_t num_heads = 0;
    optional<int64_t> context_dim;
    bool causal = false;
    bool gated = false;
    int64_t proj_dim = 64;
    double tau = 1;
    bool reparam_proj = true;
    RFAFeatures feature_map = RFAFeatures::sincos;
    optional<double> feature_scale;
    double norm_eps = 0;
    RFADenominator denominator = RFADenominator::abs_clamp;
    double denominator_eps = 1e-6;
    RFADraw draw = RFADraw::gaussian;
    int64_t pool_size = 500;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E of the sequence", required);
      f("num_heads", num_heads, "heads H, a divisor of E", required);
      f("context_dim", context_dim, "width of the context, default E");
      f("causal", causal, "position i sees positions 0 to i");
      f("gated", gated, "RFA-Gate: each head forgets at a rate that it reads from x (paper); needs causal");
      f("proj_dim", proj_dim, "rows m of W (authors' code: 64)");
      f("tau", tau, "temperature, divides W (authors' code: 1)");
      f("reparam_proj", reparam_proj, "whether a scale sigma of W is learned (authors' code: True)");
      detail::rfa_fields(f, *this);
      f("draw", draw, "gaussian: independent rows; orf: Q of a Gaussian matrix, rows scaled by chi lengths (authors' code has both)");
      f("pool_size", pool_size,
        "draws of W that are kept; in training each call takes some at random, one a head, else the first ones serve (authors' code: 500); "
        "0: drawn at each call");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> context, key_mask, mask, random_matrices;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence that asks");
      f("context", context, "[B,M,*] sequence that is attended to, default x; not with causal");
      f("key_mask", key_mask, "bool [B,*] True where a position of the context takes part; the others leave the memory as it is");
      f("mask", mask, "bool [...] True where a position takes part, broadcastable to [B,H,N,M]; makes the scores of all pairs");
      f("random_matrices", random_matrices, "[*,R,*] the draw W of each head, default from the pool");
    }
  };
  struct Parameters {
    layers::Heads attention;
    optional<layers::Linear> gate;
    optional<Tensor> sigma, pool;
    void fields(auto&& f) {
      f("attention", attention, "projections");
      f("gate", gate, "gate, E to H; present with gated");
      f("sigma", sigma, "[*,1,*] scale of W for each head and coordinate, initially 1; present with reparam_proj");
      f("pool", pool, "[*,*,*] pool_size draws of W, not trained", buffer);
    }
  };
  using State = RandomFeatureAttention::State;
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
  /// As the step of RandomFeatureAttention: without `causal` the context is given once, and is empty (M = 0) in later calls.
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&, bool training);
};

}  // namespace foveate
