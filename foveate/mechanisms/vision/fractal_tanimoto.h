// FracTAL: gates from a set similarity, out = N(v (FT_channel(q,k) + FT_spatial(q,k)) / 2), q, k, v = sigmoid(N(conv x)).   arXiv 2009.02062
//   FT(p,l) = (T(p,l) + T(1-p,1-l)) / 2;  T(p,l) = mean_d (<p,l> + s) / (2^d (<p,p> + <l,l>) - (2^(d+1) - 1) <p,l> + s)
#pragma once
#include <foveate/contract.h>
#include <foveate/convolution.h>
#include <foveate/norm.h>

namespace foveate {

inline constexpr Card fractal_tanimoto{.slug = "fractal-tanimoto",
                                       .title = "FracTAL",
                                       .paper = "2009.02062",
                                       .year = 2020,
                                       .family = Family::vision,
                                       .cost = "O(H W C)",
                                       .causality = Causality::none,
                                       .equation = "out = N(v (FT_channel(q,k) + FT_spatial(q,k)) / 2), FT the fractal Tanimoto similarity"};

/// How maps are normalised behind convolutions.
enum class FractalNorm { batch, group, instance, layer };
template <> inline constexpr auto names<FractalNorm> = std::array<std::string_view, 4>{"batch", "group", "instance", "layer"};

/// What the bare similarity sums over.
enum class FractalOver { positions, channels, all };
template <> inline constexpr auto names<FractalOver> = std::array<std::string_view, 3>{"positions", "channels", "all"};

/// A normalisation; what it holds depends on its kind.
struct FOVEATE_API FractalNormalisation {
  Tensor weight, bias;                         // [C], or [groups]
  optional<Tensor> running_mean, running_var;  // [C], of batch

