// Scaled dot-product attention and the multi-head layer: out = softmax(scale Q K^T + bias) V.   arXiv 1706.03762
#pragma once
#include <foveate/contract.h>
#include <foveate/heads.h>
#include <foveate/kv_cache.h>

namespace foveate {

inline constexpr Card vanilla{.slug = "vanilla",
                              .title = "Scaled dot-product multi-head attention",
                              .paper = "1706.03762",
                              .year = 2017,
                              .family = Family::softmax,
                              .cost = "O(N M D)",
                              .causality = Causality::strict,
                              .equation = "out = softmax(scale Q K^T + bias) V"};

/// Where a causal mask stands when queries and keys differ in number.
enum class CausalAlign { bottom_right, top_left };
template <> inline constexpr auto names<CausalAlign> = std::array<std::string_view, 2>{"bottom_right", "top_left"};

/// The bare function: exact attention of given queries, keys and values.
struct FOVEATE_API Attention {
  static constexpr Form form{.card = &vanilla, .summary = "exact softmax attention of q, k, v", .example = R"(q = k = v = torch.randn(2, 4, 16, 8)
out, lse = torch.ops.foveate.attention(q, k, v, causal=True)
assert out.shape == (2, 4, 16, 8) and lse.shape == (2, 4, 16))"};
  struct Options {
    bool causal = false;
    CausalAlign causal_align = CausalAlign::bottom_right;
    optional<double> scale;
    double dropout = 0;
    optional<int64_t> window;
    optional<double> softcap;
    void fields(auto&& f) {
      f("causal", causal, "a query sees no key after it");
      f("causal_align", causal_align, "bottom_right: the last query meets the last key (decoding); top_left: the first meets the first");
      f("scale", scale, "multiplies q.k, default 1/sqrt(D)");
      f("dropout", dropout, "probability of dropping an attention weight where dropout_keep or dropout_seed is given (paper section 5.4)");
      f("window", window, "a query sees no key this many positions before it, or more; default no limit");
      f("softcap", softcap, "scaled products become softcap tanh(product / softcap); default no cap");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> mask, key_mask, key_lengths, bias, dropout_keep, dropout_seed;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,Hk,M,D] keys; Hk divides H");
      f("v", v, "[B,Hk,M,Dv] values");
      f("mask", mask, "bool [...] True where a key takes part, broadcastable to [B,H,N,M]");
      f("key_mask", key_mask, "bool [B,M] True where a key takes part");
      f("key_lengths", key_lengths, "int [B] number of keys of each sequence");
      f("bias", bias, "[...] added to the scaled scores, broadcastable to [B,H,N,M]");
      f("dropout_keep", dropout_keep, "bool [B,H,N,M] the draw of dropout: True where a weight is kept");
      f("dropout_seed", dropout_seed, "int [] seed of the draw, where dropout_keep is absent");
    }
  };
  struct Outputs {
    Tensor out, lse;
    void fields(auto&& f) {
      f("out", out, "[B,H,N,Dv] attended values");
      f("lse", lse, "[B,H,N] log-sum-exp of each query's scores; -inf where it sees no key");
    }
  };
  using Parameters = None;
  static Outputs forward(const Options&, const Parameters&, const Inputs&);
};

/// The layer: projections, heads, output projection.
struct FOVEATE_API MultiheadAttention {
  static constexpr Form form{.card = &vanilla,
                             .summary = "multi-head attention layer",
                             .returns = "[B,N,E] attended sequence",
                             .example = R"(layer = foveate.nn.MultiheadAttention(embed_dim=32, num_heads=4, causal=True)
out = layer(torch.randn(2, 16, 32))
assert out.shape == (2, 16, 32))"};
  struct Options {
    int64_t embed_dim = 512;
    int64_t num_heads = 8;
    optional<int64_t> context_dim;
    bool bias = true;
    bool causal = false;
    CausalAlign causal_align = CausalAlign::bottom_right;
    optional<double> scale;
    double dropout = 0;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E of the model (paper: 512)");
      f("num_heads", num_heads, "heads H, a divisor of E (paper: 8)");
      f("context_dim", context_dim, "width of the context, default E");
      f("bias", bias, "whether the projections have biases (the paper writes none; torch and BERT have them)");
      f("causal", causal, "a query sees no key after it");
      f("causal_align", causal_align, "bottom_right: the last query meets the last key (decoding); top_left: the first meets the first");
      f("scale", scale, "multiplies q.k, default 1/sqrt(E/H)");
      f("dropout", dropout, "probability of dropping an attention weight, in training or where dropout_keep is given (authors' code: 0.1)");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> context, key_mask, mask, score_bias, dropout_keep;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence that asks");
      f("context", context, "[B,M,*] sequence that is attended to, default x");
      f("key_mask", key_mask, "bool [B,*] True where a key takes part");
      f("mask", mask, "bool [...] True where a key takes part, broadcastable to [B,H,N,M]");
      f("score_bias", score_bias, "[...] added to the scaled scores, broadcastable to [B,H,N,M]");
      f("dropout_keep", dropout_keep, "bool [B,H,N,*] the draw of dropout: True where a weight is kept");
    }
  };
  using Parameters = layers::Heads;
  using State = layers::KVCache;
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training = false);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

}  // namespace foveate
