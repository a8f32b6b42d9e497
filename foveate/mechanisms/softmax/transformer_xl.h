// Transformer-XL: s_ij = ((q_i + u).k_j + (q_i + v).R_d) / sqrt(D), d = distance of key j behind query i; keys reach back into a memory of
// earlier segments.   arXiv 1901.02860
#pragma once
#include <foveate/contract.h>
#include <foveate/feed_forward.h>
#include <foveate/kv_cache.h>
#include <foveate/norm.h>

namespace foveate {

inline constexpr Card transformer_xl{.slug = "transformer-xl",
                                     .title = "Transformer-XL",
                                     .paper = "1901.02860",
                                     .year = 2019,
                                     .family = Family::softmax,
                                     .cost = "O(N (N + mem_len) D)",
                                     .causality = Causality::strict,
                                     .equation = "out = softmax(((Q + u) K^T + (Q + v) R^T) / sqrt(D)) V, keys and values of [memory; segment]"};

/// The bare function, causal: the last query meets the last key.
struct FOVEATE_API TransformerXLAttention {
  static constexpr Form form{.card = &transformer_xl,
                             .summary = "causal attention with Transformer-XL's relative positions",
                             .returns = "[B,H,N,Dv] attended values",
                             .example = R"(attend = foveate.nn.TransformerXLAttention(num_heads=4, head_dim=8)
q, k, r = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 16, 8), torch.randn(4, 16, 8)
assert attend(q, k, k, r).shape == (2, 4, 6, 8))"};
  struct Options {
    int64_t num_heads = 0;
    int64_t head_dim = 0;
    int64_t mem_len = 0;
    bool same_length = false;
    optional<double> scale;
    double dropout = 0;
    void fields(auto&& f) {
      f("num_heads", num_heads, "heads H", required);
      f("head_dim", head_dim, "width D of a head", required);
      f("mem_len", mem_len, "width of the window of same_length");
      f("same_length", same_length, "every query sees the mem_len latest keys, itself included, and no more (the paper's evaluation)");
      f("scale", scale, "multiplies all four terms, default 1/sqrt(D)");
      f("dropout", dropout, "probability of dropping an attention weight where dropout_keep is given");
    }
  };
  struct Inputs {
    Tensor q, k, v, r;
    optional<Tensor> key_mask, mask, dropout_keep;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,Hk,M,D] keys, memory first; Hk divides H");
      f("v", v, "[B,Hk,M,Dv] values");
      f("r", r, "[H,*,D] projected positions, the last of distance 0, the one before it of distance 1, ...; farther keys use the first");
      f("key_mask", key_mask, "bool [B,*] True where a key takes part; in step, of all keys so far");
      f("mask", mask, "bool [...] True where a key takes part, broadcastable to [B,H,N,M]");
      f("dropout_keep", dropout_keep, "bool [B,H,N,*] the draw of dropout: True where a weight is kept");
    }
  };
  struct Parameters {
    Tensor content_bias, position_bias;
    void fields(auto&& f) {
      f("content_bias", content_bias, "[H,D] added to a query that asks a key (the paper's u)");
      f("position_bias", position_bias, "[H,D] added to a query that asks a position (the paper's v)");
    }
  };
  using State = layers::KVCache;
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// What a distance is: to a query, or, in the last two, baselines without relative scores, to a token of the layer's input, counted from
/// the end of the segment.
enum class XLPosition {
  sinusoid,          ///< a projected sinusoid (the paper)
  learned,           ///< a key and a bias of its own: (q + u).k + q.R_d + b_d (authors' code: attn_type 1)
  absolute,          ///< a sinusoid, added to the embeddings; layers have none (authors' code: attn_type 2)
  absolute_learned,  ///< a row of a table, added to what a layer is given, memory included (authors' code: attn_type 3)
};
template <> inline constexpr auto names<XLPosition> = std::array<std::string_view, 4>{"sinusoid", "learned", "absolute", "absolute_learned"};

/// The biases of queries, which the layers of a model may share.
struct XLBias {
  optional<Tensor> content;   // [H,D]; none with absolute positions
  optional<Tensor> position;  // [H,D]; none with learned positions

  void fields(auto&& f) {
    f("content", content, "[H,D] added to a query that asks a key (the paper's u)");
    f("position", position, "[H,D] added to a query that asks a position (the paper's v)");
  }
};

/// The other tensors of a layer.
struct FOVEATE_API XLBlock {
  layers::Linear qkv, out;
  optional<layers::Linear> relative;
  optional<Tensor> distance_keys;  // [K,H,D]
  optional<Tensor> distance_bias;  // [K,H]
  layers::LayerNorm attention_norm;
  layers::FeedForward feed_forward;
  layers::LayerNorm feed_forward_norm;

