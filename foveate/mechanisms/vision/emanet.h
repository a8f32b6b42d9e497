// EMANet: positions are rebuilt from K bases found by expectation-maximisation, out = relu(BN(W2 relu(mu z^T)) + x).   arXiv 1907.13426
#pragma once
#include <foveate/contract.h>
#include <foveate/convolution.h>
#include <foveate/norm.h>

namespace foveate {

inline constexpr Card emanet{.slug = "emanet",
                             .title = "EMANet",
                             .paper = "1907.13426",
                             .year = 2019,
                             .family = Family::vision,
                             .cost = "O(T N K C + N C^2)",
                             .causality = Causality::none,
                             .equation = "T times: z = softmax_K(f^T mu), mu = unit(f z / sum_n z); out = relu(BN(W2 relu(mu z^T)) + x), f = W1 x"};

/// The unit: convolution, expectation-maximisation, reconstruction, convolution, residual.
struct FOVEATE_API EMAU {
  static constexpr Form form{.card = &emanet,
                             .summary = "expectation-maximisation attention unit for maps",
                             .example = R"(unit = foveate.nn.EMAU(in_channels=32, num_bases=8)
out, mu = unit(torch.randn(2, 32, 6, 7))
assert out.shape == (2, 32, 6, 7) and mu.shape == (2, 32, 8))"};
  struct Options {
    int64_t in_channels = 512;
    int64_t num_bases = 64;
    int64_t iterations = 3;
    double momentum = 0.9;
    bool grad_through_em = false;
    double norm_eps = 1e-6;
    double bn_eps = 1e-5;
    double bn_momentum = 3e-4;
    void fields(auto&& f) {
      f("in_channels", in_channels, "channels C of the map (paper: 512)");
      f("num_bases", num_bases, "bases K (paper: 64)");
      f("iterations", iterations, "rounds T of expectation-maximisation (paper: 3; more may serve a trained unit)");
      f("momentum", momentum, "in training, the bases a call starts from become momentum times themselves plus the rest of the batch's (paper: 0.9)");
      f("grad_through_em", grad_through_em,
        "whether gradients pass through the rounds; without, the first convolution stays as drawn, and x learns by the residual alone (authors' "
        "code)");
      f("norm_eps", norm_eps, "added to the sums over positions and to the norms of bases (1e-6)");
      f("bn_eps", bn_eps, "added to the variance (1e-5)");
      f("bn_momentum", bn_momentum, "weight of new statistics (authors' code: 3e-4)");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> mask;
    void fields(auto&& f) {
      f("x", x, "[B,C,H,W] map");
      f("mask", mask, "bool [B,H,W] True where a position takes part; the others neither form bases nor are rebuilt");
    }
  };
  struct Outputs {
    Tensor out, mu;
    void fields(auto&& f) {
      f("out", out, "[B,C,H,W] map");
      f("mu", mu, "[B,C,K] bases of each map");
    }
  };
  struct Parameters {
    layers::Convolution conv_in, conv_out;
    layers::BatchNorm norm;
    Tensor bases;
    void fields(auto&& f) {
      f("conv_in", conv_in, "W1, 1x1");
      f("conv_out", conv_out, "W2, 1x1, without bias");
      f("norm", norm, "batch normalisation before the residual");
      f("bases", bases, "[1,*,*] the bases that a call starts from, C by K", buffer);
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&, bool training);
};

}  // namespace foveate
