// Jukebox: positions as a grid of rows; each layer attends within rows, within columns, to the row before, or to summaries of rows:
// o_i = sum over j in S_i of exp(scale q_i.k_j) v_j / (null keys + sum over j in S_i of exp(scale q_i.k_j)).   arXiv 2005.00341
#pragma once
#include <foveate/contract.h>
#include <foveate/heads.h>

namespace foveate {

inline constexpr Card jukebox{.slug = "jukebox",
                              .title = "Jukebox factored attention",
                              .paper = "2005.00341",
                              .year = 2020,
                              .family = Family::sparse,
                              .cost = "O(N sqrt(N) D)",
                              .causality = Causality::strict,
                              .equation = "o_i = sum over j in S_i of exp(scale q_i.k_j) v_j / (null_i + sum over j in S_i of exp(scale q_i.k_j))"};

/// Which keys a query sees, in the order of the authors' code numbers.
enum class JukeboxPattern { dense, block, transpose_block, prev_block, summary, summary_spread, cross, prime };
template <> inline constexpr auto names<JukeboxPattern> =
    std::array<std::string_view, 8>{"dense", "block", "transpose_block", "prev_block", "summary", "summary_spread", "cross", "prime"};

/// The options of the grid that all forms share.
void jukebox_grid_fields(auto& o, auto&& f) {
  f("block_length", o.block_length, "positions of a row, the columns of the grid (authors' code: length / blocks, 64 of the top prior)");
  f("blocks", o.blocks,
    "rows of the whole grid, of which the last is never summarised (authors' code: 128 of the top prior); default not known: every row that "
    "is finished is summarised");
  f("spread", o.spread, "summary_spread: keys at the end of a row that summarise it, and as many null keys");
  f("prime_len", o.prime_len, "prime: tokens in front that all see");
  f("prime_rounds_up", o.prime_rounds_up, "prime: all see (prime_len / blocks + 1) blocks tokens, too many by up to `blocks` (authors' code: True)");
  f("causal", o.causal, "a query sees no key after it (authors' code: True of priors, False of lyric encoders)");
}

/// The options of the projections that layer, block and stack share.
void jukebox_width_fields(auto& o, auto&& f) {
  f("embed_dim", o.embed_dim, "width E (authors' top prior: 4800)", required);
  f("num_heads", o.num_heads, "heads H, a divisor of attention_dim (authors' priors: 1 to 8)");
  f("attention_dim", o.attention_dim, "width of all heads together, H D (authors' code: n_state); default E / 4, as in the authors' priors");
  f("init_scale", o.init_scale, "weights start normal with deviation 0.02 init_scale (authors' priors: 0.1 to 0.7)");
}

/// What a layer that streams keeps.
struct JukeboxState {
  Tensor k, v, summary_k, summary_v;
  void fields(auto&& f) {
    f("k", k,
      "[B,Hk,M,D] keys: of the row at hand (block, summary, summary_spread), of the row before too (prev_block), of the front (prime), all so far "
      "(dense, transpose_block), of the context (cross)");
    f("v", v, "[B,Hk,M,Dv] their values");
    f("summary_k", summary_k, "[B,Hk,S,D] keys that summarise finished rows; none but for summary and summary_spread");
    f("summary_v", summary_v, "[B,Hk,S,Dv] their values");
  }
};

/// The bare function.
struct FOVEATE_API JukeboxAttention {
  static constexpr Form form{.card = &jukebox,
                             .summary = "attention within a row, within a column, to the row before, or to summaries of rows",
                             .returns = "[B,H,N,Dv] attended values",
                             .example = R"(q = k = v = torch.randn(1, 4, 100, 8)
out = foveate.jukebox_attention(q, k, v, pattern="transpose_block", block_length=16)
assert out.shape == (1, 4, 100, 8))"};
  struct Options {
    JukeboxPattern pattern = JukeboxPattern::block;
    int64_t block_length = 64;
    optional<int64_t> blocks;
    int64_t spread = 1;
    int64_t prime_len = 0;
    bool prime_rounds_up = false;
    bool causal = true;
    optional<double> scale;
    void fields(auto&& f) {
      f("pattern", pattern,
        "dense: all; block: the query's row; transpose_block: its column; prev_block: the row before, whole; summary: the last of every row, and a "
        "null key (logit 0, value 0); summary_spread: the last `spread` of every row, and as many null keys; cross: all keys of another sequence; "
        "prime: the first prime_len");
      jukebox_grid_fields(*this, f);
      f("scale", scale, "multiplies q.k, default 1/sqrt(D)");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,Hk,M,D] keys, as many as queries but for pattern cross; Hk divides H");
      f("v", v, "[B,Hk,M,Dv] values");
      f("key_mask", key_mask, "bool [B,*] True where a key takes part; of all keys so far in a step");
    }
  };
  using Parameters = None;
  using State = JukeboxState;
  static void check(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// The layer: projections to a narrower width, heads, output projection.
struct FOVEATE_API JukeboxMultiheadAttention {
  static constexpr Form form{
      .card = &jukebox,
      .summary = "multi-head attention layer",
      .returns = "[B,N,E] attended sequence",
      .example = R"(layer = foveate.nn.JukeboxMultiheadAttention(embed_dim=32, num_heads=2, pattern="prev_block", block_length=8)
out = layer(torch.randn(2, 30, 32))
assert out.shape == (2, 30, 32))"};
  struct Options {
    int64_t embed_dim = 0;
    int64_t num_heads = 1;
    optional<int64_t> attention_dim;
    JukeboxPattern pattern = JukeboxPattern::block;
    int64_t block_length = 64;
    optional<int64_t> blocks;
    int64_t spread = 1;
    int64_t prime_len = 0;
    bool prime_rounds_up = false;
    bool causal = true;
    double init_scale = 1;
    bool zero_out = false;
    double dropout = 0;
    void fields(auto&& f) {
      jukebox_width_fields(*this, f);
      f("pattern", pattern, "which keys a query sees, see jukebox_attention");
      jukebox_grid_fields(*this, f);
      f("zero_out", zero_out, "the output projection starts at zero; that of pattern cross always does");
      f("dropout", dropout, "probability of dropping an element of the result in training (authors' code: 0)");
    }
    JukeboxAttention::Options attention() const {
      return {.pattern = pattern,
              .block_length = block_length,
              .blocks = blocks,
              .spread = spread,
              .prime_len = prime_len,
              .prime_rounds_up = prime_rounds_up,
              .causal = causal,
              .scale = {}};
    }
    int64_t width() const { return attention_dim.value_or(embed_dim / 4); }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> context, key_mask;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence that asks");
      f("context", context, "[B,M,E] what pattern cross attends to; in a step, needed by the first only");
      f("key_mask", key_mask, "bool [B,*] True where a key takes part; of all keys so far in a step");
    }
  };
  using Parameters = layers::Heads;
  using State = JukeboxState;
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

}  // namespace foveate
