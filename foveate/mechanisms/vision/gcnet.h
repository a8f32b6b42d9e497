// GCNet: one context for all positions, c = sum_n softmax(w.x_n) x_n, then out = x sigmoid(T_mul(c)) + T_add(c).   arXiv 1904.11492
#pragma once
#include <foveate/contract.h>
#include <foveate/linear.h>
#include <foveate/norm.h>

namespace foveate {

inline constexpr Card gcnet{.slug = "gcnet",
                            .title = "GCNet",
                            .paper = "1904.11492",
                            .year = 2019,
                            .family = Family::vision,
                            .cost = "O(N C + C^2 ratio)",
                            .causality = Causality::none,
                            .equation = "c = sum_n softmax_n(w.x_n) x_n, out = x sigmoid(T_mul(c)) + T_add(c), T(c) = W2 relu(LN(W1 c))"};

/// How positions become one context.
enum class ContextPooling { att, avg };
template <> inline constexpr auto names<ContextPooling> = std::array<std::string_view, 2>{"att", "avg"};

/// The block: context, transform of its channels, fusion with every position.
struct FOVEATE_API GlobalContextBlock {
  static constexpr Form form{.card = &gcnet,
                             .summary = "global context block for maps of any dimension",
                             .returns = "[...] map of the shape of x",
                             .example = R"(block = foveate.nn.GlobalContextBlock(in_channels=32)
x = torch.randn(2, 32, 6, 7)
assert torch.equal(block(x), x)  # a fresh block is the identity)"};
  struct Options {
    int64_t in_channels = 0;
    double ratio = 1.0 / 16;
    ContextPooling pooling = ContextPooling::att;
    bool channel_add = true;
    bool channel_mul = false;
    double ln_eps = 1e-5;
    void fields(auto&& f) {
      f("in_channels", in_channels, "channels C of the map", required);
      f("ratio", ratio, "inner width of a transform, C ratio rounded down (paper: 1/16, and 1/4)");
      f("pooling", pooling, "att: positions weighted by a softmax; avg: their mean (as squeeze-and-excitation)");
      f("channel_add", channel_add, "adds T_add(c) to every position");
      f("channel_mul", channel_mul, "first multiplies every position by sigmoid(T_mul(c)); a fresh block then halves its input");
      f("ln_eps", ln_eps, "added to the variance in the layer normalisation (1e-5)");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> mask;
    void fields(auto&& f) {
      f("x", x, "[...] map [B,C,*S]");
      f("mask", mask, "bool [...] [B,*S], True where a position takes part in the context; a map that is hidden whole has the context 0");
    }
  };
  /// T(c) = W2 relu(LN(W1 c))
  struct Transform {
    layers::Linear reduce;
    layers::LayerNorm norm;
    layers::Linear restore;
    void fields(auto&& f) {
      f("reduce", reduce, "W1, to the inner width");
      f("norm", norm, "layer normalisation over it");
      f("restore", restore, "W2, back; initially 0");
    }
  };
  struct Parameters {
    optional<layers::Linear> score;
    optional<Transform> add, mul;
    void fields(auto&& f) {
      f("score", score, "w, from channels to one score; absent where pooling is avg");
      f("add", add, "the transform that is added");
      f("mul", mul, "the transform that multiplies");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

/// The paper's step on the way: the context through one linear map, added to every position.
struct FOVEATE_API SimplifiedNonLocalBlock {
  static constexpr Form form{.card = &gcnet,
                             .summary = "simplified non-local block: one attention map for all queries",
                             .returns = "[...] map of the shape of x",
                             .example = R"(block = foveate.nn.SimplifiedNonLocalBlock(in_channels=8)
assert block(torch.randn(2, 8, 6, 7)).shape == (2, 8, 6, 7))"};
  struct Options {
    int64_t in_channels = 0;
    void fields(auto&& f) { f("in_channels", in_channels, "channels C of the map", required); }
  };
  using Inputs = GlobalContextBlock::Inputs;
  struct Parameters {
    layers::Linear score, value;
    void fields(auto&& f) {
      f("score", score, "w, from channels to one score");
      f("value", value, "W_v, of the context; initially 0, so that a fresh block is the identity");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

}  // namespace foveate