  void fields(auto&& f) {
    f("qkv", qkv, "query, key and value projections, stacked");
    f("out", out, "output projection");
    f("relative", relative, "projection of sinusoids");
    f("distance_keys", distance_keys, "[*,H,D] learned keys of distances, the last of distance 0; absolute_learned adds them to the input");
    f("distance_bias", distance_bias, "[*,H] learned biases of distances, likewise");
    f("attention_norm", attention_norm, "normalises around the attention");
    f("feed_forward", feed_forward, "position-wise network");
    f("feed_forward_norm", feed_forward_norm, "normalises around the network");
  }
};

/// One layer: attention over memory and segment, then the position-wise network.
struct FOVEATE_API TransformerXLLayer {
  static constexpr Form form{.card = &transformer_xl,
                             .summary = "one layer, attending from a segment to its memory and itself",
                             .returns = "[B,N,E] the segment, transformed",
                             .example = R"(layer = foveate.nn.TransformerXLLayer(embed_dim=32, num_heads=4, head_dim=8, inner_dim=64)
x, memory = torch.randn(2, 6, 32), torch.randn(2, 10, 32)
assert layer(x, memory).shape == (2, 6, 32))"};
  struct Options {
    int64_t embed_dim = 512;
    int64_t num_heads = 8;
    int64_t head_dim = 64;
    int64_t inner_dim = 2048;
    int64_t mem_len = 512;
    bool same_length = false;
    optional<int64_t> clamp_len;
    bool pre_norm = false;
    XLPosition position = XLPosition::sinusoid;
    int64_t table_length = 1024;
    double dropout = 0;
    double attention_dropout = 0;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E of the model, even (authors' enwik8 base: 512)");
      f("num_heads", num_heads, "heads H (authors' enwik8 base: 8)");
      f("head_dim", head_dim, "width D of a head; H D need not be E (authors' enwik8 base: 64)");
      f("inner_dim", inner_dim, "inner width of the position-wise network (authors' enwik8 base: 2048)");
      f("mem_len", mem_len, "tokens of memory a model keeps, and the window of same_length (authors' enwik8 base: 512)");
      f("same_length", same_length, "every query sees the mem_len latest keys, itself included, and no more (the paper's evaluation)");
      f("clamp_len", clamp_len, "farther keys count as this far (authors' evaluation: 400 to 1000); default no clamping");
      f("pre_norm", pre_norm, "normalises before the sublayers instead of after the residual sums (authors' code: False)");
      f("position", position,
        "what a distance is: a projected sinusoid (paper); a learned key and bias; nothing to the layer; a row added to its input "
        "(authors' attn_type 0 to 3)");
      f("table_length", table_length, "distances with learned keys (authors' code: segment + ext_len + mem_len)");
      f("dropout", dropout, "probability of dropping elsewhere, in training or where a draw is given (authors' enwik8 base: 0.1)");
      f("attention_dropout", attention_dropout, "the same of an attention weight (authors' dropatt, enwik8 base: 0)");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> memory, key_mask, mask, attention_keep, position_keep, output_keep, inner_keep, network_keep;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] segment");
      f("memory", memory, "[B,*,E] what this layer was given for the tokens before the segment");
      f("key_mask", key_mask, "bool [B,*] True where a token of memory or segment takes part");
      f("mask", mask, "bool [...] True where a key takes part, broadcastable to [B,H,N,M]");
      f("attention_keep", attention_keep, "bool [B,H,N,*] the draw of attention_dropout: True where a weight is kept");
      f("position_keep", position_keep, "bool [*,E] the draw of dropout for the sinusoids, from far to near");
      f("output_keep", output_keep, "bool [B,N,E] the draw of dropout for the attention's output");
      f("inner_keep", inner_keep, "bool [B,N,*] the draw of dropout inside the network");
      f("network_keep", network_keep, "bool [B,N,E] the draw of dropout for the network's output");
    }
  };
  struct Parameters {
    XLBlock block;
    XLBias bias;
    void fields(auto&& f) {
      f("block", block, "projections, norms and network");
      f("bias", bias, "biases of queries");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training = false);
};

FOVEATE_API XLBlock init_xl_block(const TransformerXLLayer::Options&);
FOVEATE_API XLBias init_xl_bias(const TransformerXLLayer::Options&);

/// [M,E] sinusoids of the distances M - 1, ..., 0, none beyond clamp_len, as x.
FOVEATE_API Tensor xl_sinusoids(const TransformerXLLayer::Options&, const Size& length, const Tensor& x);

}  // namespace foveate
