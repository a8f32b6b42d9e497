// ALiBi: s_ij = scale q_i.k_j - m_h |j - i|, a fixed slope m_h for each head.   arXiv 2108.12409
#pragma once
#include <foveate/relative_position.h>

namespace foveate {

namespace positions {

/// [H]: 2^(-bias_max (h+1) / H) where H is a power of two; else those of the largest power of two P below H, then every second one of 2P.
FOVEATE_API Tensor alibi_slopes(int64_t heads, double bias_max, const at::TensorOptions& options);

/// The bias of each head of q [B,H,N,D].
FOVEATE_API ops::ScoreBias alibi(const Tensor& q, double bias_max = 8);

}  // namespace positions

struct FOVEATE_API AlibiAttention {
  static constexpr Form form{.card = &relative_position,
                             .summary = "attention with linear biases: a score falls with distance (ALiBi)",
                             .returns = "[B,H,N,Dv] attended values",
                             .example = R"(q = k = v = torch.randn(2, 4, 16, 8)
assert foveate.alibi_attention(q, k, v, causal=True).shape == (2, 4, 16, 8)
assert torch.ops.foveate.alibi_slopes(8)[:3].tolist() == [0.5, 0.25, 0.125])"};
  struct Options {
    double bias_max = 8;
    bool causal = false;
    bool symmetric = true;
    optional<double> scale;
    void fields(auto&& f) {
      f("bias_max", bias_max, "the last slope is 2^-bias_max (paper: 8; MPT makes it an option)");
      f("causal", causal, "a query sees no key after it (paper: yes)");
      f("symmetric", symmetric, "keys after a query count like those before it; False: the later a key, the more it counts (authors' code, BLOOM)");
      f("scale", scale, "multiplies q.k, not the bias, default 1/sqrt(D)");
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
