// Kronecker attention: a map is read through the means of its rows and columns, out = softmax(q c^T) c, c = [row means, column means].   arXiv
// 2007.08442
#pragma once
#include <foveate/contract.h>
#include <foveate/convolution.h>

namespace foveate {

inline constexpr Card kronecker_attention{.slug = "kronecker-attention",
                                          .title = "Kronecker attention",
                                          .paper = "2007.08442",
                                          .year = 2020,
                                          .family = Family::vision,
                                          .cost = "kv: O(H W (H + W) C); qkv: O(H W C + (H + W)^2 C)",
                                          .causality = Causality::none,
                                          .equation = "out = softmax(q c^T) c, c = [mean_w x, mean_h x]; q = x (kv), or c and an outer sum (qkv)"};

/// Who asks: every position, or the means, whose answers are then added along rows and columns.
enum class KroneckerVariant { kv, qkv };
template <> inline constexpr auto names<KroneckerVariant> = std::array<std::string_view, 2>{"kv", "qkv"};

/// How weights are made of scores.
enum class KroneckerNormalize { softmax, mean };
template <> inline constexpr auto names<KroneckerNormalize> = std::array<std::string_view, 2>{"softmax", "mean"};

namespace detail {
void kronecker_fields(auto&& f, auto& o) {
  f("variant", o.variant, "kv: every position reads the means; qkv: the means read each other, and a position is the sum of its row and its column");
  f("num_heads", o.num_heads, "heads, each with as many channels in a row");
  f("normalize", o.normalize, "softmax over the means, or scores divided by their number");
  f("scale", o.scale, "multiplies q.c (paper and code: 1)");
}
}  // namespace detail

/// The bare operator, without weights.
struct FOVEATE_API KroneckerAttentionOperator {
  static constexpr Form form{.card = &kronecker_attention,
                             .summary = "Kronecker attention of a map, without weights",
                             .returns = "[...] map of the shape of x",
                             .example = R"(x = torch.randn(2, 8, 6, 7)
assert foveate.kronecker_attention_operator(x, num_heads=2).shape == x.shape)"};
  struct Options {
    KroneckerVariant variant = KroneckerVariant::qkv;
    int64_t num_heads = 1;
    KroneckerNormalize normalize = KroneckerNormalize::softmax;
    double scale = 1;
    void fields(auto&& f) { detail::kronecker_fields(f, *this); }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> context;
    void fields(auto&& f) {
      f("x", x, "[...] map [B,C,*S], of one to three dimensions S");
      f("context", context, "[...] map [B,C,*T] whose means are read, default x; for kv only");
    }
  };
  using Parameters = None;
  static void check(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

/// The layer: 1x1 maps around the operator.
struct FOVEATE_API KroneckerAttention {
  static constexpr Form form{.card = &kronecker_attention,
                             .summary = "multi-head Kronecker attention layer for maps of two or three dimensions",
                             .returns = "[...] map of the shape of x",
                             .example = R"(layer = foveate.nn.KroneckerAttention(in_channels=8, num_heads=2, head_dim=4)
assert layer(torch.randn(2, 8, 6, 7)).shape == (2, 8, 6, 7))"};
  struct Options {
    int64_t in_channels = 0;
    KroneckerVariant variant = KroneckerVariant::qkv;
    int64_t num_heads = 8;
    int64_t head_dim = 32;
    KroneckerNormalize normalize = KroneckerNormalize::softmax;
    double scale = 1;
    void fields(auto&& f) {
      f("in_channels", in_channels, "channels C of the map", required);
      detail::kronecker_fields(f, *this);
      f("head_dim", head_dim, "width D of a head (lucidrains: 32)");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> context;
    void fields(auto&& f) {
      f("x", x, "[...] map [B,C,*S], of one to three dimensions S");
      f("context", context, "[...] map [B,C,*T] whose means are read, default x; for kv only");
    }
  };
  struct Parameters {
    layers::Convolution query, key, value, out;  // 1x1 as 1-tap filters of the line of means
    void fields(auto&& f) {
      f("query", query, "C -> H D, 1 tap");
      f("key", key, "C -> H D, 1 tap");
      f("value", value, "C -> H D, 1 tap");
      f("out", out, "H D -> C, 1 tap; in qkv its bias counts once for each dimension of the map, since it comes before the sum");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

}  // namespace foveate
