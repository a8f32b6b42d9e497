// Rotary positions: pairs of channels of q and k turned by pos * base^(-2f/rd), so that q_i.k_j depends on i - j alone.   arXiv 2104.09864
#pragma once
#include <foveate/relative_position.h>

namespace foveate {

/// How positions beyond those of training are brought back: linear divides them by the factor, ntk slows the low frequencies.
enum class RotaryScaling { none, linear, ntk };
template <> inline constexpr auto names<RotaryScaling> = std::array<std::string_view, 3>{"none", "linear", "ntk"};

namespace positions {

struct Rotary {
  optional<int64_t> rotary_dim = {};  ///< channels that turn, even; default all
  double base = 10000;
  bool interleaved = false;  ///< pairs (2f, 2f+1); else (f, f + rotary_dim/2)
  RotaryScaling scaling = RotaryScaling::none;
  double factor = 1;
};

/// x [...,N,D], whose first row stands at position `offset`, turned.
FOVEATE_API Tensor rotate(const Tensor& x, const Size& offset, const Rotary& o);

}  // namespace positions

/// The rotation alone.
struct FOVEATE_API RotaryEmbedding {
  static constexpr Form form{.card = &relative_position,
                             .summary = "queries or keys turned by their positions (rotary)",
                             .returns = "[...,N,D] the same vectors turned",
                             .example = R"(turn = foveate.nn.RotaryEmbedding(interleaved=True)
q = torch.randn(2, 4, 16, 8)
assert torch.allclose(turn(q).norm(dim=-1), q.norm(dim=-1)))"};
  struct Options {
    int64_t offset = 0;
    optional<int64_t> rotary_dim;
    double base = 10000;
    bool interleaved = false;
    RotaryScaling scaling = RotaryScaling::none;
    double factor = 1;
    void fields(auto&& f) {
      f("offset", offset, "position of the first vector");
      f("rotary_dim", rotary_dim, "channels that turn, an even number; the rest pass through; default D");
      f("base", base, "the angles' base (paper: 10000; LLaMA 3: 500000)");
      f("interleaved", interleaved,
        "channels (2f, 2f+1) turn together (paper, GPT-J); False: f with f + rotary_dim/2 (GPT-NeoX, transformers' LLaMA)");
      f("scaling", scaling, "for longer sequences: linear divides positions by factor, ntk multiplies base by factor^(rd/(rd-2))");
      f("factor", factor, "by how much scaling stretches");
    }
  };
  struct Inputs {
    Tensor x;
    void fields(auto&& f) { f("x", x, "[B,H,N,D] queries or keys"); }
  };
  using Parameters = None;
  static void check(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

/// Attention of turned queries and keys. Its cache holds turned keys.
struct FOVEATE_API RotaryAttention {
  static constexpr Form form{.card = &relative_position,
                             .summary = "attention of queries and keys turned by their positions (rotary)",
                             .returns = "[B,H,N,Dv] attended values",
                             .example = R"(attend = foveate.nn.RotaryAttention(causal=True)
q = k = v = torch.randn(2, 4, 16, 8)
out, state = attend.step(q[:, :, :10], k[:, :, :10], v[:, :, :10])
rest, state = attend.step(q[:, :, 10:], k[:, :, 10:], v[:, :, 10:], state=state)
assert torch.allclose(torch.cat([out, rest], 2), attend(q, k, v), atol=1e-5))"};
  struct Options {
    bool causal = false;
    optional<double> scale;
    int64_t q_offset = 0;
    int64_t k_offset = 0;
    optional<int64_t> rotary_dim;
    double base = 10000;
    bool interleaved = false;
    RotaryScaling scaling = RotaryScaling::none;
    double factor = 1;
    void fields(auto&& f) {
      f("causal", causal, "a query sees no key at a later position");
      f("scale", scale, "multiplies q.k, default 1/sqrt(D)");
      f("q_offset", q_offset, "position of the first query; with a cache of M - N earlier keys it is M - N");
      f("k_offset", k_offset, "position of the first key");
      f("rotary_dim", rotary_dim, "channels that turn, an even number; the rest pass through; default D");
      f("base", base, "the angles' base (paper: 10000; LLaMA 3: 500000)");
      f("interleaved", interleaved,
        "channels (2f, 2f+1) turn together (paper, GPT-J); False: f with f + rotary_dim/2 (GPT-NeoX, transformers' LLaMA)");
      f("scaling", scaling, "for longer sequences: linear divides positions by factor, ntk multiplies base by factor^(rd/(rd-2))");
      f("factor", factor, "by how much scaling stretches");
    }
  };
  using Inputs = RelativeInputs;
  using Parameters = None;
  using State = layers::KVCache;
  static void check(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

}  // namespace foveate
