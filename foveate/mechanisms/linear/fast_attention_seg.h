// Fast attention (FANet): out = q' (k'^T v), q' and k' of unit length: cosine similarity without softmax or normaliser.   arXiv 2007.03815
#pragma once
#include <foveate/contract.h>
#include <foveate/convolution.h>
#include <foveate/norm.h>

namespace foveate {

inline constexpr Card fast_attention_seg{.slug = "fast-attention-seg",
                                         .title = "Fast Attention (FANet)",
                                         .paper = "2007.03815",
                                         .year = 2020,
                                         .family = Family::linear,
                                         .cost = "O(N D^2)",
                                         .causality = Causality::strict,
                                         .equation = "out = (Q / |Q|) ((K / |K|)^T V)"};

/// The bare function.
struct FOVEATE_API FastAttention {
  static constexpr Form form{.card = &fast_attention_seg,
                             .summary = "cosine-similarity attention of q, k, v without softmax",
                             .returns = "[B,H,N,Dv] attended values",
                             .example = R"(q, k, v = torch.randn(3, 2, 4, 16, 8)
out = foveate.fast_attention(q, k, v)
unit = torch.nn.functional.normalize
torch.testing.assert_close(out, unit(q, dim=-1) @ unit(k, dim=-1).transpose(-1, -2) @ v, rtol=1e-4, atol=1e-5))"};
  struct Options {
    bool normalize_by_n = false;
    double l2_eps = 1e-12;
    bool causal = false;
    void fields(auto&& f) {
      f("normalize_by_n", normalize_by_n, "divide by the number of keys that take part (the paper does, the authors' code does not)");
      f("l2_eps", l2_eps, "least length that a query or key is divided by (authors' code: 1e-12)");
      f("causal", causal, "an extension, the paper has no such form: query i sees keys 0 to i");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,Hk,M,D] keys; Hk divides H");
      f("v", v, "[B,Hk,M,Dv] values");
      f("key_mask", key_mask, "bool [B,M] True where a key takes part");
    }
  };
  using Parameters = None;
  struct State {
    Tensor S, count;
    void fields(auto&& f) {
      f("S", S, "[B,Hk,D,Dv] sum of k' v^T so far; float32 for half precision");
      f("count", count, "[B] number of keys so far");
    }
  };
  static void check(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  /// Some more queries and keys. Without `causal` the keys join the sum before any query reads it.
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// Frames of a video: the queries of a frame read the keys of the last few frames. Only the D x Dv sums of past frames are kept.
struct FOVEATE_API FastAttentionVideo {
  static constexpr Form form{.card = &fast_attention_seg,
                             .summary = "fast attention whose keys are those of the last few frames",
                             .returns = "[B,N,H,P,Dv] attended values",
                             .example = R"(q, k, v = torch.randn(3, 1, 5, 2, 12, 8)  # five frames of twelve positions
whole = foveate.fast_attention_video(q, k, v, frames=3)
first, state = foveate.fast_attention_video_step(q[:, :1], k[:, :1], v[:, :1], frames=3)
rest, state = foveate.fast_attention_video_step(q[:, 1:], k[:, 1:], v[:, 1:], state=state, frames=3)
torch.testing.assert_close(torch.cat([first, rest], 1), whole, rtol=1e-4, atol=1e-5))"};
  struct Options {
    int64_t frames = 2;
    bool normalize_by_n = false;
    double l2_eps = 1e-12;
    void fields(auto&& f) {
      f("frames", frames, "frames that a query sees, its own and those before it");
      f("normalize_by_n", normalize_by_n, "divide by the number of keys that take part, over all those frames");
      f("l2_eps", l2_eps, "least length that a query or key is divided by (authors' code: 1e-12)");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("q", q, "[B,N,H,P,D] queries of N frames, P positions each");
      f("k", k, "[B,N,H,P,D] keys");
      f("v", v, "[B,N,H,P,Dv] values");
      f("key_mask", key_mask, "bool [B,N,P] True where a key takes part");
    }
  };
  using Parameters = None;
  struct State {
    Tensor S, count;
    void fields(auto&& f) {
      f("S", S, "[B,*,H,D,Dv] sums of k' v^T of the last frames - 1 frames, zeros before the first; float32 for half precision");
      f("count", count, "[B,*] numbers of their keys");
    }
  };
  static void check(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// A convolution without bias and its batch normalisation.
struct FOVEATE_API FastAttentionConvolution {
  layers::Convolution conv;
  layers::BatchNorm norm;
  void fields(auto&& f) {
    f("conv", conv, "convolution without bias");
    f("norm", norm, "batch normalisation");
  }
  /// Kaiming-normal weight of `taps` on each axis.
  static FastAttentionConvolution init(int64_t in, int64_t out, int64_t taps);
};

namespace detail {
/// The options that block and fusion have.
void fast_attention_fields(auto&& f, auto& o) {
  f("qk_dim", o.qk_dim, "channels of queries and keys (authors' code: 32)");
  f("frames", o.frames, "frames that step reads, the given one and those before it");
  f("normalize_by_n", o.normalize_by_n, "divide by the number of keys (the paper does, the authors' code does not)");
  f("leaky_slope", o.leaky_slope, "slope of the leaky ReLU below zero (authors' code: 0.01)");
  f("bn_eps", o.bn_eps, "added to the variance (1e-5)");
  f("bn_momentum", o.bn_momentum, "weight of new statistics (0.1)");
  f("l2_eps", o.l2_eps, "least length that a query or key is divided by (authors' code: 1e-12)");
}
}  // namespace detail

/// The block on feature maps: 1x1 projections, attention over positions, reprojection, residual.
struct FOVEATE_API FastAttentionBlock {
  static constexpr Form form{.card = &fast_attention_seg,
                             .summary = "fast attention block on feature maps; step reads the last few frames of a video",
                             .returns = "[B,C,H,W] x plus the reprojected attention",
                             .example = R"(block = foveate.nn.FastAttentionBlock(in_chan=16, frames=2).eval()
frames = torch.randn(3, 1, 16, 9, 7)
out, state = block.step(frames[0])
torch.testing.assert_close(out, block(frames[0]))
out, state = block.step(frames[1], state=state)
assert out.shape == (1, 16, 9, 7))"};
  struct Options {
    int64_t in_chan = 0;
    int64_t qk_dim = 32;
    int64_t frames = 1;
    bool normalize_by_n = false;
    double leaky_slope = 0.01;
    double bn_eps = 1e-5;
    double bn_momentum = 0.1;
    double l2_eps = 1e-12;
    void fields(auto&& f) {
      f("in_chan", in_chan, "channels C of the map, and of values", required);
      detail::fast_attention_fields(f, *this);
    }
  };
  struct Inputs {
    Tensor x;
    void fields(auto&& f) { f("x", x, "[B,C,H,W] map"); }
  };
  struct Parameters {
    FastAttentionConvolution query, key, value, out;
    void fields(auto&& f) {
      f("query", query, "1x1 to queries, without activation");
      f("key", key, "1x1 to keys, without activation");
      f("value", value, "1x1 to values, then leaky ReLU");
      f("out", out, "1x1 of the attended values, then leaky ReLU");
    }
  };
  using State = FastAttentionVideo::State;
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
  /// One frame.
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&, bool training);
};

/// The block as FANet uses it at each level: the coarser level joins, and two branches leave.
struct FOVEATE_API FastAttentionFusion {
  static constexpr Form form{
      .card = &fast_attention_seg,
      .summary = "FANet's feature fusion module: fast attention, plus the coarser level, to the finer level and to the classifier",
      .example = R"(coarse = foveate.nn.FastAttentionFusion(in_chan=32, out_chan=12)
fine = foveate.nn.FastAttentionFusion(in_chan=16, out_chan=12, up_flag=False)
smooth, up_feat = coarse(torch.randn(2, 32, 4, 6))
assert smooth.shape == (2, 12, 4, 6) and up_feat.shape == (2, 16, 6, 8)
smooth, _ = fine(torch.randn(2, 16, 8, 12), up=up_feat)
assert smooth.shape == (2, 12, 8, 12))"};
  struct Options {
    int64_t in_chan = 0;
    int64_t out_chan = 128;
    bool up_flag = true;
    bool smf_flag = true;
    int64_t qk_dim = 32;
    int64_t frames = 1;
    bool normalize_by_n = false;
    double leaky_slope = 0.01;
    double bn_eps = 1e-5;
    double bn_momentum = 0.1;
    double l2_eps = 1e-12;
    void fields(auto&& f) {
      f("in_chan", in_chan, "channels C of the map, and of values", required);
      f("out_chan", out_chan, "channels of smooth (authors' code: 128)");
      f("up_flag", up_flag, "whether up_feat is computed");
      f("smf_flag", smf_flag, "whether smooth is computed");
      detail::fast_attention_fields(f, *this);
    }
    FastAttentionBlock::Options attention() const;
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> up;
    void fields(auto&& f) {
      f("x", x, "[B,C,H,W] map");
      f("up", up, "[B,C,*,*] up_feat of the coarser level, resized to H x W and added");
    }
  };
  struct Outputs {
    Tensor smooth, up_feat;
    void fields(auto&& f) {
      f("smooth", smooth, "[B,*,H,W] map for the classifier, out_chan channels; none with smf_flag off");
      f("up_feat", up_feat, "[B,*,*,*] map for the finer level, C // 2 channels, H+2 x W+2 as in the authors' code; no channels with up_flag off");
    }
  };
  struct Parameters {
    FastAttentionBlock::Parameters attention;
    FastAttentionConvolution up, smooth;
    void fields(auto&& f) {
      f("attention", attention, "attention block");
      f("up", up, "1x1 to up_feat, padded by one, then leaky ReLU");
      f("smooth", smooth, "3x3 to smooth, then leaky ReLU");
    }
  };
  using State = FastAttentionVideo::State;
  static void check(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&, bool training);
  /// One frame.
  static std::pair<Outputs, State> step(const Options&, const Parameters&, const Inputs&, State&&, bool training);
};

}  // namespace foveate
