// Sparse Transformer: o_i = softmax over S_i of (scale q_i.k_j), times v_j; S_i the union of two sparse sets A1, A2.  arXiv 1904.10509
#pragma once
#include <foveate/contract.h>
#include <foveate/feed_forward.h>
#include <foveate/heads.h>
#include <foveate/norm.h>

namespace foveate {

inline constexpr Card sparse_transformer{.slug = "sparse-transformer",
                                         .title = "Sparse Transformer",
                                         .paper = "1904.10509",
                                         .year = 2019,
                                         .family = Family::sparse,
                                         .cost = "O(N sqrt(N) D)",
                                         .causality = Causality::strict,
                                         .equation = "o_i = sum over j in S_i of softmax_j(scale q_i.k_j) v_j"};

/// Which keys a query sees, always up to itself.
enum class SparseSets { strided, fixed, local, all };
template <> inline constexpr auto names<SparseSets> = std::array<std::string_view, 4>{"strided", "fixed", "local", "all"};

/// How the two sets of a pattern are used.
enum class SparseCombine { merged, per_head, interleaved };
template <> inline constexpr auto names<SparseCombine> = std::array<std::string_view, 3>{"merged", "per_head", "interleaved"};

/// The options that attention, block and stack share.
void sparse_sets_fields(auto& o, auto&& f) {
  f("pattern", o.pattern,
    "strided: A1 the last stride + 1 positions, A2 every stride-th; fixed: A1 the query's own segment of stride positions, A2 the "
    "summary cells at the end of every segment; local: the last stride positions (authors' code); all: every position so far");
  f("stride", o.stride, "l, near sqrt(N) (paper: 128)");
  f("columns", o.columns, "c, summary cells of a segment, of pattern fixed (paper: 8, 16 or 32; block * vertsize of the authors' code)");
  f("column_groups", o.column_groups,
    "heads take turns among so many groups of summary cells, from the segment's end backwards (num_verts of the authors' code)");
  f("combine", o.combine, "merged: each head sees both sets; per_head: even heads see A1, odd ones A2; interleaved: even layers see A1, odd ones A2");
}

/// The bare function. The authors' attn_mode "strided" is pattern strided, interleaved, of layer 1; their block-sparse "fixed" is
/// pattern fixed, merged.
struct FOVEATE_API SparseTransformerAttention {
  static constexpr Form form{.card = &sparse_transformer,
                             .summary = "causal attention to the strided or fixed sets of the paper",
                             .returns = "[B,H,N,Dv] attended values",
                             .example = R"(q = k = v = torch.randn(1, 4, 100, 8)
out = foveate.sparse_transformer_attention(q, k, v, pattern="strided", stride=10)
assert out.shape == (1, 4, 100, 8))"};
  struct Options {
    SparseSets pattern = SparseSets::strided;
    int64_t stride = 128;
    int64_t columns = 8;
    int64_t column_groups = 1;
    SparseCombine combine = SparseCombine::merged;
    int64_t layer = 0;
    optional<double> scale;
    void fields(auto&& f) {
      sparse_sets_fields(*this, f);
      f("layer", layer, "the layer's number, from 0, for combine = interleaved");
      f("scale", scale, "multiplies q.k, default 1/sqrt(D)");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,Hk,N,D] keys; Hk divides H");
      f("v", v, "[B,Hk,N,Dv] values");
      f("key_mask", key_mask, "bool [B,*] True where a key takes part; of all keys so far in a step");
    }
  };
  using Parameters = None;
  struct State {
    Tensor k, v;
    void fields(auto&& f) {
      f("k", k, "[B,Hk,M,D] keys so far; of pattern local, the last stride - 1");
      f("v", v, "[B,Hk,M,Dv] their values");
    }
  };
  static void check(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// The residual block: a = attention(norm_a(h)), b = feed_forward(norm_b(h + a)), h + a + b.
struct FOVEATE_API SparseTransformerBlock {
  static constexpr Form form{.card = &sparse_transformer,
                             .summary = "residual block of attention and feed-forward network",
                             .returns = "[B,N,E] sequence",
                             .example = R"(block = foveate.nn.SparseTransformerBlock(embed_dim=32, num_heads=4, stride=8)
out = block(torch.randn(2, 64, 32))
assert out.shape == (2, 64, 32))"};
  struct Options {
    int64_t embed_dim = 512;
    int64_t num_heads = 8;
    SparseSets pattern = SparseSets::strided;
    int64_t stride = 128;
    int64_t columns = 8;
    int64_t column_groups = 1;
    SparseCombine combine = SparseCombine::merged;
    int64_t layer = 0;
    int64_t num_layers = 1;
    int64_t ff_mult = 4;
    double layer_norm_eps = 1e-5;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E (paper: 512 for text, 256 for images)");
      f("num_heads", num_heads, "heads H, a divisor of E (paper: 8 for text, 2 for images)");
      sparse_sets_fields(*this, f);
      f("layer", layer, "the layer's number, from 0, for combine = interleaved");
      f("num_layers", num_layers, "layers of the whole network: out and down start divided by sqrt(2 num_layers)");
      f("ff_mult", ff_mult, "inner width of the feed-forward network over E (paper: 4)");
      f("layer_norm_eps", layer_norm_eps, "added to the variance");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence");
      f("key_mask", key_mask, "bool [B,*] True where a position takes part as key; of all positions so far in a step");
    }
  };
  struct Parameters {
    layers::LayerNorm norm_a;
    layers::Heads attention;
    layers::LayerNorm norm_b;
    layers::FeedForward feed_forward;
    void fields(auto&& f) {
      f("norm_a", norm_a, "before attention");
      f("attention", attention, "projections");
      f("norm_b", norm_b, "before the feed-forward network");
      f("feed_forward", feed_forward, "W2 f(W1 x), f(x) = x sigmoid(1.702 x)");
    }
  };
  using State = SparseTransformerAttention::State;
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// Blocks one after the other; where interleaved, even ones see A1, odd ones A2.
struct FOVEATE_API SparseTransformerStack {
  static constexpr Form form{.card = &sparse_transformer,
                             .summary = "stack of residual blocks",
                             .returns = "[B,N,E] sequence",
                             .example = R"(stack = foveate.nn.SparseTransformerStack(embed_dim=32, num_heads=4, num_layers=2, stride=8)
out = stack(torch.randn(2, 64, 32))
assert out.shape == (2, 64, 32))"};
  struct Options {
    int64_t embed_dim = 512;
    int64_t num_heads = 8;
    int64_t num_layers = 30;
    SparseSets pattern = SparseSets::strided;
    int64_t stride = 128;
    int64_t columns = 8;
    int64_t column_groups = 1;
    SparseCombine combine = SparseCombine::interleaved;
    int64_t ff_mult = 4;
    double layer_norm_eps = 1e-5;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E (paper: 512 for text, 256 for images)");
      f("num_heads", num_heads, "heads H, a divisor of E (paper: 8 for text, 2 for images)");
      f("num_layers", num_layers, "blocks (paper: 30 for text, 128 for images)");
      sparse_sets_fields(*this, f);
      f("ff_mult", ff_mult, "inner width of the feed-forward network over E (paper: 4)");
      f("layer_norm_eps", layer_norm_eps, "added to the variance");
    }
    SparseTransformerBlock::Options block(int64_t layer) const {
      return {.embed_dim = embed_dim,
              .num_heads = num_heads,
              .pattern = pattern,
              .stride = stride,
              .columns = columns,
              .column_groups = column_groups,
              .combine = combine,
              .layer = layer,
              .num_layers = num_layers,
              .ff_mult = ff_mult,
              .layer_norm_eps = layer_norm_eps};
    }
  };
  using Inputs = SparseTransformerBlock::Inputs;
  struct Parameters {
    std::vector<SparseTransformerBlock::Parameters> blocks;
    void fields(auto&& f) { f("blocks", blocks, "residual blocks"); }
  };
  struct State {
    std::vector<Tensor> keys_and_values;
    void fields(auto&& f) { f("keys_and_values", keys_and_values, "[B,H,M,D] keys, then values, of each block"); }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// Layouts of blocks: which key blocks a block of queries sees.
enum class BlockLayout { dense, fixed, variable, local_sliding_window };
template <> inline constexpr auto names<BlockLayout> = std::array<std::string_view, 4>{"dense", "fixed", "variable", "local_sliding_window"};

enum class BlockDirection { standard, bidirectional, unidirectional };
template <> inline constexpr auto names<BlockDirection> = std::array<std::string_view, 3>{"standard", "bidirectional", "unidirectional"};

/// What the numbers of a float mask do.
enum class MaskMode { add, mul };
template <> inline constexpr auto names<MaskMode> = std::array<std::string_view, 2>{"add", "mul"};

/// Attention over layouts of blocks that generalise the paper's, as DeepSpeed defines them. Any length: the last block may be short.
struct FOVEATE_API BlockSparseAttention {
  static constexpr Form form{.card = &sparse_transformer,
                             .summary = "attention over a layout of blocks (DeepSpeed's configurations)",
                             .example = R"(q = k = v = torch.randn(1, 4, 100, 8)
out, layout = foveate.block_sparse_attention(q, k, v, config="fixed", block=16, causal=True)
assert out.shape == (1, 4, 100, 8) and layout.shape == (4, 7, 7))"};
  struct Options {
    BlockLayout config = BlockLayout::fixed;
    int64_t block = 16;
    bool different_layout_per_head = false;
    BlockDirection attention = BlockDirection::standard;
    int64_t num_local_blocks = 4;
    int64_t num_global_blocks = 1;
    bool horizontal_global_attention = false;
    int64_t num_different_global_patterns = 1;
    int64_t num_random_blocks = 0;
    std::vector<int64_t> local_window_blocks = {4};
    std::vector<int64_t> global_block_indices = {0};
    std::vector<int64_t> global_block_end_indices = {};
    int64_t num_sliding_window_blocks = 3;
    bool causal = false;
    MaskMode key_padding_mask_mode = MaskMode::add;
    MaskMode attn_mask_mode = MaskMode::mul;
    optional<double> scale;
    void fields(auto&& f) {
      f("config", config, "the layout");
      f("block", block, "positions of a block (DeepSpeed: 16)");
      f("different_layout_per_head", different_layout_per_head, "each head its own layout, where the configuration has several");
      f("attention", attention,
        "unidirectional: no block sees later blocks, but for global and random ones; inside a block see `causal`; standard: "
        "unidirectional for local_sliding_window, bidirectional else");
      f("num_local_blocks", num_local_blocks, "fixed: blocks of a window (DeepSpeed: 4)");
      f("num_global_blocks", num_global_blocks, "fixed: blocks at the end of every window that all see; 0 for none (DeepSpeed: 1)");
      f("horizontal_global_attention", horizontal_global_attention, "fixed, variable: global blocks see all blocks too; bidirectional only");
      f("num_different_global_patterns", num_different_global_patterns,
        "fixed: heads take turns among so many groups of global blocks, from the window's end backwards (DeepSpeed: 1)");
      f("num_random_blocks", num_random_blocks, "variable: random key blocks of each block of queries (DeepSpeed: 0)");
      f("local_window_blocks", local_window_blocks, "variable: blocks of the first windows; the last number repeats (DeepSpeed: [4])");
      f("global_block_indices", global_block_indices, "variable: blocks that all see, the first of each run (DeepSpeed: [0])");
      f("global_block_end_indices", global_block_end_indices, "variable: the block behind each run; empty: runs of one block");
      f("num_sliding_window_blocks", num_sliding_window_blocks, "local_sliding_window: width of the window, centred (DeepSpeed: 3)");
      f("causal", causal, "hides later positions inside every block too");
      f("key_padding_mask_mode", key_padding_mask_mode, "add: key_padding_mask is added to the scores; mul: 0 hides (DeepSpeed: add)");
      f("attn_mask_mode", attn_mask_mode, "add: attn_mask is added to the scores; mul: 0 hides (DeepSpeed: mul)");
      f("scale", scale, "multiplies q.k, default 1/sqrt(D)");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> key_mask, mask, rpe, key_padding_mask, attn_mask, random_blocks;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,H,N,D] keys");
      f("v", v, "[B,H,N,Dv] values");
      f("key_mask", key_mask, "bool [B,N] True where a key takes part");
      f("mask", mask, "bool [...] True where a key takes part, broadcastable to [B,H,N,N]");
      f("rpe", rpe, "[...] relative position term, added to the scaled scores, broadcastable to [B,H,N,N]");
      f("key_padding_mask", key_padding_mask, "[B,N] mask in numbers, see key_padding_mask_mode");
      f("attn_mask", attn_mask, "[N,N] mask in numbers, see attn_mask_mode");
      f("random_blocks", random_blocks, "int [*,*,*] variable: the draw, key blocks for each block of queries, of one head or of each");
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
  static void check(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&);
};

}  // namespace foveate
