// Transformer-XL's relative positions: s_ij = scale ((q_i + u).k_j + (q_i + w).r_d), d = a_i - j.   arXiv 1901.02860
// XLNet lets d be negative: keys after the query have rows too.   arXiv 1906.08237
#pragma once
#include <foveate/relative_position.h>

namespace foveate {

namespace positions {

/// rows [H,R,D], descending in distance, the one at `zero` for distance 0, are asked by q + bias; bias [H,D].
FOVEATE_API ops::ScoreBias xl(const Tensor& q, const Tensor& bias, const Tensor& rows, Size zero);

/// q [B,H,N,D] + bias [H,D]
inline Tensor plus_bias(const Tensor& q, const Tensor& bias) { return q + bias.unsqueeze(1); }

/// [L] distances -> [L,width]: sines of width/2 frequencies, then their cosines; in double precision, so that far distances stay apart.
FOVEATE_API Tensor sinusoid(const Tensor& distances, int64_t width);

}  // namespace positions

struct FOVEATE_API XLNetAttention {
  static constexpr Form form{.card = &relative_position,
                             .summary = "Transformer-XL's position term in both directions (XLNet)",
                             .returns = "[B,H,N,Dv] attended values",
                             .example = R"(attend = foveate.nn.XLNetAttention(num_heads=4, head_dim=8)
q = k = v = torch.randn(2, 4, 16, 8)
r = torch.randn(4, 32, 8)  # row r is distance 16 - r
assert attend(q, k, v, r).shape == (2, 4, 16, 8))"};
  struct Options {
    int64_t num_heads = 0;
    int64_t head_dim = 0;
    bool causal = false;
    optional<double> scale;
    optional<int64_t> clamp_len;
    void fields(auto&& f) {
      f("num_heads", num_heads, "heads H", required);
      f("head_dim", head_dim, "width D of a head", required);
      f("causal", causal, "a query sees no key after it; the last query meets the last key");
      f("scale", scale, "multiplies both terms, default 1/sqrt(D)");
      f("clamp_len", clamp_len, "keys farther away on either side count as this far (transformers' XLNet: clamp_len); default no clamping");
    }
  };
  struct Inputs {
    Tensor q, k, v, r;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,Hk,M,D] keys; Hk divides H");
      f("v", v, "[B,Hk,M,Dv] values");
      f("r", r, "[H,*,D] projected positions, N + M of them: row r is distance M - r (query minus key)");
      f("key_mask", key_mask, "bool [B,M] True where a key takes part");
    }
  };
  struct Parameters {
    Tensor content_bias, position_bias;
    void fields(auto&& f) {
      f("content_bias", content_bias, "[H,D] added to a query that asks a key (the paper's u)");
      f("position_bias", position_bias, "[H,D] added to a query that asks a position (the paper's v)");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

}  // namespace foveate
