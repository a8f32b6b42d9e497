// The Jukebox transformer: residual blocks whose patterns take turns; h + res_scale (a + mlp(norm(h + a))), a = attention(norm(h)).
// arXiv 2005.00341
#pragma once
#include <foveate/feed_forward.h>
#include <foveate/jukebox.h>
#include <foveate/norm.h>

namespace foveate {

/// The options of a residual block, which those of a stack share.
void jukebox_residual_fields(auto& o, auto&& f) {
  f("inner_dim", o.inner_dim, "inner width of the feed-forward network (authors' code: m_mlp E); default E");
  f("res_scale", o.res_scale, "multiplies what both sublayers add to the stream (authors' code: 1, or 1 / layers)");
  f("activation", o.activation, "of the feed-forward network (authors' code: quick_gelu)");
  f("layer_norm_eps", o.layer_norm_eps, "added to the variance (authors' code: 1e-5)");
  f("zero_out", o.zero_out, "the projections that add to the stream start at zero; those of pattern cross always do");
  f("dropout", o.dropout, "probability of dropping an element of what a sublayer adds, in training (authors' code: 0)");
}

/// The residual block.
struct FOVEATE_API JukeboxBlock {
  static constexpr Form form{.card = &jukebox,
                             .summary = "residual block of attention and feed-forward network",
                             .returns = "[B,N,E] sequence",
                             .example = R"(block = foveate.nn.JukeboxBlock(embed_dim=32, num_heads=2, pattern="block", block_length=8)
out = block(torch.randn(2, 30, 32))
assert out.shape == (2, 30, 32))"};
  struct Options {
    int64_t embed_dim = 0;
    int64_t num_heads = 1;
    optional<int64_t> attention_dim;
    optional<int64_t> inner_dim;
    JukeboxPattern pattern = JukeboxPattern::block;
    int64_t block_length = 64;
    optional<int64_t> blocks;
    int64_t spread = 1;
    int64_t prime_len = 0;
    bool prime_rounds_up = false;
    bool causal = true;
    double res_scale = 1;
    layers::Activation activation = layers::Activation::quick_gelu;
    double layer_norm_eps = 1e-5;
    double init_scale = 1;
    bool zero_out = false;
    double dropout = 0;
    void fields(auto&& f) {
      jukebox_width_fields(*this, f);
      f("pattern", pattern, "which keys a query sees, see jukebox_attention");
      jukebox_grid_fields(*this, f);
      jukebox_residual_fields(*this, f);
    }
    JukeboxMultiheadAttention::Options attention() const {
      return {.embed_dim = embed_dim,
              .num_heads = num_heads,
              .attention_dim = attention_dim,
              .pattern = pattern,
              .block_length = block_length,
              .blocks = blocks,
              .spread = spread,
              .prime_len = prime_len,
              .prime_rounds_up = prime_rounds_up,
              .causal = causal,
              .init_scale = init_scale,
              .zero_out = zero_out,
              .dropout = dropout};
    }
  };
  using Inputs = JukeboxMultiheadAttention::Inputs;
  struct Parameters {
    layers::LayerNorm norm_a;
    layers::Heads attention;
    layers::LayerNorm norm_b;
    layers::FeedForward feed_forward;
    void fields(auto&& f) {
      f("norm_a", norm_a, "before attention");
      f("attention", attention, "projections");
      f("norm_b", norm_b, "before the feed-forward network");
      f("feed_forward", feed_forward, "W2 f(W1 x)");
    }
  };
  using State = JukeboxState;
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// Blocks one after the other; no norm behind the last.
struct FOVEATE_API JukeboxTransformer {
  static constexpr Form form{.card = &jukebox,
                             .summary = "stack of residual blocks whose patterns take turns",
                             .returns = "[B,N,E] sequence",
                             .example = R"(stack = foveate.nn.JukeboxTransformer(embed_dim=32, num_heads=2, num_layers=3, block_length=8)
out = stack(torch.randn(2, 30, 32))
assert out.shape == (2, 30, 32))"};
  struct Options {
    int64_t embed_dim = 0;
    int64_t num_layers = 72;
    int64_t num_heads = 1;
    int64_t attn_order = 2;
    std::vector<int64_t> patterns = {};
    optional<int64_t> attention_dim;
    optional<int64_t> inner_dim;
    int64_t block_length = 64;
    optional<int64_t> blocks;
    int64_t spread = 1;
    int64_t prime_len = 0;
    bool prime_rounds_up = false;
    bool causal = true;
    double res_scale = 1;
    layers::Activation activation = layers::Activation::quick_gelu;
    double layer_norm_eps = 1e-5;
    double init_scale = 1;
    bool zero_out = false;
    double dropout = 0;
    void fields(auto&& f) {
      jukebox_width_fields(*this, f);
      f("num_layers", num_layers, "blocks (authors' priors: 72, and 79 with lyrics)");
      f("attn_order", attn_order,
        "which patterns take turns, a number of the authors' code. 0: dense; 1: row, column; 2: row, column, previous row; 3: row, summary; 4: row, "
        "spread; 5: row, summary, row, row; 6: as 2, and cross; 7: five times 2, then cross; 8: three times 2, then cross; 9: as 2, and dense; 10: "
        "three times 2, then seven of 8; 11, 12: as 2, but every sixteenth is cross, cross, dense (11) or prime, prime, dense (12) in turn");
      f("patterns", patterns,
        "code numbers of the patterns that take turns, instead of attn_order: 0 dense, 1 block, 2 transpose_block, 3 prev_block, 4 summary, 5 "
        "summary_spread, 6 cross, 7 prime");
      jukebox_grid_fields(*this, f);
      jukebox_residual_fields(*this, f);
    }
    JukeboxPattern pattern(int64_t layer) const;
    JukeboxBlock::Options block(int64_t layer) const;
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> context, key_mask, context_mask;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence");
      f("context", context, "[B,M,E] what layers of pattern cross attend to; in a step, needed by the first only");
      f("key_mask", key_mask, "bool [B,*] True where a position takes part as key; of all positions so far in a step");
      f("context_mask", context_mask, "bool [B,M] True where a position of the context takes part");
    }
  };
  struct Parameters {
    std::vector<JukeboxBlock::Parameters> blocks;
    void fields(auto&& f) { f("blocks", blocks, "residual blocks"); }
  };
  struct State {
    std::vector<Tensor> kept;
    void fields(auto&& f) { f("kept", kept, "[B,H,M,D] keys and values, summary keys and values, of each block"); }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

}  // namespace foveate
