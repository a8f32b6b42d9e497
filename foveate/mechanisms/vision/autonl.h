// LightNL: a non-local block without embeddings or softmax, out = x + BN(depthwise(f)), f_n = sum_m (theta_n.phi_m) g_m / (H W).   arXiv 2004.01961
#pragma once
#include <foveate/contract.h>
#include <foveate/convolution.h>
#include <foveate/norm.h>

namespace foveate {

inline constexpr Card autonl{.slug = "autonl",
                             .title = "AutoNL (LightNL)",
                             .paper = "2004.01961",
                             .year = 2020,
                             .family = Family::vision,
                             .cost = "O(N C ratio C)",
                             .causality = Causality::none,
                             .equation = "out = x + BN(depthwise(f)), f_n = sum_m (theta_n.phi_m) g_m / (H W); theta, phi the first channels of x"};

/// What sums are divided by.
enum class LightNormalize { hw, w_over_h };
template <> inline constexpr auto names<LightNormalize> = std::array<std::string_view, 2>{"hw", "w_over_h"};

struct FOVEATE_API LightNonLocalBlock {
  static constexpr Form form{.card = &autonl,
                             .summary = "lightweight non-local block for maps",
                             .returns = "[B,C,H,W] map",
                             .example = R"(block = foveate.nn.LightNonLocalBlock(in_channels=8, ratio=0.25, stride=2)
x = torch.randn(2, 8, 6, 7)
assert torch.equal(block(x), x)  # a fresh block is the identity)"};
  struct Options {
    int64_t in_channels = 0;
    double ratio = 1;
    int64_t stride = 1;
    LightNormalize normalize = LightNormalize::hw;
    double bn_eps = 1e-3;
    double bn_momentum = 0.01;
    void fields(auto&& f) {
      f("in_channels", in_channels, "channels C of the map", required);
      f("ratio", ratio, "share of the channels that are compared, C ratio rounded down (AutoNL-S: 0.25)");
      f("stride", stride, "keys and values are every stride-th position along both axes (AutoNL-S: 1 and 2)");
      f("normalize", normalize,
        "hw: sums divided by H W (authors' code); w_over_h: multiplied by W / H (a slip of the PyTorch port; for its weights)");
      f("bn_eps", bn_eps, "added to the variance (authors' code: 1e-3)");
      f("bn_momentum", bn_momentum, "weight of new statistics (authors' code: 0.01)");
    }
  };
  struct Inputs {
    Tensor x;
    void fields(auto&& f) { f("x", x, "[B,C,H,W] map"); }
  };
  struct Parameters {
    layers::Convolution depthwise;
    layers::BatchNorm norm;
    void fields(auto&& f) {
      f("depthwise", depthwise, "3x3 for each channel");
      f("norm", norm, "batch normalisation before the residual; its gain starts at 0");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
};

}  // namespace foveate
