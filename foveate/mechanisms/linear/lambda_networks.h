// Lambda layers: a context becomes linear maps, out_n = (sum_m kbar_m v_m^T + sum_m e_nm v_m^T)^T q_n, kbar = softmax_m(k).   arXiv 2102.08602
#pragma once
#include <foveate/contract.h>
#include <foveate/convolution.h>
#include <foveate/norm.h>

namespace foveate {

inline constexpr Card lambda_networks{.slug = "lambda-networks",
                                      .title = "Lambda layers",
                                      .paper = "2102.08602",
                                      .year = 2021,
                                      .family = Family::linear,
                                      .cost = "O(N M K V / h); local: O(N r^2 K V)",
                                      .causality = Causality::strict,
                                      .equation = "out_n = (sum_m kbar_m v_m^T + sum_m e_nm v_m^T)^T q_n, kbar = softmax_m(k)"};

/// Over what keys are normalised.
enum class LambdaKeyNorm { global, context };
template <> inline constexpr auto names<LambdaKeyNorm> = std::array<std::string_view, 2>{"global", "context"};

/// The bare function on given queries, keys, values and position embeddings.
struct FOVEATE_API LambdaAttention {
  static constexpr Form form{.card = &lambda_networks,
                             .summary = "content and position lambdas of k and v, applied to q",
                             .returns = "[B,H,N,V] outputs",
                             .example = R"(q, k, v = torch.randn(2, 4, 9, 8), torch.randn(2, 9, 8, 1), torch.randn(2, 9, 16, 1)
out = foveate.lambda_attention(q, k, v, taps=torch.randn(5, 8, 1), causal=True, key_norm="context")
assert out.shape == (2, 4, 9, 16))"};
  struct Options {
    LambdaKeyNorm key_norm = LambdaKeyNorm::global;
    bool causal = false;
    void fields(auto&& f) {
      f("key_norm", key_norm,
        "keys are normalised over all keys (paper), or over what each query sees: the only one that is strictly causal, since the other leaks");
      f("causal", causal, "a query sees no key after it, in neither lambda");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> table, taps, context_mask, key_mask;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,K] queries");
      f("k", k, "[B,M,K,U] keys, shared by heads");
      f("v", v, "[B,M,V,U] values, shared by heads");
      f("table", table, "[N,M,K,U] an embedding for each query and key");
      f("taps", taps, "[R,K,U] an embedding for each distance back, 0 to R - 1; keys at other distances have none");
      f("context_mask", context_mask, "bool [N,M] True where a query sees a key, for all sequences; not with taps");
      f("key_mask", key_mask, "bool [B,M] True where a key takes part");
    }
  };
  using Parameters = None;
  struct State {
    Tensor maximum, z, s, last;
    void fields(auto&& f) {
      f("maximum", maximum, "[B,K,U] greatest key so far");
      f("z", z, "[B,K,U] sum of exp(k - maximum)");
      f("s", s, "[B,K,V,U] sum of exp(k - maximum) v^T");
      f("last", last, "[B,*,V,U] the last R - 1 values");
    }
  };
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// The layer for maps.
struct FOVEATE_API LambdaLayer {
  static constexpr Form form{.card = &lambda_networks,
                             .summary = "lambda layer for maps, in place of a convolution or of attention",
                             .returns = "[B,Co,H,W] map",
                             .example = R"(layer = foveate.nn.LambdaLayer(in_channels=32, dim_k=16, r=5)
assert layer(torch.randn(2, 32, 9, 7)).shape == (2, 32, 9, 7))"};
  struct Options {
    int64_t in_channels = 0;
    int64_t dim_k = 16;
    optional<int64_t> out_channels, n, r;
    int64_t num_heads = 4;
    int64_t dim_u = 1;
    bool bias = true;
    double bn_eps = 1e-5;
    double bn_momentum = 0.1;
    void fields(auto&& f) {
      f("in_channels", in_channels, "channels C of the map", required);
      f("dim_k", dim_k, "width K of queries and keys (paper: 16)");
      f("out_channels", out_channels, "channels Co of the result, default C");
      f("n", n, "side of the square maps whose every position is seen, with an embedding for each distance; n or r is to be given");
      f("r", r, "side of the window that is seen, odd; maps of any size (paper: 23)");
      f("num_heads", num_heads, "heads of queries, a divisor of Co (lucidrains: 4; paper: 8)");
      f("dim_u", dim_u, "keys and values of a position, the intra-depth U (paper: 1 or 4)");
      f("bias", bias, "whether the convolution of the local form has a bias (lucidrains: yes; paper: no)");
      f("bn_eps", bn_eps, "added to the variance (1e-5)");
      f("bn_momentum", bn_momentum, "weight of new statistics (0.1)");
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
    layers::Convolution query, key, value;
    layers::BatchNorm query_norm, value_norm;
    optional<Tensor> embedding;
    optional<layers::Convolution> conv;
    void fields(auto&& f) {
      f("query", query, "C to heads by K, 1x1");
      f("key", key, "C to U by K, 1x1");
      f("value", value, "C to U by V, 1x1");
      f("query_norm", query_norm, "batch normalisation of queries");
      f("value_norm", value_norm, "batch normalisation of values");
      f("embedding", embedding, "[*,*,*,*] embeddings by distance, 2n-1 by 2n-1 by K by U");
      f("conv", conv, "from U to K, r by r: the embeddings of a window");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
};

}  // namespace foveate
