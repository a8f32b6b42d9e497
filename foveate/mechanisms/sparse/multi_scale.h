// Retina attention of the multi-scale Transformer: every query covers its past once, near keys one by one, farther ones as means over
// s_1, s_2, ... positions: o = softmax([q K_0^T, q K_1^T, ...] scale) [V_0; V_1; ...].  arXiv 2005.00581
//
// No code was published, and the paper leaves the boundaries open. Here, with p = i + 1 positions up to query i, scale k is seen in
//   slots u with  floor_{k+1}(p - c_{k+1}) <= s_k u < floor_k(p - c_k),   c_k = sum of w_l s_{l+1} over l < k,
// where floor_k rounds down to a multiple of s_k (the coarsest scale from 0). Every slot is complete when it is seen.
#pragma once
#include <foveate/contract.h>
#include <foveate/feed_forward.h>
#include <foveate/norm.h>

namespace foveate {

inline constexpr Card multi_scale{
    .slug = "multi-scale",
    .title = "Multi-scale Transformer",
    .paper = "2005.00581",
    .year = 2020,
    .family = Family::sparse,
    .cost = "O(N (sum of w_k s_{k+1} / s_k + N / s_K) D)",
    .causality = Causality::strict,
    .equation = "o = softmax(scale [q K_0^T, q K_1^T, ...]) [V_0; V_1; ...], K_k the means of s_k keys, farther for larger k"};

/// The options of retina attention, shared by attention and model.
void retina_fields(auto& o, auto&& f) {
  f("scales", o.scales, "s_0 = 1 < s_1 < ..., each divides the next: positions of a slot (ours: 1, 4, 16)");
  f("windows", o.windows, "w_k, for each scale but the last: how many slots of the next scale it covers, and the one begun (ours: 4, 4)");
  f("log_count", o.log_count, "adds log s_k to a slot's score: it weighs as its s_k positions would");
}

/// The bare function.
struct FOVEATE_API RetinaAttention {
  static constexpr Form form{.card = &multi_scale,
                             .summary = "causal attention to near keys one by one and to means of farther ones",
                             .returns = "[B,H,N,Dv] attended values",
                             .example = R"(q = k = v = torch.randn(2, 4, 50, 8)
out = foveate.retina_attention(q, k, v, scales=[1, 2, 8], windows=[2, 2])
assert out.shape == (2, 4, 50, 8)
assert torch.allclose(out[:, :, :3], foveate.attention(q, k, v, causal=True)[:, :, :3], atol=1e-5)  # so near all is seen)"};
  struct Options {
    std::vector<int64_t> scales = {1, 4, 16};
    std::vector<int64_t> windows = {4, 4};
    bool log_count = false;
    optional<double> scale;
    void fields(auto&& f) {
      retina_fields(*this, f);
      f("scale", scale, "multiplies q.k, default 1/sqrt(D)");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,Hk,N,D] keys; Hk divides H");
      f("v", v, "[B,Hk,N,Dv] values");
    }
  };
  using Parameters = None;
  struct State {
    std::vector<Tensor> keys_and_values;
    void fields(auto&& f) { f("keys_and_values", keys_and_values, "[B,Hk,M,D] the slots of each scale that are still seen: keys, then values"); }
  };
  static void check(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// h = x + out(attention(norm(x))); h + W2 gelu(W1 norm(h)).
struct FOVEATE_API MultiScaleLayer {
  layers::LayerNorm attention_norm;
  layers::Linear qkv, out;
  layers::LayerNorm feed_forward_norm;
  layers::FeedForward feed_forward;
  void fields(auto&& f) {
    f("attention_norm", attention_norm, "before attention");
    f("qkv", qkv, "queries, keys and values of all heads, stacked");
    f("out", out, "output projection");
    f("feed_forward_norm", feed_forward_norm, "before the feed-forward network");
    f("feed_forward", feed_forward, "W2 gelu(W1 h)");
  }
  static MultiScaleLayer init(int64_t width, int64_t inner);

  /// x [N,B,E], positions first: torch.export folds the batch into a number that depends on the length, not the other way round.
  /// attend takes q, k, v [B,H,N,D] and gives [B,H,N,D].
  template <class Attend> Tensor operator()(const Tensor& x, int64_t heads, const Attend& attend) const {
    const auto parts = qkv(attention_norm(x)).unflatten(-1, {3, heads, -1}).permute({2, 1, 3, 0, 4}).unbind(0);
    const Tensor h = x + out(attend(parts[0], parts[1], parts[2]).permute({2, 0, 1, 3}).flatten(2));
    return h + feed_forward(feed_forward_norm(h), layers::Activation::gelu);
  }
};

/// Refuses impossible scales.
FOVEATE_API void check_multi_scales(const char* form, const std::vector<int64_t>& scales);

}  // namespace foveate
