// Fast-weight programmer: S_t = S_{t-1} + phi(k_t) (beta_t (v_t - S_{t-1}^T phi(k_t)))^T, out_t = S_t^T phi(q_t): linear attention whose
// writes correct what the memory holds; phi is elu + 1, DPFP or FAVOR+.   arXiv 2102.11174
#pragma once
#include <foveate/contract.h>
#include <foveate/linear.h>
#include <foveate/norm.h>

namespace foveate {

inline constexpr Card fast_weight{.slug = "fast-weight",
                                  .title = "Fast-weight programmer: DPFP and the delta rule",
                                  .paper = "2102.11174",
                                  .year = 2021,
                                  .family = Family::linear,
                                  .cost = "O(N m D)",
                                  .causality = Causality::strict,
                                  .equation = "S_t = S_{t-1} + phi(k_t) (beta_t (v_t - S_{t-1}^T phi(k_t)))^T, out_t = S_t^T phi(q_t)"};

/// What a token writes for its key.
enum class FastWeightUpdate {
  sum,    ///< its value, beside what is there: linear attention
  delta,  ///< beta times what the value differs from what is there
};
template <> inline constexpr auto names<FastWeightUpdate> = std::array<std::string_view, 2>{"sum", "delta"};

enum class FastWeightFeatures { elu_plus_one, dpfp, favor_plus };
template <> inline constexpr auto names<FastWeightFeatures> = std::array<std::string_view, 3>{"elu+1", "dpfp", "favor+"};

/// Which reads of the memory are divided by z.phi, z the sum of phi(k).
enum class FastWeightNorm { none, query, both };
template <> inline constexpr auto names<FastWeightNorm> = std::array<std::string_view, 3>{"none", "query", "both"};

namespace detail {
/// The options that function and layer have.
void fast_weight_fields(auto&& f, auto& o) {
  f("update", o.update, "delta: a token corrects what the memory holds for its key; sum: it adds its value (linear attention)");
  f("feature_map", o.feature_map, "phi: elu+1, D features; dpfp, 2 D nu; favor+, 2m random ones");
  f("nu", o.nu, "of dpfp: how many rotations of [relu(x), relu(-x)] it is multiplied by (authors' layer: 2)");
  f("m", o.m, "of favor+: columns of the projection where it is absent (authors' code: 256)");
  if constexpr (requires { o.redraw; }) {
    f("redraw", o.redraw, "of favor+: a new projection at each call in training (authors' code: True)");
  }
  f("kernel_eps", o.kernel_eps, "of favor+: added to the features (authors' code: 1e-4)");
  f("sum_norm", o.sum_norm, "divide features by their sum, default with the delta rule only (paper)");
  f("attention_norm", o.attention_norm,
    "query: divide what a query reads by z.phi(q) + eps, z the sum of phi(k); both: what the delta rule removes likewise (with sum as query)");
  f("eps", o.eps, "of attention_norm (authors' code: 1e-5)");
}
}  // namespace detail

/// The bare function.
struct FOVEATE_API FastWeightAttention {
  static constexpr Form form{.card = &fast_weight,
                             .summary = "fast-weight memory written and read by q, k, v: sum or delta rule",
                             .returns = "[B,H,N,Dv] what the memory gives",
                             .example = R"(q, k, v = torch.randn(3, 2, 4, 16, 8)
beta = torch.rand(2, 4, 16)
whole = foveate.fast_weight_attention(q, k, v, beta, feature_map="dpfp", nu=2)
out, state = foveate.fast_weight_attention_step(q[:, :, :1], k[:, :, :1], v[:, :, :1], beta[:, :, :1], feature_map="dpfp", nu=2)
torch.testing.assert_close(out, whole[:, :, :1])
assert state[0].shape == (2, 4, 32, 8))"};
  struct Options {
    FastWeightUpdate update = FastWeightUpdate::delta;
    FastWeightFeatures feature_map = FastWeightFeatures::dpfp;
    int64_t nu = 2;
    int64_t m = 256;
    double kernel_eps = 1e-4;
    optional<bool> sum_norm;
    FastWeightNorm attention_norm = FastWeightNorm::none;
    double eps = 1e-5;
    double output_scale = 1;
    bool causal = true;
    void fields(auto&& f) {
      detail::fast_weight_fields(f, *this);
      f("output_scale", output_scale, "multiplies the output (paper: 1)");
      f("causal", causal, "query i reads the memory after token i, N = M; else all queries read it after the last key");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> beta, key_mask, projection;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,H,M,D] keys");
      f("v", v, "[B,H,M,Dv] values");
      f("beta", beta, "[B,H,M] write strength of each token in [0,1]; for the delta rule, which needs it");
      f("key_mask", key_mask, "bool [B,M] True where a token writes; the others leave the memory as it is");
      f("projection", projection, "[D,R] the draw of favor+, default orthogonal blocks of columns as long as Gaussian ones");
    }
  };
  using Parameters = None;
  struct State {
    Tensor S, z, projection;
    void fields(auto&& f) {
      f("S", S, "[B,H,F,Dv] the memory; float32 for half precision");
      f("z", z, "[B,H,F] sum of phi(k)");
      f("projection", projection, "[*,*] the draw of favor+, kept for later steps; empty for other features");
    }
  };
  static void check(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  /// Some more queries and keys. Without `causal` the keys are written before any query reads; later queries may come with no keys (M = 0).
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// The layer: one projection to queries, keys, values and write strengths, the memory, output projection, residual, LayerNorm.
struct FOVEATE_API FastWeightLayer {
  static constexpr Form form{.card = &fast_weight,
                             .summary = "fast-weight layer of the language model: projections, memory, residual, LayerNorm",
                             .returns = "[B,N,E] sequence",
                             .example = R"(layer = foveate.nn.FastWeightLayer(d_model=32, n_head=4, d_head=8).eval()
x = torch.randn(2, 16, 32)
first, state = layer.step(x[:, :10])
rest, state = layer.step(x[:, 10:], state=state)
torch.testing.assert_close(torch.cat([first, rest], 1), layer(x), rtol=1e-4, atol=1e-4))"};
  struct Options {
    int64_t d_model = 0;
    int64_t n_head = 0;
    optional<int64_t> d_head;
    FastWeightUpdate update = FastWeightUpdate::delta;
    FastWeightFeatures feature_map = FastWeightFeatures::dpfp;
    int64_t nu = 2;
    int64_t m = 256;
    bool redraw = true;
    double kernel_eps = 1e-4;
    optional<bool> sum_norm;
    FastWeightNorm attention_norm = FastWeightNorm::none;
    double eps = 1e-5;
    optional<double> output_scale;
    bool pre_lnorm = false;
    double layer_norm_eps = 1e-5;
    double dropout = 0;
    void fields(auto&& f) {
      f("d_model", d_model, "width E of the sequence", required);
      f("n_head", n_head, "heads H", required);
      f("d_head", d_head, "width d of a head, default E/H");
      detail::fast_weight_fields(f, *this);
      f("output_scale", output_scale, "multiplies what the memory gives, default d^(-1/2) (authors' code; paper: 1)");
      f("pre_lnorm", pre_lnorm, "LayerNorm first, and the residual is the normalised input (authors' code); else last");
      f("layer_norm_eps", layer_norm_eps, "of the LayerNorm (1e-5)");
      f("dropout", dropout, "probability of dropping an entry before the residual, in training or where dropout_keep is given");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> key_mask, dropout_keep;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence");
      f("key_mask", key_mask, "bool [B,N] True where a token writes; the others leave the memory as it is");
      f("dropout_keep", dropout_keep, "bool [B,N,E] the draw of dropout: True where an entry is kept");
    }
  };
  struct Parameters {
    layers::Linear qkvb, out;
    layers::LayerNorm norm;
    optional<Tensor> projection;
    void fields(auto&& f) {
      f("qkvb", qkvb, "to each head's query, key, value and, with the delta rule, write strength, in this order; without bias");
      f("out", out, "output projection, without bias");
      f("norm", norm, "LayerNorm");
      f("projection", projection, "[*,*] d x m draw of favor+, not trained; present with it", buffer);
    }
  };
  using State = FastWeightAttention::State;
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&, bool training);
};

}  // namespace foveate
