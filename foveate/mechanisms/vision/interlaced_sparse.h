// Interlaced sparse self-attention: attention among positions a stride apart, then among neighbours in tiles.   arXiv 1907.12273
#pragma once
#include <foveate/contract.h>
#include <foveate/conv_norm_relu.h>

namespace foveate {

inline constexpr Card interlaced_sparse{.slug = "interlaced-sparse",
                                        .title = "Interlaced sparse self-attention",
                                        .paper = "1907.12273",
                                        .year = 2019,
                                        .family = Family::vision,
                                        .cost = "O(N C^2 + N (N / P + P) C), P = dh dw",
                                        .causality = Causality::strict,
                                        .equation =
                                            "out = S_short(S_long(x)); S = relu(BN(W softmax(q k^T / sqrt(Ck)) v)) in groups: "
                                            "(y mod dh, x mod dw), then (y div dh, x div dw)"};

namespace detail {
void interlaced_widths(auto&& f, auto& o) {
  f("in_channels", o.in_channels, "channels Ci of the map (authors' code: 512)");
  f("key_channels", o.key_channels, "width Ck of queries and keys (authors' code: 256)");
  f("value_channels", o.value_channels, "width Cv of values (authors' code: 512)");
  f("out_channels", o.out_channels, "channels Co of the result (authors' code: 512)");
}
void interlaced_norm(auto&& f, auto& o) {
  f("bn_eps", o.bn_eps, "added to the variance (1e-5)");
  f("bn_momentum", o.bn_momentum, "weight of new statistics (0.1)");
  f("negative_slope", o.negative_slope, "of the ReLU (0; the authors' in-place normalisation: 0.01)");
}
}  // namespace detail

/// The attention that both stages are, among all positions.
struct FOVEATE_API InterlacedSelfAttention {
  static constexpr Form form{.card = &interlaced_sparse,
                             .summary = "self-attention of a map with the block's transforms, among all positions",
                             .returns = "[B,Co,H,W] map",
                             .example = R"(layer = foveate.nn.InterlacedSelfAttention(in_channels=8, key_channels=4, value_channels=6, out_channels=5)
assert layer(torch.randn(2, 8, 6, 7)).shape == (2, 5, 6, 7))"};
  struct Options {
    int64_t in_channels = 512, key_channels = 256, value_channels = 512, out_channels = 512;
    double bn_eps = 1e-5;
    double bn_momentum = 0.1;
    double negative_slope = 0;
    void fields(auto&& f) {
      detail::interlaced_widths(f, *this);
      detail::interlaced_norm(f, *this);
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> mask;
    void fields(auto&& f) {
      f("x", x, "[B,C,H,W] map");
      f("mask", mask, "bool [B,H,W] True where a position takes part as key");
    }
  };
  struct Parameters {
    layers::ConvNormRelu query1, query2, key1, key2;
    layers::Convolution value;
    layers::ConvNormRelu out;
    void fields(auto&& f) {
      f("query1", query1, "first map of queries");
      f("query2", query2, "second map of queries");
      f("key1", key1, "first map of keys");
      f("key2", key2, "second map of keys");
      f("value", value, "values, 1x1 without bias");
      f("out", out, "of the attended values");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
};

/// The block: long range, then short range.
struct FOVEATE_API InterlacedSparseBlock {
  static constexpr Form form{
      .card = &interlaced_sparse,
      .summary = "interlaced sparse self-attention of a map",
      .returns = "[B,Co,H,W] map",
      .example = R"(block = foveate.nn.InterlacedSparseBlock(in_channels=8, key_channels=4, value_channels=8, out_channels=8, dh=2, dw=3)
assert block(torch.randn(2, 8, 6, 7)).shape == (2, 8, 6, 7))"};
  struct Options {
    int64_t in_channels = 512, key_channels = 256, value_channels = 512, out_channels = 512;
    int64_t dh = 8, dw = 8;
    bool causal = false;
    bool mask_padding = false;
    double bn_eps = 1e-5;
    double bn_momentum = 0.1;
    double negative_slope = 0;
    void fields(auto&& f) {
      detail::interlaced_widths(f, *this);
      f("dh", dh, "rows of a tile, and the distance of rows that meet in the long range (paper: 8)");
      f("dw", dw, "the same of columns (paper: 8)");
      f("causal", causal, "in raster order no position sees a later one, where statistics are running ones");
      f("mask_padding", mask_padding, "hides the zeros that fill up the map as keys (authors' code: they are seen)");
      detail::interlaced_norm(f, *this);
    }
  };
  using Inputs = InterlacedSelfAttention::Inputs;
  struct Parameters {
    InterlacedSelfAttention::Parameters long_range, short_range;
    void fields(auto&& f) {
      f("long_range", long_range, "attention of the first stage");
      f("short_range", short_range, "attention of the second stage");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
};

/// The module: blocks of several tile sizes side by side, joined with the map.
struct FOVEATE_API InterlacedSparseModule {
  static constexpr Form form{
      .card = &interlaced_sparse,
      .summary = "interlaced sparse self-attention of several tile sizes, joined with the map",
      .returns = "[B,Co,H,W] map",
      .example = R"(module = foveate.nn.InterlacedSparseModule(in_channels=8, key_channels=4, value_channels=8, out_channels=8, factors=[2, 2, 3, 4])
assert module(torch.randn(2, 8, 6, 7)).shape == (2, 8, 6, 7))"};
  struct Options {
    int64_t in_channels = 512, key_channels = 256, value_channels = 512, out_channels = 512;
    std::vector<int64_t> factors = {8, 8};
    double dropout = 0;
    double bn_eps = 1e-5;
    double bn_momentum = 0.1;
    double negative_slope = 0;
    void fields(auto&& f) {
      detail::interlaced_widths(f, *this);
      f("factors", factors, "rows and columns of the tiles of each block, one pair after another (authors' code: one block of 8 by 8)");
      f("dropout", dropout, "probability of dropping a channel of the result in training (authors' network: 0.05)");
      detail::interlaced_norm(f, *this);
    }
  };
  using Inputs = InterlacedSelfAttention::Inputs;
  struct Parameters {
    std::vector<InterlacedSparseBlock::Parameters> stages;
    layers::ConvNormRelu fuse;
    optional<layers::ConvNormRelu> up;
    void fields(auto&& f) {
      f("stages", stages, "the blocks");
      f("fuse", fuse, "joins the map and the blocks' results");
      f("up", up, "of the map, where there are several blocks");
    }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
};

}  // namespace foveate
