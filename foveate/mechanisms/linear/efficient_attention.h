// Efficient attention: out = rho_q(Q) (rho_k(K)^T V), rho_q softmax over channels, rho_k softmax over positions.   arXiv 1812.01243
#pragma once
#include <foveate/contract.h>
#include <foveate/convolution.h>

namespace foveate {

inline constexpr Card efficient_attention{.slug = "efficient-attention",
                                          .title = "Efficient Attention",
                                          .paper = "1812.01243",
                                          .year = 2018,
                                          .family = Family::linear,
                                          .cost = "O(N D^2)",
                                          .causality = Causality::strict,
                                          .equation = "out = softmax_channels(Q) (softmax_positions(K)^T V)"};

/// How queries and keys are normalised, before keys and values are summed over positions.
enum class EfficientNormalization {
  softmax,  ///< queries over their channels, keys over positions: every output is a weighted mean of values
  scaling,  ///< both by 1/sqrt(M), M the keys that take part: dot-product attention with weights q k^T / M
};
template <> inline constexpr auto names<EfficientNormalization> = std::array<std::string_view, 2>{"softmax", "scaling"};

/// The bare function.
struct FOVEATE_API EfficientAttention {
  static constexpr Form form{.card = &efficient_attention,
                             .summary = "efficient attention of q, k, v",
                             .returns = "[B,H,N,Dv] attended values",
                             .example = R"(q, k, v = torch.randn(3, 2, 4, 16, 8)
out = foveate.efficient_attention(q, k, v)
context = k.softmax(-2).transpose(-1, -2) @ v
torch.testing.assert_close(out, q.softmax(-1) @ context))"};
  struct Options {
    EfficientNormalization normalization = EfficientNormalization::softmax;
    double temperature = 1;
    bool causal = false;
    void fields(auto&& f) {
      f("normalization", normalization,
        "softmax: queries over channels, keys over positions (authors' code); scaling: weights q k^T / M, M keys that take part (paper)");
      f("temperature", temperature, "divides q and k before the softmax; D^(1/4) comes near scaled dot products (authors' code: 1)");
      f("causal", causal,
        "an extension, the paper has no such form: query i normalises keys over positions 0 to i, and reads those; N = M. In single precision, "
        "keys more than 41 below their channel's greatest count as 41 below");
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
  /// The context of the keys so far, not yet normalised; float32 for half precision.
  struct State {
    Tensor S, z, top;
    void fields(auto&& f) {
      f("S", S, "[B,Hk,D,Dv] sum of exp(k) 2^-top v^T so far; scaling: of k v^T");
      f("z", z, "[B,Hk,D] sum of exp(k) 2^-top so far; scaling: number of keys");
      f("top", top, "[B,Hk,D] whole power of two of the greatest exp(k) of each channel so far; scaling: 0");
    }
  };
  static void check(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// The block on feature maps: 1x1 convolutions, heads of channels, reprojection, residual.
struct FOVEATE_API EfficientAttentionBlock {
  static constexpr Form form{.card = &efficient_attention,
                             .summary = "efficient attention block on feature maps, in place of a non-local block",
                             .returns = "[B,C,H,W] x plus the reprojected attention",
                             .example = R"(block = foveate.nn.EfficientAttentionBlock(in_channels=16, key_channels=8, head_count=2, value_channels=8)
x = torch.randn(2, 16, 9, 7)
assert block(x).shape == x.shape)"};
  struct Options {
    int64_t in_channels = 0;
    int64_t key_channels = 0;
    int64_t head_count = 0;
    int64_t value_channels = 0;
    EfficientNormalization normalization = EfficientNormalization::softmax;
    double temperature = 1;
    void fields(auto&& f) {
      f("in_channels", in_channels, "channels C of the map", required);
      f("key_channels", key_channels, "channels of keys and of queries, all heads; those beyond a multiple of head_count go unused", required);
      f("head_count", head_count, "heads", required);
      f("value_channels", value_channels, "channels of values, all heads; a multiple of head_count", required);
      f("normalization", normalization,
        "softmax: queries over a head's channels, keys over positions (authors' code); scaling: weights q k^T / (H W) (paper)");
      f("temperature", temperature, "divides queries and keys before the softmax (authors' code: 1)");
    }
  };
  struct Inputs {
    Tensor x;
    void fields(auto&& f) { f("x", x, "[B,C,H,W] feature map"); }
  };
  struct Parameters {
    layers::Convolution keys, queries, values, reprojection;
    void fields(auto&& f) {
      f("keys", keys, "1x1 convolution to keys");
      f("queries", queries, "1x1 convolution to queries");
      f("values", values, "1x1 convolution to values");
      f("reprojection", reprojection, "1x1 convolution of the attended values back to C channels");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

}  // namespace foveate
