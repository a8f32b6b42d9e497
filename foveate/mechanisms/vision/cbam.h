// CBAM: y = x sigmoid(sum_t MLP(pool_t(x))), out = y sigmoid(BN(conv([max_c y, mean_c y]))).   arXiv 1807.06521
// BAM: out = x (1 + sigmoid(channel(x) spatial(x))).                                            arXiv 1807.06514
#pragma once
#include <foveate/contract.h>
#include <foveate/convolution.h>
#include <foveate/linear.h>
#include <foveate/norm.h>

#include <string>

namespace foveate {

inline constexpr Card cbam{.slug = "cbam",
                           .title = "CBAM and BAM",
                           .paper = "1807.06521",
                           .year = 2018,
                           .family = Family::vision,
                           .cost = "O(N C + C^2 / r + N k^2)",
                           .causality = Causality::none,
                           .equation = "y = x sigmoid(sum_t MLP(pool_t(x))), out = y sigmoid(BN(conv([max_c y, mean_c y])))"};

/// Channel gate, then spatial gate.
struct FOVEATE_API CBAM {
  static constexpr Form form{.card = &cbam,
                             .summary = "convolutional block attention module: channel gate, then spatial gate",
                             .returns = "[B,C,H,W] gated map",
                             .example = R"(gate = foveate.nn.CBAM(gate_channels=32, pools="avg+max")
out = gate(torch.randn(2, 32, 7, 9))
assert out.shape == (2, 32, 7, 9))"};
  struct Options {
    int64_t gate_channels = 0;
    int64_t reduction_ratio = 16;
    std::string pools = "avg+max";
    bool no_spatial = false;
    int64_t kernel_size = 7;
    double bn_eps = 1e-5;
    double bn_momentum = 0.01;
    void fields(auto&& f) {
      f("gate_channels", gate_channels, "channels C of the map", required);
      f("reduction_ratio", reduction_ratio, "the small network's inner width is C / r, rounded down (paper: 16)");
      f("pools", pools,
        "what the channel gate pools by, joined with +: avg, max, lp (root of the sum of squares), lse (log-sum-exp) (paper: avg+max)");
      f("no_spatial", no_spatial, "stop after the channel gate");
      f("kernel_size", kernel_size, "taps of the spatial gate's convolution on each axis, odd (paper: 7)");
      f("bn_eps", bn_eps, "added to the variance (1e-5)");
      f("bn_momentum", bn_momentum, "weight of new statistics (authors' code: 0.01)");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> mask;
    void fields(auto&& f) {
      f("x", x, "[B,C,H,W] map");
      f("mask", mask, "bool [B,H,W] True where a position takes part; the others are as if beyond the map's edge, but for statistics in training");
    }
  };
  /// The network that every pooled vector passes: W2 relu(W1 p).
  struct Mlp {
    layers::Linear reduce, restore;
    void fields(auto&& f) {
      f("reduce", reduce, "W1, C to C / r");
      f("restore", restore, "W2, back");
    }
    Tensor operator()(const Tensor& pooled) const { return restore(reduce(pooled).relu()); }
  };
  struct SpatialGate {
    layers::Convolution conv;
    layers::BatchNorm norm;
    void fields(auto&& f) {
      f("conv", conv, "from the maximum and mean over channels to one map, without bias");
      f("norm", norm, "batch normalisation of that map; its gain starts at 0");
    }
  };
  struct Parameters {
    Mlp channel;
    optional<SpatialGate> spatial;
    void fields(auto&& f) {
      f("channel", channel, "channel gate");
      f("spatial", spatial, "spatial gate, absent with no_spatial");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
};

/// Both gates side by side, multiplied, as a bottleneck between stages.
struct FOVEATE_API BAM {
  static constexpr Form form{.card = &cbam,
                             .summary = "bottleneck attention module: channel and spatial gates side by side, multiplied",
                             .returns = "[B,C,H,W] gated map",
                             .example = R"(gate = foveate.nn.BAM(gate_channels=32)
out = gate(torch.randn(2, 32, 9, 5))
assert out.shape == (2, 32, 9, 5))"};
  struct Options {
    int64_t gate_channels = 0;
    int64_t reduction_ratio = 16;
    int64_t num_layers = 1;
    int64_t dilation_conv_num = 2;
    int64_t dilation_val = 4;
    double bn_eps = 1e-5;
    double bn_momentum = 0.1;
    void fields(auto&& f) {
      f("gate_channels", gate_channels, "channels C of the map", required);
      f("reduction_ratio", reduction_ratio, "hidden width is C / r, rounded down (paper: 16)");
      f("num_layers", num_layers, "hidden layers of the channel branch (authors' code: 1)");
      f("dilation_conv_num", dilation_conv_num, "3x3 convolutions of the spatial branch (paper: 2)");
      f("dilation_val", dilation_val, "their dilation (paper: 4)");
      f("bn_eps", bn_eps, "added to the variance (1e-5)");
      f("bn_momentum", bn_momentum, "weight of new statistics (0.1)");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> mask;
    void fields(auto&& f) {
      f("x", x, "[B,C,H,W] map");
      f("mask", mask, "bool [B,H,W] True where a position takes part; the others are as if beyond the map's edge, but for statistics in training");
    }
  };
  struct LinearLayer {
    layers::Linear linear;
    layers::BatchNorm norm;
    void fields(auto&& f) {
      f("linear", linear, "to the hidden width");
      f("norm", norm, "batch normalisation");
    }
  };
  struct ConvolutionLayer {
    layers::Convolution conv;
    layers::BatchNorm norm;
    void fields(auto&& f) {
      f("conv", conv, "to the hidden width");
      f("norm", norm, "batch normalisation");
    }
  };
  struct ChannelBranch {
    std::vector<LinearLayer> hidden;
    layers::Linear out;
    void fields(auto&& f) {
      f("hidden", hidden, "hidden layers on the mean over positions");
      f("out", out, "back to C");
    }
  };
  struct SpatialBranch {
    std::vector<ConvolutionLayer> hidden;
    layers::Convolution out;
    void fields(auto&& f) {
      f("hidden", hidden, "a 1x1 convolution to the hidden width, then the dilated 3x3 ones");
      f("out", out, "1x1 to one map");
    }
  };
  struct Parameters {
    ChannelBranch channel;
    SpatialBranch spatial;
    void fields(auto&& f) {
      f("channel", channel, "channel branch");
      f("spatial", spatial, "spatial branch");
    }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
};

}  // namespace foveate
