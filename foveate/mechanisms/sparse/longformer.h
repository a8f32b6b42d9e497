// Longformer: o_i = softmax over W(i) and the global tokens of (scale q_i.k_j), times v_j; a global token sees all.  arXiv 2004.05150
#pragma once
#include <foveate/contract.h>
#include <foveate/kv_cache.h>
#include <foveate/linear.h>

namespace foveate {

inline constexpr Card longformer{.slug = "longformer",
                                 .title = "Longformer",
                                 .paper = "2004.05150",
                                 .year = 2020,
                                 .family = Family::sparse,
                                 .cost = "O(N (window + globals) D)",
                                 .causality = Causality::strict,
                                 .equation = "o_i = sum over j in W(i) and G of softmax_j(scale q_i.k_j) v_j"};

/// The local set W(i).
enum class LongformerWindow {
  sliding,             ///< i - w d, ..., i - d, i, i + d, ..., i + w d
  chunks,              ///< the chunk of w tokens that holds i, and both its neighbours
  chunks_as_released,  ///< the same, with the released code's empty keys before the first chunk and behind the last
};
template <> inline constexpr auto names<LongformerWindow> = std::array<std::string_view, 3>{"sliding", "chunks", "chunks_as_released"};

/// The options that attention and layer share.
void longformer_fields(auto& o, auto&& f) {
  f("window", o.window,
    "w, tokens seen on each side (paper: 256 in the base model, 32 to 512 in its language model; attention_window of transformers is 2 w)");
  f("window_kind", o.window_kind,
    "sliding: every dilation-th token up to window steps away; chunks: the chunk of window tokens and both its neighbours (sliding_chunks_no_overlap "
    "of the authors' code); chunks_as_released: the same with that code's flaw, tokens of the first and last chunk share their attention with keys "
    "of zeros before and behind the sequence");
  f("dilation", o.dilation, "d, steps between the tokens seen: one number, or one for each head (paper: 1; 2 heads of the higher layers dilated)");
  f("causal", o.causal, "no token sees a later one (the paper's language model)");
  f("global_tokens", o.global_tokens, "so many first tokens are global in every sequence: the fast way where their places are known");
  f("max_globals", o.max_globals,
    "room for so many global tokens of global_mask in a sequence, the first ones; others count as local. The cost then grows with it; default "
    "any number, at the cost of dense attention");
}

/// The bare function.
struct FOVEATE_API LongformerAttention {
  static constexpr Form form{.card = &longformer,
                             .summary = "attention of each token to a window and the global tokens, of global tokens to all",
                             .returns = "[B,H,N,Dv] attended values; zeros where key_mask is False",
                             .example = R"(q = k = v = torch.randn(2, 4, 100, 8)
global_mask = torch.zeros(2, 100, dtype=torch.bool).index_fill(1, torch.tensor([0, 50]), True)
out = foveate.longformer_attention(q, k, v, global_mask=global_mask, window=8, max_globals=2)
assert out.shape == (2, 4, 100, 8))"};
  struct Options {
    int64_t window = 256;
    LongformerWindow window_kind = LongformerWindow::sliding;
    std::vector<int64_t> dilation = {1};
    bool causal = false;
    int64_t global_tokens = 0;
    optional<int64_t> max_globals;
    double dropout = 0;
    optional<double> scale;
    void fields(auto&& f) {
      longformer_fields(*this, f);
      f("dropout", dropout, "probability of dropping an attention weight where dropout_seed is given (paper: 0.1)");
      f("scale", scale, "multiplies q.k, default 1/sqrt(D)");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> key_mask, global_mask, q_global, k_global, v_global, dropout_seed;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,H,N,D] keys");
      f("v", v, "[B,H,N,Dv] values");
      f("key_mask", key_mask, "bool [B,*] True where a token takes part; of all tokens so far in a step");
      f("global_mask", global_mask, "bool [B,N] True where a token is global");
      f("q_global", q_global, "[B,H,N,D] queries of global tokens, default q");
      f("k_global", k_global, "[B,H,N,D] keys that global tokens ask, default k");
      f("v_global", v_global, "[B,H,N,Dv] values of these keys, default v");
      f("dropout_seed", dropout_seed, "int [] seed of the draw of dropout");
    }
  };
  using Parameters = None;
  struct State {
    Tensor k, v;
    std::vector<Tensor> globals;
    void fields(auto&& f) {
      f("k", k, "[B,H,M,D] keys of the global tokens and of those that a later window reaches");
      f("v", v, "[B,H,M,Dv] their values");
      f("globals", globals, "[...] keys and values that global tokens ask, of the global tokens");
    }
  };
  static void check(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// The layer: projections of local attention, others of global attention, no output projection unless asked for.
struct FOVEATE_API LongformerSelfAttention {
  static constexpr Form form{.card = &longformer,
                             .summary = "self-attention layer with projections of its own for global tokens",
                             .returns = "[B,N,E] attended sequence; zeros where key_mask is False",
                             .example = R"(layer = foveate.nn.LongformerSelfAttention(embed_dim=32, num_heads=4, window=8)
global_mask = torch.zeros(2, 100, dtype=torch.bool).index_fill(1, torch.tensor([0]), True)
out = layer(torch.randn(2, 100, 32), global_mask=global_mask)
assert out.shape == (2, 100, 32))"};
  struct Options {
    int64_t embed_dim = 768;
    int64_t num_heads = 12;
    int64_t window = 256;
    LongformerWindow window_kind = LongformerWindow::sliding;
    std::vector<int64_t> dilation = {1};
    bool causal = false;
    int64_t global_tokens = 0;
    optional<int64_t> max_globals;
    bool output_projection = false;
    double dropout = 0;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E (paper: 768 in the base model)");
      f("num_heads", num_heads, "heads H, a divisor of E (paper: 12 in the base model)");
      longformer_fields(*this, f);
      f("output_projection", output_projection, "a linear map of the result, as in the encoder of LED (released code: none)");
      f("dropout", dropout, "probability of dropping an attention weight in training, or where dropout_seed is given (paper: 0.1)");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> key_mask, global_mask, dropout_seed;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence");
      f("key_mask", key_mask, "bool [B,*] True where a token takes part; of all tokens so far in a step");
      f("global_mask", global_mask, "bool [B,N] True where a token is global");
      f("dropout_seed", dropout_seed, "int [] seed of the draw of dropout");
    }
  };
  struct Parameters {
    layers::Linear query, key, value, query_global, key_global, value_global;
    optional<layers::Linear> output;
    void fields(auto&& f) {
      f("query", query, "queries of local attention");
      f("key", key, "keys of local attention");
      f("value", value, "values of local attention");
      f("query_global", query_global, "queries of global tokens");
      f("key_global", key_global, "keys that global tokens ask");
      f("value_global", value_global, "values that global tokens take");
      f("output", output, "output projection");
    }
  };
  using State = LongformerAttention::State;
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training = false);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// Whether blocks see later blocks.
enum class LongformerDirection { bidirectional, unidirectional };
template <> inline constexpr auto names<LongformerDirection> = std::array<std::string_view, 2>{"bidirectional", "unidirectional"};

/// Longformer by blocks, as DeepSpeed's BSLongformerSparsityConfig lays it out.
struct FOVEATE_API LongformerBlockAttention {
  static constexpr Form form{.card = &longformer,
                             .summary = "attention to a window of blocks and to global blocks, the layout of DeepSpeed's BSLongformerSparsityConfig",
                             .example = R"(q = k = v = torch.randn(1, 2, 100, 8)
out, layout = foveate.longformer_block_attention(q, k, v, block=16, num_sliding_window_blocks=3)
assert out.shape == (1, 2, 100, 8) and layout.shape == (2, 7, 7))"};
  struct Options {
    int64_t block = 16;
    int64_t num_sliding_window_blocks = 3;
    std::vector<int64_t> global_block_indices = {0};
    std::vector<int64_t> global_block_end_indices = {};
    LongformerDirection attention = LongformerDirection::bidirectional;
    bool causal = false;
    optional<double> scale;
    void fields(auto&& f) {
      f("block", block, "tokens of a block (DeepSpeed: 16)");
      f("num_sliding_window_blocks", num_sliding_window_blocks, "width of the window in blocks, centred (DeepSpeed: 3)");
      f("global_block_indices", global_block_indices, "blocks that see all and that all see, the first of each run (DeepSpeed: [0])");
      f("global_block_end_indices", global_block_end_indices, "the block behind each run; empty: runs of one block");
      f("attention", attention, "unidirectional: no block sees later blocks; inside a block see `causal`");
      f("causal", causal, "no token sees a later one");
      f("scale", scale, "multiplies q.k, default 1/sqrt(D)");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> key_mask, mask;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,H,N,D] keys");
      f("v", v, "[B,H,N,Dv] values");
      f("key_mask", key_mask, "bool [B,*] True where a key takes part; of all keys so far in a step");
      f("mask", mask, "bool [...] True where a key takes part, broadcastable to [B,H,N,N]");
    }
  };
  struct Outputs {
    Tensor out, layout;
    void fields(auto&& f) {
      f("out", out, "[B,H,N,Dv] attended values");
      f("layout", layout, "bool [H,T,T] True where a block of queries sees a block of keys");
    }
  };
  using Parameters = None;
  using State = layers::KVCache;
  static void check(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Outputs, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

}  // namespace foveate