  void fields(auto&& f) {
    f("weight", weight, "[*] gain, for each channel; for each group where the kind is group");
    f("bias", bias, "[*] shift, likewise");
    f("running_mean", running_mean, "[*] running mean of the kind batch", buffer);
    f("running_var", running_var, "[*] running variance of the kind batch", buffer);
  }
  struct Plan {
    FractalNorm kind;
    int64_t groups;
  };
  static FractalNormalisation init(const Plan& plan, int64_t channels);
  layers::BatchNorm of_batches() const;
  Tensor operator()(const Tensor& x, const Plan& plan, bool training) const;
};

/// A convolution and its normalisation.
struct FOVEATE_API FractalConvolution {
  layers::Convolution conv;
  FractalNormalisation norm;
  void fields(auto&& f) {
    f("conv", conv, "convolution, same padding");
    f("norm", norm, "its normalisation");
  }
};

namespace detail {
void fractal_fields(auto&& f, auto& o) {
  f("depth", o.depth, "terms of the similarity, each twice as sharp; 0 is 1 (paper: 5)");
  f("num_heads", o.num_heads, "groups of the attention's convolutions; similarities run over all channels (paper: from 4)");
  f("kernel_size", o.kernel_size, "taps of the attention's convolutions on each axis, odd (authors' code: 3)");
  f("norm", o.norm, "batch normalisation (authors' default), or by groups of channels (paper), instance, or layer (over channels)");
  f("norm_groups", o.norm_groups, "groups of channels of the kind group, each with one gain and shift (paper: 4)");
  f("smooth", o.smooth, "s, added to numerator and denominator (1e-5)");
}
}  // namespace detail

/// The bare similarity.
struct FOVEATE_API TanimotoSimilarity {
  static constexpr Form form{.card = &fractal_tanimoto,
                             .summary = "fractal Tanimoto similarity of two maps, over positions, channels or both",
                             .returns = "[...] similarity, [B,C,1,1] over positions, [B,1,H,W] over channels, [B,1,1,1] over all",
                             .example = R"(p = torch.rand(2, 4, 5, 6)
assert torch.allclose(foveate.tanimoto_similarity(p, p), torch.ones(2, 4, 1, 1)))"};
  struct Options {
    FractalOver over = FractalOver::positions;
    int64_t depth = 5;
    double smooth = 1e-5;
    void fields(auto&& f) {
      f("over", over,
        "what is summed over: positions compares channels, channels compares positions, all compares the maps (authors' loss: 1 less this)");
      f("depth", depth, "terms of the similarity, each twice as sharp; 0 is 1 (paper: 5)");
      f("smooth", smooth, "s, added to numerator and denominator (1e-5)");
    }
  };
  struct Inputs {
    Tensor p, l;
    void fields(auto&& f) {
      f("p", p, "[B,C,H,W] values between 0 and 1");
      f("l", l, "[B,C,H,W] values between 0 and 1");
    }
  };
  using Parameters = None;
  static void check(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

/// Relative attention: queries, keys and values of maps of their own; of one map, self-attention.
struct FOVEATE_API FractalAttention {
  static constexpr Form form{.card = &fractal_tanimoto,
                             .summary = "fractal Tanimoto attention of maps, to itself or to others",
                             .returns = "[B,Co,H,W] map",
                             .example = R"(layer = foveate.nn.FractalAttention(channels=8, in_channels=4)
assert layer(torch.randn(2, 4, 6, 7)).shape == (2, 8, 6, 7))"};
  struct Options {
    int64_t channels = 0;
    optional<int64_t> in_channels;
    int64_t depth = 5;
    int64_t num_heads = 1;
    int64_t kernel_size = 3;
    FractalNorm norm = FractalNorm::batch;
    int64_t norm_groups = 4;
    double smooth = 1e-5;
    void fields(auto&& f) {
      f("channels", channels, "channels Co of the result", required);
      f("in_channels", in_channels, "channels C of the maps, default Co");
      detail::fractal_fields(f, *this);
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> key, value;
    void fields(auto&& f) {
      f("x", x, "[B,C,H,W] map of queries");
      f("key", key, "[B,C,H,W] map of keys, default x");
      f("value", value, "[B,C,H,W] map of values, default the map of keys");
    }
  };
  struct Parameters {
    FractalConvolution q, k, v;
    FractalNormalisation out;
    void fields(auto&& f) {
      f("q", q, "queries");
      f("k", k, "keys");
      f("v", v, "values");
      f("out", out, "normalisation of the result");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
};

/// The unit: a residual branch, emphasised by attention, out = (x + R(x)) (1 + gamma attention(x)).
struct FOVEATE_API FractalResidualUnit {
  static constexpr Form form{.card = &fractal_tanimoto,
                             .summary = "FracTAL residual unit",
                             .returns = "[B,C,H,W] map",
                             .example = R"(unit = foveate.nn.FractalResidualUnit(channels=8)
assert unit(torch.randn(2, 8, 6, 7)).shape == (2, 8, 6, 7))"};
  struct Options {
    int64_t channels = 0;
    int64_t groups = 1;
    int64_t depth = 5;
    int64_t num_heads = 1;
    int64_t kernel_size = 3;
    FractalNorm norm = FractalNorm::batch;
    int64_t norm_groups = 4;
    double smooth = 1e-5;
    void fields(auto&& f) {
      f("channels", channels, "channels C of the map", required);
      f("groups", groups, "groups of the residual branch's convolutions (paper: as num_heads)");
      detail::fractal_fields(f, *this);
    }
  };
  struct Inputs {
    Tensor x;
    void fields(auto&& f) { f("x", x, "[B,C,H,W] map"); }
  };
  struct Parameters {
    FractalNormalisation norm1;
    layers::Convolution conv1;
    FractalNormalisation norm2;
    layers::Convolution conv2;
    FractalAttention::Parameters attention;
    Tensor gamma;
    void fields(auto&& f) {
      f("norm1", norm1, "before the first convolution of the residual branch");
      f("conv1", conv1, "3x3, without bias");
      f("norm2", norm2, "before the second");
      f("conv2", conv2, "3x3");
      f("attention", attention, "of the input to itself");
      f("gamma", gamma, "[1] how much attention emphasises, initially 0");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
};

/// Two maps, each emphasised by the other, joined.
struct FOVEATE_API FractalFusion {
  static constexpr Form form{.card = &fractal_tanimoto,
                             .summary = "fusion of two maps by relative attention both ways",
                             .returns = "[B,C,H,W] map",
                             .example = R"(fusion = foveate.nn.FractalFusion(channels=8)
assert fusion(torch.randn(2, 8, 6, 7), torch.randn(2, 8, 6, 7)).shape == (2, 8, 6, 7))"};
  struct Options {
    int64_t channels = 0;
    int64_t depth = 5;
    int64_t num_heads = 1;
    int64_t kernel_size = 3;
    FractalNorm norm = FractalNorm::batch;
    int64_t norm_groups = 4;
    double smooth = 1e-5;
    void fields(auto&& f) {
      f("channels", channels, "channels C of the maps", required);
      detail::fractal_fields(f, *this);
    }
  };
  struct Inputs {
    Tensor x1, x2;
    void fields(auto&& f) {
      f("x1", x1, "[B,C,H,W] map");
      f("x2", x2, "[B,C,H,W] map");
    }
  };
  struct Parameters {
    FractalAttention::Parameters by_second, by_first;
    FractalConvolution fuse;
    Tensor gamma1, gamma2;
    void fields(auto&& f) {
      f("by_second", by_second, "queries of x1, keys and values of x2");
      f("by_first", by_first, "the other way round");
      f("fuse", fuse, "from both maps to one");
      f("gamma1", gamma1, "[1] how much x1 is emphasised, initially 0");
      f("gamma2", gamma2, "[1] how much x2 is emphasised, initially 0");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
};

}  // namespace foveate
