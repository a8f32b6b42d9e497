// Non-local block: z_i = BN(W sum_j A_ij g(x_j)) + x_i, A = softmax_j(theta_i.phi_j), theta_i.phi_j / M, or a pair network / M.   arXiv 1711.07971
#pragma once
#include <foveate/contract.h>
#include <foveate/convolution.h>
#include <foveate/norm.h>

namespace foveate {

inline constexpr Card non_local{.slug = "non-local",
                                .title = "Non-local block",
                                .paper = "1711.07971",
                                .year = 2017,
                                .family = Family::vision,
                                .cost = "O(N M C)",
                                .causality = Causality::none,
                                .equation = "z = BN(W (A g(x))) + x, A_ij = f(theta(x_i), phi(x_j)) / C(x)"};

/// How alike two positions are. The two Gaussian modes are normalised by a softmax, the others by the number of keys.
enum class NonLocalMode { embedded_gaussian, gaussian, dot_product, concatenation };
template <> inline constexpr auto names<NonLocalMode> =
    std::array<std::string_view, 4>{"embedded_gaussian", "gaussian", "dot_product", "concatenation"};

/// Whether keys and values are pooled after their 1x1 maps or before: a maximum and a linear map do not commute.
enum class PoolPosition { after, before };
template <> inline constexpr auto names<PoolPosition> = std::array<std::string_view, 2>{"after", "before"};

/// The bare function: every position reads every other by one of four similarities.
struct FOVEATE_API NonLocalAttention {
  static constexpr Form form{.card = &non_local,
                             .summary = "the non-local operation on given q, k, v",
                             .returns = "[B,H,N,Dv] attended values",
                             .example = R"(q = k = v = torch.randn(2, 1, 16, 8)
out = foveate.non_local_attention(q, k, v, mode="concatenation", pair_weight=torch.randn(16))
weights = foveate.non_local_attention(q, k, torch.eye(16).expand(2, 1, 16, 16))  # the values of the identity show the map
assert out.shape == (2, 1, 16, 8) and torch.allclose(weights.sum(-1), torch.ones(2, 1, 16)))"};
  struct Options {
    NonLocalMode mode = NonLocalMode::embedded_gaussian;
    double scale = 1;
    void fields(auto&& f) {
      f("mode", mode,
        "embedded_gaussian, gaussian: softmax of q.k (they differ in what q and k are); dot_product: q.k / M; concatenation: "
        "ReLU(pair_weight.[q, k]) / M");
      f("scale", scale, "multiplies q.k, not used by concatenation (paper: 1; authors' code: 1/sqrt(D))");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> pair_weight;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,H,M,D] keys");
      f("v", v, "[B,H,M,Dv] values");
      f("pair_weight", pair_weight, "[*] weights of the pair network, D for the query and D for the key; for concatenation only");
    }
  };
  using Parameters = None;
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

/// The block as it is put into a network: 1x1 maps, attention over all positions, 1x1 map back, batch normalisation, residual.
struct FOVEATE_API NonLocalBlock {
  static constexpr Form form{.card = &non_local,
                             .summary = "non-local block for maps of one to three dimensions",
                             .returns = "[...] map of the shape of x",
                             .example = R"(block = foveate.nn.NonLocalBlock(in_channels=8, dimension=2)
x = torch.randn(2, 8, 6, 7)
assert torch.equal(block(x), x)  # a fresh block is the identity)"};
  struct Options {
    int64_t in_channels = 0;
    optional<int64_t> inter_channels;
    int64_t dimension = 2;
    NonLocalMode mode = NonLocalMode::embedded_gaussian;
    bool sub_sample = true;
    PoolPosition pool_position = PoolPosition::after;
    bool bn = true;
    double scale = 1;
    double bn_eps = 1e-5;
    double bn_momentum = 0.1;
    bool biased_pair = false;
    double bn_gain = 0;
    optional<double> weight_std;
    void fields(auto&& f) {
      f("in_channels", in_channels, "channels C of the map", required);
      f("inter_channels", inter_channels, "width Ci of queries, keys and values (paper: C/2, at least 1)");
      f("dimension", dimension, "spatial dimensions of the map: 1, 2 or 3");
      f("mode", mode, "similarity of two positions; gaussian compares x itself, without theta and phi");
      f("sub_sample", sub_sample, "keys and values are max-pooled by 2 along each axis but time (paper: an optional trick)");
      f("pool_position", pool_position, "pool after the 1x1 maps (paper's figure) or before them (authors' code)");
      f("bn", bn, "batch normalisation before the residual");
      f("scale", scale, "multiplies theta.phi (paper: 1; authors' code: Ci^-0.5)");
      f("bn_eps", bn_eps, "added to the variance (1e-5)");
      f("bn_momentum", bn_momentum, "weight of new statistics (0.1)");
      f("biased_pair", biased_pair, "whether the pair network of concatenation has a bias (tea1528; the paper has none)");
      f("bn_gain", bn_gain, "initial gain of the normalisation (paper: 0, the block starts as the identity; an option of the authors' code)");
      f("weight_std", weight_std, "initial weights normal with this deviation, biases 0 (authors' code: 0.01); default as torch's convolutions");
    }
  };
  struct Inputs {
    Tensor x;
    void fields(auto&& f) { f("x", x, "[...] map [B,C,L], [B,C,H,W] or [B,C,T,H,W]"); }
  };
  struct Parameters {
    optional<layers::Convolution> theta, phi;  // C -> Ci; absent in mode gaussian
    layers::Convolution g, out;                // C -> Ci, Ci -> C
    optional<layers::Convolution> pair;        // 2Ci -> 1; of mode concatenation
    optional<layers::BatchNorm> norm;

    void fields(auto&& f) {
      f("theta", theta, "queries");
      f("phi", phi, "keys");
      f("g", g, "values");
      f("out", out, "the way back, W");
      f("pair", pair, "the pair network of concatenation");
      f("norm", norm, "batch normalisation");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
};

}  // namespace foveate
