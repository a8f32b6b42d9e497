// Criss-cross attention: a position attends to its row and its column, itself once, several times with the same weights.   arXiv 1811.11721
#pragma once
#include <foveate/contract.h>
#include <foveate/conv_norm_relu.h>

namespace foveate {

inline constexpr Card ccnet{.slug = "ccnet",
                            .title = "CCNet",
                            .paper = "1811.11721",
                            .year = 2018,
                            .family = Family::vision,
                            .cost = "O(R N (H + W) C)",
                            .causality = Causality::none,
                            .equation = "R times: x = gamma sum_u softmax_u(q.k_u) v_u + x, u over the position's row and column"};

/// The bare function: attention along every axis of a map.
struct FOVEATE_API CrissCross {
  static constexpr Form form{.card = &ccnet,
                             .summary = "attention of each position to those that differ from it along one axis at most",
                             .returns = "[...] attended values, a map of the channels of v",
                             .example = R"(q, k, v = torch.randn(2, 4, 6, 7), torch.randn(2, 4, 6, 7), torch.randn(2, 8, 6, 7)
assert foveate.criss_cross(q, k, v).shape == (2, 8, 6, 7))"};
  struct Options {
    double scale = 1;
    void fields(auto&& f) { f("scale", scale, "multiplies q.k (paper: 1)"); }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> mask;
    void fields(auto&& f) {
      f("q", q, "[...] queries, a map [B,C,*S] of one to three dimensions S");
      f("k", k, "[...] keys, of the shape of q");
      f("v", v, "[...] values [B,Cv,*S]");
      f("mask", mask, "bool [...] [B,*S], True where a position is seen");
    }
  };
  using Parameters = None;
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

/// The module: 1x1 maps, criss-cross attention, residual, repeated.
struct FOVEATE_API CrissCrossAttention {
  static constexpr Form form{.card = &ccnet,
                             .summary = "recurrent criss-cross attention for maps of two or three dimensions",
                             .returns = "[...] map of the shape of x",
                             .example = R"(layer = foveate.nn.CrissCrossAttention(channels=16)
x = torch.randn(2, 16, 6, 7)
assert torch.equal(layer(x), x)  # gamma starts at 0)"};
  struct Options {
    int64_t channels = 512;
    optional<int64_t> qk_channels;
    int64_t recurrence = 2;
    int64_t dimension = 2;
    void fields(auto&& f) {
      f("channels", channels, "channels C of the map");
      f("qk_channels", qk_channels, "width of queries and keys (authors' code: C / 8, rounded down)");
      f("recurrence", recurrence, "how often it is applied; two connect every pair of positions of a plane, three of a volume (paper: 2)");
      f("dimension", dimension, "spatial dimensions of the map: 2 or 3");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> mask;
    void fields(auto&& f) {
      f("x", x, "[...] map [B,C,H,W] or [B,C,T,H,W]");
      f("mask", mask, "bool [...] [B,*S], True where a position is seen");
    }
  };
  struct Parameters {
    layers::Convolution query, key, value;
    Tensor gamma;
    void fields(auto&& f) {
      f("query", query, "C to the width of queries, 1x1");
      f("key", key, "C to the width of keys, 1x1");
      f("value", value, "C to C, 1x1");
      f("gamma", gamma, "[1] weight of the attention beside the residual, initially 0");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

/// The head of a segmentation network: narrower maps, criss-cross attention, joined with what came in.
struct FOVEATE_API RCCA {
  static constexpr Form form{.card = &ccnet,
                             .summary = "segmentation head around recurrent criss-cross attention",
                             .returns = "[B,K,H,W] logits of classes",
                             .example = R"(head = foveate.nn.RCCA(in_channels=32, out_channels=16, num_classes=5)
assert head(torch.randn(2, 32, 6, 7)).shape == (2, 5, 6, 7))"};
  struct Options {
    int64_t in_channels = 2048;
    optional<int64_t> inter_channels;
    int64_t out_channels = 512;
    int64_t num_classes = 19;
    int64_t recurrence = 2;
    double dropout = 0.1;
    double bn_eps = 1e-5;
    double bn_momentum = 0.1;
    double negative_slope = 0.01;
    void fields(auto&& f) {
      f("in_channels", in_channels, "channels C of the map (authors' code: 2048)");
      f("inter_channels", inter_channels, "channels that attend, 8 or more (authors' code: C / 4)");
      f("out_channels", out_channels, "channels before the classifier (authors' code: 512)");
      f("num_classes", num_classes, "classes K (Cityscapes: 19)");
      f("recurrence", recurrence, "how often attention is applied (paper: 2)");
      f("dropout", dropout, "probability of dropping a channel before the classifier, in training (authors' code: 0.1)");
      f("bn_eps", bn_eps, "added to the variance (1e-5)");
      f("bn_momentum", bn_momentum, "weight of new statistics (0.1)");
      f("negative_slope", negative_slope, "of the ReLU behind normalisations (authors' code: 0.01)");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> mask;
    void fields(auto&& f) {
      f("x", x, "[B,C,H,W] map");
      f("mask", mask, "bool [B,H,W] True where a position is seen");
    }
  };
  struct Parameters {
    layers::ConvNormRelu narrow;
    CrissCrossAttention::Parameters attention;
    layers::ConvNormRelu attended, joined;
    layers::Convolution classifier;
    void fields(auto&& f) {
      f("narrow", narrow, "3x3, to the channels that attend");
      f("attention", attention, "criss-cross attention");
      f("attended", attended, "3x3, of the attended map");
      f("joined", joined, "3x3, of the map and the attended one");
      f("classifier", classifier, "1x1");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
};

}  // namespace foveate
