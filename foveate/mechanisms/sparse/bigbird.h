// BigBird: o_i = softmax over the window, the random and the global blocks of i of (scale q_i.k_j), times v_j.  arXiv 2007.14062
#pragma once
#include <foveate/contract.h>
#include <foveate/kv_cache.h>
#include <foveate/linear.h>

namespace foveate {

inline constexpr Card bigbird{.slug = "bigbird",
                              .title = "BigBird",
                              .paper = "2007.14062",
                              .year = 2020,
                              .family = Family::sparse,
                              .cost = "O((g^2 + N (k + g + r)) D)",
                              .causality = Causality::none,
                              .equation = "o_i = sum over j in window, random and global blocks of i of softmax_j(scale q_i.k_j) v_j"};

/// Which tokens are global.
enum class BigBirdConstruction {
  itc,  ///< internal: the first and the last block of the sequence
  etc,  ///< external: extra tokens in front of it
};
template <> inline constexpr auto names<BigBirdConstruction> = std::array<std::string_view, 2>{"itc", "etc"};

/// Where the random blocks come from when they are not given.
enum class BigBirdDraw {
  uniform,  ///< different blocks, neither global nor in the window
  zero,     ///< block 0 each time
};
template <> inline constexpr auto names<BigBirdDraw> = std::array<std::string_view, 2>{"uniform", "zero"};

/// The options that attention and layer share.
void bigbird_fields(auto& o, auto&& f) {
  f("construction", o.construction,
    "which tokens are global: itc, the first and the last block (released models); etc, num_extra_globals tokens in front, from behind which blocks "
    "are counted");
  f("block", o.block, "tokens of a block (pretrained models: 64)");
  f("num_random_blocks", o.num_random_blocks, "r, random key blocks of each block of queries (released models: 3)");
  f("num_window_blocks", o.num_window_blocks, "width of the window in blocks, centred, odd (paper: 3)");
  f("num_extra_globals", o.num_extra_globals, "g, tokens in front that see all and that all see; of construction etc (paper: 256)");
  f("draw", o.draw,
    "random blocks where random_blocks is not given: uniform, different ones outside window and globals (paper); zero, block 0 r times, as "
    "transformers computes outside training: with it pretrained models give the same results");
  f("random_range", o.random_range,
    "random blocks come from the first so many blocks, the last of these excepted (released code: 2 r + 5 where there are more blocks; 1024 / block "
    "in lengths 1024, 3072 and 4096); default from all");
  f("seed", o.seed, "number of the draw: the same random blocks at every call, say the layer's number; none: drawn anew from the global generator");
  f("repeats", o.repeats,
    "construction itc: a random block counts as often as it is drawn, once more if it is also in the window or global (released block-sparse code); "
    "False: once (its dense simulation)");
  f("full_up_to", o.full_up_to, "sequences up to this length are attended in full (transformers: (5 + 2 r) block); 0 for none");
}

/// The bare function.
struct FOVEATE_API BigBirdAttention {
  static constexpr Form form{.card = &bigbird,
                             .summary = "attention to window, random and global blocks",
                             .returns = "[B,H,N,Dv] attended values; zeros where key_mask is False",
                             .example = R"(q = k = v = torch.randn(2, 4, 100, 8)
out = foveate.big_bird_attention(q, k, v, block=8, num_random_blocks=2, seed=0)
assert out.shape == (2, 4, 100, 8))"};
  struct Options {
    BigBirdConstruction construction = BigBirdConstruction::itc;
    int64_t block = 64;
    int64_t num_random_blocks = 3;
    int64_t num_window_blocks = 3;
    int64_t num_extra_globals = 256;
    BigBirdDraw draw = BigBirdDraw::uniform;
    optional<int64_t> random_range;
    optional<int64_t> seed;
    bool repeats = true;
    int64_t full_up_to = 0;
    optional<double> scale;
    void fields(auto&& f) {
      bigbird_fields(*this, f);
      f("scale", scale, "multiplies q.k, default 1/sqrt(D)");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> key_mask, random_blocks;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries; of construction etc, those of the extra globals first");
      f("k", k, "[B,H,N,D] keys");
      f("v", v, "[B,H,N,Dv] values");
      f("key_mask", key_mask, "bool [B,N] True where a token takes part");
      f("random_blocks", random_blocks,
        "int [*,*,*] key blocks, for each head or for all alike, of each block of queries; of construction itc, of all but the first and the last");
    }
  };
  using Parameters = None;
  static void check(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

/// The layer: query, key and value projections, no output projection.
struct FOVEATE_API BigBirdSelfAttention {
  static constexpr Form form{.card = &bigbird,
                             .summary = "self-attention layer",
                             .returns = "[B,N,E] attended sequence; zeros where key_mask is False",
                             .example = R"(layer = foveate.nn.BigBirdSelfAttention(embed_dim=32, num_heads=4, block=8, num_random_blocks=2)
out = layer(torch.randn(2, 100, 32))
assert out.shape == (2, 100, 32))"};
  struct Options {
    int64_t embed_dim = 768;
    int64_t num_heads = 12;
    BigBirdConstruction construction = BigBirdConstruction::itc;
    int64_t block = 64;
    int64_t num_random_blocks = 3;
    int64_t num_window_blocks = 3;
    int64_t num_extra_globals = 256;
    BigBirdDraw draw = BigBirdDraw::uniform;
    optional<int64_t> random_range;
    optional<int64_t> seed = 0;
    bool repeats = true;
    int64_t full_up_to = 0;
    bool use_bias = true;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E (paper: 768 in the base model)");
      f("num_heads", num_heads, "heads H, a divisor of E (paper: 12 in the base model)");
      bigbird_fields(*this, f);
      f("use_bias", use_bias, "whether the projections have biases");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> key_mask, random_blocks;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence; of construction etc, the extra globals first");
      f("key_mask", key_mask, "bool [B,N] True where a token takes part");
      f("random_blocks", random_blocks,
        "int [*,*,*] key blocks, for each head or for all alike, of each block of queries; of construction itc, of all but the first and the last");
    }
  };
  struct Parameters {
    layers::Linear query, key, value;
    void fields(auto&& f) {
      f("query", query, "query projection");
      f("key", key, "key projection");
      f("value", value, "value projection");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

/// Whether blocks see later blocks.
enum class BigBirdDirection { bidirectional, unidirectional };
template <> inline constexpr auto names<BigBirdDirection> = std::array<std::string_view, 2>{"bidirectional", "unidirectional"};

/// BigBird as DeepSpeed's BigBirdSparsityConfig lays it out: the first blocks are global, a block counts once.
struct FOVEATE_API BigBirdBlockAttention {
  static constexpr Form form{.card = &bigbird,
                             .summary = "attention to window, random and first blocks, the layout of DeepSpeed's BigBirdSparsityConfig",
                             .example = R"(q = k = v = torch.randn(1, 2, 100, 8)
out, layout = foveate.big_bird_block_attention(q, k, v, block=16, seed=0)
assert out.shape == (1, 2, 100, 8) and layout.shape == (2, 7, 7))"};
  struct Options {
    int64_t block = 16;
    bool different_layout_per_head = false;
    int64_t num_random_blocks = 1;
    int64_t num_sliding_window_blocks = 3;
    int64_t num_global_blocks = 1;
    BigBirdDirection attention = BigBirdDirection::bidirectional;
    bool causal = false;
    optional<int64_t> seed;
    optional<double> scale;
    void fields(auto&& f) {
      f("block", block, "tokens of a block (DeepSpeed: 16)");
      f("different_layout_per_head", different_layout_per_head, "each head its own random blocks");
      f("num_random_blocks", num_random_blocks, "random key blocks of each block of queries (DeepSpeed: 1)");
      f("num_sliding_window_blocks", num_sliding_window_blocks, "width of the window in blocks, centred (DeepSpeed: 3)");
      f("num_global_blocks", num_global_blocks, "first blocks that see all and that all see (DeepSpeed: 1)");
      f("attention", attention, "unidirectional: no block sees later blocks; inside a block see `causal`");
      f("causal", causal, "no token sees a later one");
      f("seed", seed, "number of the draw: the same random blocks at every call; none: drawn anew from the global generator");
      f("scale", scale, "multiplies q.k, default 1/sqrt(D)");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> key_mask, mask, random_blocks;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,H,N,D] keys");
      f("v", v, "[B,H,N,Dv] values");
      f("key_mask", key_mask, "bool [B,*] True where a key takes part; of all keys so far in a step");
      f("mask", mask, "bool [...] True where a key takes part, broadcastable to [B,H,N,N]");
      f("random_blocks", random_blocks, "int [*,*,*] key blocks of each block of queries, of one head or of each");
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
