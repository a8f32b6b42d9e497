// RecoNet: a gate of rank r over channels, rows and columns, out = x sum_i lambda_i c_i h_i w_i, from the means along the other axes.   arXiv
// 2008.00490
#pragma once
#include <foveate/contract.h>

namespace foveate {

inline constexpr Card tensor_low_rank{.slug = "tensor-low-rank",
                                      .title = "Tensor low-rank reconstruction (RecoNet)",
                                      .paper = "2008.00490",
                                      .year = 2020,
                                      .family = Family::vision,
                                      .cost = "O((C H W + C^2 + H^2 + W^2) r)",
                                      .causality = Causality::none,
                                      .equation = "A = sum_i lambda_i c_i h_i w_i, c_i = sigmoid(Wc_i mean_hw x), h_i, w_i alike; out = A x"};

/// Which means make which factors.
enum class RecoAxes { paper, code };
template <> inline constexpr auto names<RecoAxes> = std::array<std::string_view, 2>{"paper", "code"};

/// How the ranks are weighted.
enum class RecoWeights { raw, softmax };
template <> inline constexpr auto names<RecoWeights> = std::array<std::string_view, 2>{"raw", "softmax"};

enum class RecoOutput { product, concat_relu };
template <> inline constexpr auto names<RecoOutput> = std::array<std::string_view, 2>{"product", "concat_relu"};

struct FOVEATE_API TensorLowRankGate {
  static constexpr Form form{.card = &tensor_low_rank,
                             .summary = "low-rank gate over the channels, rows and columns of maps of one size",
                             .returns = "[B,Co,H,W] gated map, Co = C, or 2C where output is concat_relu",
                             .example = R"(gate = foveate.nn.TensorLowRankGate(channels=8, height=6, width=7, rank=4)
assert gate(torch.randn(2, 8, 6, 7)).shape == (2, 8, 6, 7))"};
  struct Options {
    int64_t channels = 0, height = 0, width = 0;
    int64_t rank = 64;
    RecoAxes axes = RecoAxes::paper;
    RecoWeights weights = RecoWeights::softmax;
    RecoOutput output = RecoOutput::product;
    void fields(auto&& f) {
      f("channels", channels, "channels C of the map (authors' code: 512)", required);
      f("height", height, "rows H of the map, which the parameters fix", required);
      f("width", width, "columns W", required);
      f("rank", rank, "terms r of the sum (paper: 64)");
      f("axes", axes, "paper: rows from the means of rows; code: the published class, which takes the other axis and needs square maps");
      f("weights", weights, "softmax: lambda = softmax(lam) over the ranks (authors' code); raw: lam itself");
      f("output", output, "product: A x; concat_relu: x, and relu(A x) behind it (authors' code)");
    }
  };
  struct Inputs {
    Tensor x;
    void fields(auto&& f) { f("x", x, "[B,C,H,W] map"); }
  };
  struct Parameters {
    Tensor channel, row, column, lam;
    void fields(auto&& f) {
      f("channel", channel, "[*,*,*] Wc, r by C by C");
      f("row", row, "[*,*,*] Wh, r by H by H");
      f("column", column, "[*,*,*] Ww, r by W by W");
      f("lam", lam, "[*] weights of the ranks, initially 1");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

}  // namespace foveate
