// TaLK convolution: out_t = 1/K sum of x over [t - a_t^l L, t + a_t^r R], K = L + R + 1, a = sigmoid(W x + b): windows that tokens choose.
// arXiv 2002.03184
#pragma once
#include <foveate/contract.h>
#include <foveate/feed_forward.h>
#include <foveate/heads.h>
#include <foveate/norm.h>

namespace foveate {

inline constexpr Card talk_convolution{.slug = "talk-convolution",
                                       .title = "TaLK convolution",
                                       .paper = "2002.03184",
                                       .year = 2020,
                                       .family = Family::aggregate,
                                       .cost = "O(N C)",
                                       .causality = Causality::strict,
                                       .equation = "out_t = 1/K sum of x over [t - a_t^l L, t + a_t^r R], K = L + R + 1, a = sigmoid(W x + b)"};

/// By what the sum over a window is divided.
enum class WindowDivisor { maximum, length, one };
template <> inline constexpr auto names<WindowDivisor> = std::array<std::string_view, 3>{"maximum", "length", "one"};

namespace detail {
/// The options that all forms have.
void window_fields(auto&& f, auto& o) {
  f("max_left", o.max_left, "tokens L that an offset of 1 reaches to the left (paper: 1 to 15, more in later layers; 63 on WikiText-103)", required);
  f("max_right", o.max_right, "tokens R that an offset of 1 reaches to the right, default L, with causal 0");
  f("causal", o.causal, "windows end at their own token");
  f("divisor", o.divisor,
    "maximum: L + R + 1 (paper); length: the length of the window, cut at the ends of the sequence (unstable in training, say the authors); one: a "
    "plain sum");
}
}  // namespace detail

/// The bare function: windows are given.
struct FOVEATE_API WindowSum {
  static constexpr Form form{.card = &talk_convolution,
                             .summary = "sum over a window of given, real-valued ends about each token",
                             .returns = "[B,N,C] sequence",
                             .example = R"(x, left, right = torch.ones(1, 9, 4), torch.full((1, 9, 2), 0.75), torch.full((1, 9, 2), 0.5)
out = foveate.window_sum(x, left, right, max_left=2, max_right=3, divisor="one")
assert torch.allclose(out[0, 4], torch.tensor(1 + 0.75 * 2 + 0.5 * 3)))"};
  struct Options {
    int64_t max_left = 0;
    optional<int64_t> max_right;
    bool causal = false;
    WindowDivisor divisor = WindowDivisor::maximum;
    void fields(auto&& f) { detail::window_fields(f, *this); }
  };
  struct Inputs {
    Tensor x, offset_left;
    optional<Tensor> offset_right, key_mask;
    void fields(auto&& f) {
      f("x", x, "[B,N,C] sequence");
      f("offset_left", offset_left, "[B,N,H] share of L, at most 1, that each head's window reaches to the left; H divides C");
      f("offset_right", offset_right, "[B,N,H] share of R that it reaches to the right; not with causal");
      f("key_mask", key_mask, "bool [B,N] True where a token counts; the others are zeros in every window");
    }
  };
  using Parameters = None;
  struct State {
    Tensor recent;
    void fields(auto&& f) { f("recent", recent, "[B,*,C] the last tokens, as many as a window reaches"); }
  };
  static void check(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// The convolution: each token chooses a window for each head.
struct FOVEATE_API TalkConvolution {
  static constexpr Form form{.card = &talk_convolution,
                             .summary = "sum over a window whose ends each token chooses",
                             .returns = "[B,N,C] sequence",
                             .example = R"(conv = foveate.nn.TalkConvolution(hid_dim=16, num_heads=4, max_left=7, causal=True)
x = torch.randn(2, 30, 16)
first, state = conv.step(x[:, :20])
rest, state = conv.step(x[:, 20:], state=state)
torch.testing.assert_close(torch.cat([first, rest], 1), conv(x)))"};
  struct Options {
    int64_t hid_dim = 0;
    int64_t num_heads = 8;
    int64_t max_left = 0;
    optional<int64_t> max_right;
    bool causal = false;
    WindowDivisor divisor = WindowDivisor::maximum;
    double offsets_dropout = 0;
    void fields(auto&& f) {
      f("hid_dim", hid_dim, "width C of the sequence", required);
      f("num_heads", num_heads, "heads H, a divisor of C, each with windows of its own (paper: 8; 4 on IWSLT, 16 in the big model)");
      detail::window_fields(f, *this);
      f("offsets_dropout", offsets_dropout,
        "probability that an end of a window falls back to its own token, in training or where offset_keep is given; the others reach "
        "1 / (1 - probability) as far (authors' code: 0.1)");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> key_mask, offset_keep;
    void fields(auto&& f) {
      f("x", x, "[B,N,C] sequence");
      f("key_mask", key_mask, "bool [B,N] True where a token counts; the others are zeros, and choose their windows as zeros do");
      f("offset_keep", offset_keep,
        "bool [B,N,*] the draw of offsets_dropout, True where an offset is kept: H for the left ends, then H for the right");
    }
  };
  struct Parameters {
    layers::Linear offsets;
    void fields(auto&& f) { f("offsets", offsets, "to the offsets of the left ends, then, unless causal, of the right ends"); }
  };
  using State = WindowSum::State;
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&, bool training);
};

/// The layer of the Transformer: the convolution in place of self-attention, between projections, and a feed-forward network.
struct FOVEATE_API TalkConvolutionLayer {
  static constexpr Form form{.card = &talk_convolution,
                             .summary = "encoder or decoder layer with a TaLK convolution in place of self-attention",
                             .returns = "[B,N,E] sequence",
                             .example = R"(layer = foveate.nn.TalkConvolutionLayer(embed_dim=16, ffn_dim=32, num_heads=4, max_left=3)
out = layer(torch.randn(2, 30, 16))
assert out.shape == (2, 30, 16))"};
  struct Options {
    int64_t embed_dim = 512;
    optional<int64_t> conv_dim;
    int64_t ffn_dim = 2048;
    int64_t num_heads = 8;
    int64_t max_left = 0;
    optional<int64_t> max_right;
    bool causal = false;
    WindowDivisor divisor = WindowDivisor::maximum;
    double offsets_dropout = 0;
    bool glu = true;
    bool normalize_before = false;
    bool encoder_attention = false;
    optional<int64_t> attention_heads, context_dim;
    double input_dropout = 0;
    double dropout = 0;
    double activation_dropout = 0;
    double attention_dropout = 0;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E of the model (paper: 512)");
      f("conv_dim", conv_dim, "width C of the convolution, default E");
      f("ffn_dim", ffn_dim, "inner width of the feed-forward network (paper: 2048)");
      f("num_heads", num_heads, "heads H of the convolution, a divisor of C (paper: 8; 4 on IWSLT, 16 in the big model)");
      detail::window_fields(f, *this);
      f("offsets_dropout", offsets_dropout, "see TalkConvolution (authors' code: 0.1)");
      f("glu", glu, "the first projection goes to 2C, of which one half gates the other (paper: yes, but for the encoder on IWSLT)");
      f("normalize_before", normalize_before, "LayerNorm before each part; else after its residual sum (paper: after)");
      f("encoder_attention", encoder_attention, "a decoder's attention to the context stands between convolution and feed-forward network");
      f("attention_heads", attention_heads, "heads of that attention, default H");
      f("context_dim", context_dim, "width of the context, default E");
      f("input_dropout", input_dropout, "probability of dropping an entry before the first projection, in training or where input_keep is given");
      f("dropout", dropout, "probability of dropping an entry before a residual sum, in training or where draws are given (authors' code: 0.1)");
      f("activation_dropout", activation_dropout, "the same of the inner entries of the feed-forward network");
      f("attention_dropout", attention_dropout, "probability of dropping a weight of the attention, in training or where attention_seed is given");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> key_mask, context, context_mask, offset_keep, input_keep, conv_keep, attention_keep, attention_seed, activation_keep, ffn_keep;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence");
      f("key_mask", key_mask, "bool [B,N] True where a token counts; the others are zeros for the convolution");
      f("context", context, "[B,*,*] sequence that encoder_attention attends to");
      f("context_mask", context_mask, "bool [B,*] True where a token of the context takes part");
      f("offset_keep", offset_keep, "bool [B,N,*] the draw of offsets_dropout");
      f("input_keep", input_keep, "bool [B,N,E] the draw of input_dropout");
      f("conv_keep", conv_keep, "bool [B,N,E] the draw of dropout behind the convolution");
      f("attention_keep", attention_keep, "bool [B,N,E] the draw of dropout behind the attention");
      f("attention_seed", attention_seed, "int [] seed of the draw of attention_dropout");
      f("activation_keep", activation_keep, "bool [B,N,*] the draw of activation_dropout");
      f("ffn_keep", ffn_keep, "bool [B,N,E] the draw of dropout behind the feed-forward network");
    }
  };
  struct Parameters {
    layers::Linear linear1;
    TalkConvolution::Parameters conv;
    layers::Linear linear2;
    layers::LayerNorm conv_norm;
    optional<layers::Heads> attention;
    optional<layers::LayerNorm> attention_norm;
    layers::FeedForward feed_forward;
    layers::LayerNorm ffn_norm;
    void fields(auto&& f) {
      f("linear1", linear1, "to the convolution's width, with glu twice that");
      f("conv", conv, "the convolution");
      f("linear2", linear2, "back to E");
      f("conv_norm", conv_norm, "LayerNorm of the convolution");
      f("attention", attention, "attention to the context; present with encoder_attention");
      f("attention_norm", attention_norm, "its LayerNorm");
      f("feed_forward", feed_forward, "feed-forward network, swish between");
      f("ffn_norm", ffn_norm, "its LayerNorm");
    }
  };
  using State = WindowSum::State;
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&, bool training);
};

}  // namespace foveate
