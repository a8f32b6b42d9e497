// FANet: a ResNet whose first stage strides too, fast attention at each of its four levels, fused from coarse to fine.   arXiv 2007.03815
#pragma once
#include <foveate/fast_attention_seg.h>

namespace foveate {

/// f_1..4 = ResNet(x); smooth_l, up_l = fusion_l(f_l, up_{l+1}), l = 4..1; out = classifier([smooth_3, smooth_1]), coarse maps resized to finer ones.
struct FOVEATE_API FANet {
  static constexpr Form form{.card = &fast_attention_seg,
                             .summary = "FANet for semantic segmentation; step reads the last few frames of a video",
                             .example = R"(net = foveate.nn.FANet(nclass=5, width=4, out_chan=6, head_chan=8, aux_chan=4).eval()
out, *_ = net(torch.randn(1, 3, 64, 128))
assert out.shape == (1, 5, 64, 128))"};
  struct Options {
    int64_t nclass = 0;
    std::vector<int64_t> blocks = {2, 2, 2, 2};
    int64_t width = 64;
    int64_t out_chan = 128;
    int64_t head_chan = 256;
    int64_t aux_chan = 64;
    int64_t qk_dim = 32;
    int64_t frames = 1;
    bool normalize_by_n = false;
    double leaky_slope = 0.01;
    double bn_eps = 1e-5;
    double bn_momentum = 0.1;
    double l2_eps = 1e-12;
    void fields(auto&& f) {
      f("nclass", nclass, "classes", required);
      f("blocks", blocks, "residual blocks of each of the four stages (authors' code: 2, 2, 2, 2, ResNet-18; ResNet-34: 3, 4, 6, 3)");
      f("width", width, "channels of the first stage, doubled by each later one (authors' code: 64)");
      f("out_chan", out_chan, "channels of the smooth maps (authors' code: 128)");
      f("head_chan", head_chan, "inner channels of the classifier (authors' code: 256)");
      f("aux_chan", aux_chan, "inner channels of the two classifiers of training (authors' code: 64)");
      f("qk_dim", qk_dim, "channels of queries and keys (authors' code: 32)");
      f("frames", frames, "frames that step reads, the given one and those before it");
      f("normalize_by_n", normalize_by_n, "divide attention by the number of keys (the paper does, the authors' code does not)");
      f("leaky_slope", leaky_slope, "slope of the leaky ReLU below zero (authors' code: 0.01)");
      f("bn_eps", bn_eps, "added to the variance (1e-5)");
      f("bn_momentum", bn_momentum, "weight of new statistics (0.1)");
      f("l2_eps", l2_eps, "least length that a query or key is divided by (authors' code: 1e-12)");
    }
    /// The fusion module of level l, 0 the finest.
    FastAttentionFusion::Options level(int64_t l) const;
  };
  struct Inputs {
    Tensor x;
    void fields(auto&& f) { f("x", x, "[B,3,H,W] images"); }
  };
  struct Outputs {
    Tensor out, coarsest, coarse;
    void fields(auto&& f) {
      f("out", out, "[B,*,H,W] scores of the nclass classes");
      f("coarsest", coarsest, "[B,*,H,W] the same from the smooth map of level 4, in training; else no channels");
      f("coarse", coarse, "[B,*,H,W] the same from level 3, in training; else no channels");
    }
  };
  /// relu(shortcut(x) + BN(conv(act(BN(conv(x)))))), both 3x3.
  struct Residual {
    FastAttentionConvolution first, second;
    optional<FastAttentionConvolution> shortcut;
    void fields(auto&& f) {
      f("first", first, "3x3, with the stride, then leaky ReLU");
      f("second", second, "3x3");
      f("shortcut", shortcut, "1x1 with the stride, where the block changes size; else x itself");
    }
  };
  struct Stage {
    std::vector<Residual> blocks;
    void fields(auto&& f) { f("blocks", blocks, "residual blocks, the first with stride 2"); }
  };
  struct Classifier {
    FastAttentionConvolution inner;
    layers::Convolution out;
    void fields(auto&& f) {
      f("inner", inner, "3x3, then leaky ReLU");
      f("out", out, "1x1 to the classes, without bias");
    }
  };
  struct Parameters {
    FastAttentionConvolution stem;
    std::vector<Stage> stages;
    std::vector<FastAttentionFusion::Parameters> levels;
    Classifier classifier, coarsest, coarse;
    void fields(auto&& f) {
      f("stem", stem, "7x7 with stride 2, then leaky ReLU and maxima of 3x3 with stride 2");
      f("stages", stages, "stages of the ResNet");
      f("levels", levels, "fusion modules, the finest level first");
      f("classifier", classifier, "of the smooth maps of levels 3 and 1");
      f("coarsest", coarsest, "of the smooth map of level 4, in training");
      f("coarse", coarse, "of the smooth map of level 3, in training");
    }
  };
  struct State {
    FastAttentionVideo::State level_1, level_2, level_3, level_4;
    void fields(auto&& f) {
      f("level_1", level_1, "frames in sight of the finest level");
      f("level_2", level_2, "of level 2");
      f("level_3", level_3, "of level 3");
      f("level_4", level_4, "of the coarsest level");
    }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&, bool training);
  /// One frame.
  static std::pair<Outputs, State> step(const Options&, const Parameters&, const Inputs&, State&&, bool training);
};

}  // namespace foveate
