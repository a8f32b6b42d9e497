// SLiM Performer: a causal linear-attention Transformer whose layers pass on sums alone, so that gradients go chunk by chunk.   arXiv 2012.11346
//   out_i = phi(q_i) S_i / (phi(q_i) . z_i + 1e-16), S_i = sum_{j<=i} phi(k_j) v_j^T, z_i = sum_{j<=i} phi(k_j)
#pragma once
#include <foveate/contract.h>
#include <foveate/linear.h>
#include <foveate/memory.h>
#include <foveate/norm.h>

namespace foveate {

inline constexpr Card slim_performer{.slug = "slim-performer",
                                     .title = "SLiM Performer",
                                     .paper = "2012.11346",
                                     .year = 2020,
                                     .family = Family::linear,
                                     .cost = "O(N m D)",
                                     .causality = Causality::strict,
                                     .equation = "out_i = phi(q_i) S_i / (phi(q_i) . z_i + 1e-16), S_i = sum_{j<=i} phi(k_j) v_j^T"};

enum class SlimFeatures { relu, elu_plus_one, square, absolute, favor_plus };
template <> inline constexpr auto names<SlimFeatures> = std::array<std::string_view, 5>{"relu", "elu+1", "sqr", "abs", "favor+"};

/// What a layer trains.
struct SlimPerformerBlock {
  layers::Linear query, key, value, up, down;
  layers::LayerNorm attention_norm, feed_forward_norm;
  void fields(auto&& f) {
    f("query", query, "query projection");
    f("key", key, "key projection");
    f("value", value, "value projection");
    f("up", up, "U, to the inner width");
    f("down", down, "V, back");
    f("attention_norm", attention_norm, "normalisation of the attention's input, or of its result");
    f("feed_forward_norm", feed_forward_norm, "the same of the feed-forward network");
  }
};

namespace detail {
/// The options that layer and model have.
void slim_performer_fields(auto&& f, auto& o) {
  f("feature_type", o.feature_type, "phi: elementwise, or favor+, exp(R^T x - |x|^2/2) of x / D^(1/4)");
  f("favor_blocks", o.favor_blocks, "orthogonal blocks of D features that R has (authors' favor+_k: k)");
  f("post_layernorm", o.post_layernorm, "normalises the results before the residual sums, not the inputs (authors' on_gptln)");
  f("memory", o.memory, "full: keeps what all positions need for the gradient; minimal: computes it anew, a chunk at a time (paper)");
  f("chunk", o.chunk, "positions C that minimal memory takes at a time");
}
}  // namespace detail

/// A layer: attention without output projection, feed-forward network, residual sums.
struct FOVEATE_API SlimPerformerLayer {
  static constexpr Form form{.card = &slim_performer,
                             .summary = "causal Transformer layer with linear attention",
                             .returns = "[B,N,E] result",
                             .example = R"(layer = foveate.nn.SlimPerformerLayer(hidden_dim=32, n_heads=4, ffn_dim=64)
x = torch.randn(2, 16, 32)
first, state = layer.step(x[:, :10])
rest, state = layer.step(x[:, 10:], state=state)
torch.testing.assert_close(torch.cat([first, rest], 1), layer(x), rtol=1e-4, atol=1e-4))"};
  struct Options {
    int64_t hidden_dim = 0;
    int64_t n_heads = 0;
    int64_t ffn_dim = 0;
    SlimFeatures feature_type = SlimFeatures::square;
    int64_t favor_blocks = 1;
    bool post_layernorm = false;
    Memory memory = Memory::full;
    int64_t chunk = 1024;
    void fields(auto&& f) {
      f("hidden_dim", hidden_dim, "width E of the sequence", required);
      f("n_heads", n_heads, "heads H, a divisor of E", required);
      f("ffn_dim", ffn_dim, "inner width of the feed-forward network", required);
      detail::slim_performer_fields(f, *this);
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> key_mask, rfs;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence");
      f("key_mask", key_mask, "bool [B,N] True where a position takes part");
      f("rfs", rfs, "[H,D,R] the draw R of favor+, of each head; default a new one, orthogonal blocks of length sqrt(D)");
    }
  };
  using Parameters = SlimPerformerBlock;
  struct State {
    Tensor S, z;
    void fields(auto&& f) {
      f("S", S, "[B,H,R,D] sum of phi(k) v^T so far; float32 for half precision");
      f("z", z, "[B,H,R] sum of phi(k) so far");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  /// One draw serves a whole sequence, so that it must be given with favor+.
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// The language model: half of a token's vector is learned, half is its position's sinusoid.
struct FOVEATE_API SlimPerformer {
  static constexpr Form form{.card = &slim_performer,
                             .summary = "causal language model with linear attention",
                             .returns = "[B,N,V] logits of the next token",
                             .example = R"(model = foveate.nn.SlimPerformer(vocab_size=50, hidden_dim=32, n_layers=2, ffn_dim=64, n_heads=4)
tokens = torch.randint(50, (2, 12))
first, state = model.step(tokens[:, :6])
second, state = model.step(tokens[:, 6:], state=state)
torch.testing.assert_close(torch.cat([first, second], 1), model(tokens), rtol=1e-4, atol=1e-4))"};
  struct Options {
    int64_t vocab_size = 0;
    int64_t hidden_dim = 0;
    int64_t n_layers = 0;
    int64_t ffn_dim = 0;
    int64_t n_heads = 0;
    SlimFeatures feature_type = SlimFeatures::square;
    int64_t favor_blocks = 1;
    bool post_layernorm = false;
    Memory memory = Memory::full;
    int64_t chunk = 1024;
    void fields(auto&& f) {
      f("vocab_size", vocab_size, "tokens that ids name", required);
      f("hidden_dim", hidden_dim, "width E of the model, a multiple of 4 and of n_heads", required);
      f("n_layers", n_layers, "layers", required);
      f("ffn_dim", ffn_dim, "inner width of the feed-forward networks", required);
      f("n_heads", n_heads, "heads H", required);
      detail::slim_performer_fields(f, *this);
    }
  };
  struct Inputs {
    Tensor tokens;
    optional<Tensor> key_mask, rfs;
    void fields(auto&& f) {
      f("tokens", tokens, "int [B,N] token ids");
      f("key_mask", key_mask, "bool [B,N] True where a token takes part; padding at the end needs none");
      f("rfs", rfs, "[L,H,D,R] the draws R of favor+, of each layer and head; default new ones");
    }
  };
  struct Parameters {
    Tensor embedding;
    std::vector<SlimPerformerBlock> layers;
    foveate::layers::Linear output;
    void fields(auto&& f) {
      f("embedding", embedding, "[*,*] token embeddings, of half the model's width");
      f("layers", layers, "the layers");
      f("output", output, "projection to the vocabulary");
    }
  };
  struct State {
    Tensor position, S, z;
    void fields(auto&& f) {
      f("position", position, "int [] number of tokens so far");
      f("S", S, "[L,B,H,R,D] each layer's sum of phi(k) v^T so far");
      f("z", z, "[L,B,H,R] each layer's sum of phi(k) so far");
    }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

}  // namespace foveate
