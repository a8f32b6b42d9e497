// BP-Transformer: tokens and the spans of a binary partition attend along its edges, fine near and coarse far:
// o_b = sum over edges a -> b of softmax_a(q_b.(k_a + r_type) / sqrt(d)) v_a.   arXiv 1911.04070
#pragma once
#include <foveate/binary_partition.h>
#include <foveate/contract.h>
#include <foveate/feed_forward.h>
#include <foveate/heads.h>
#include <foveate/norm.h>

namespace foveate {

inline constexpr Card bp_transformer{.slug = "bp-transformer",
                                     .title = "BP-Transformer",
                                     .paper = "1911.04070",
                                     .year = 2019,
                                     .family = Family::sparse,
                                     .cost = "O(N k log(N / k) D)",
                                     .causality = Causality::strict,
                                     .equation = "o_b = sum over edges a -> b of softmax_a(q_b.(k_a + r_type(a,b)) / sqrt(d)) v_a"};

/// The options of the partition and of a block that all forms share.
void bp_block_fields(auto& o, auto&& f) {
  f("embed_dim", o.embed_dim, "width E", required);
  f("num_heads", o.num_heads, "heads H, a divisor of E (authors' code: 8)");
  f("inner_dim", o.inner_dim, "inner width of the feed-forward network (authors' code: 2048)");
  f("neighbors", o.neighbors, "k, nodes that a token reads of each level on each side (authors' code: step; paper: 4, and 64 for characters)");
  f("clip_dist", o.clip_dist,
    "levels above the tokens whose edges have relative positions of their own; higher levels share those of the last (authors' code: 2 to 6)");
  f("causal", o.causal, "tokens read nothing after them (authors' code: triu)");
  f("rel_pos", o.rel_pos, "learned relative positions: a key for each type of edge, of all heads (authors' code: True)");
  f("memory", o.memory, "tokens attend to a memory too, as a decoder's do to the encoder: memory_states must be given");
  f("right_overflow", o.right_overflow,
    "where a token reads on its right just behind the end of a level, it reads the leftmost node of the next level instead of nothing (authors' "
    "code: True)");
  f("layer_norm_eps", o.layer_norm_eps, "added to the variance (authors' code: 1e-5)");
  f("attention_dropout", o.attention_dropout, "probability of dropping an attention weight in training (authors' code: 0.1)");
  f("dropout", o.dropout,
    "probability of dropping an element of what a sublayer adds, and inside the feed-forward network, in training (authors' code: 0.1)");
}

/// The parameters of a tokens' attention to a memory.
struct BPMemory {
  layers::Heads attention;
  layers::LayerNorm norm;
  void fields(auto&& f) {
    f("attention", attention, "projections, without biases");
    f("norm", norm, "after the residual sum");
  }
};

/// The block: every node at once from the states before, norms after the residual sums.
struct FOVEATE_API BPTransformerBlock {
  static constexpr Form form{.card = &bp_transformer,
                             .summary = "residual block over tokens and the spans of their binary partition",
                             .example = R"(block = foveate.nn.BPTransformerBlock(embed_dim=32, num_heads=4, inner_dim=64)
tokens, spans = block(torch.randn(2, 50, 32))
tokens, spans = block(tokens, spans)
assert tokens.shape == (2, 50, 32) and spans.shape == (2, 25 + 13 + 7 + 4 + 2 + 1, 32))"};
  struct Options {
    int64_t embed_dim = 0;
    int64_t num_heads = 8;
    int64_t inner_dim = 2048;
    int64_t neighbors = 4;
    int64_t clip_dist = 4;
    bool causal = false;
    bool rel_pos = true;
    bool memory = false;
    bool right_overflow = false;
    double layer_norm_eps = 1e-5;
    double attention_dropout = 0.1;
    double dropout = 0.1;
    void fields(auto&& f) { bp_block_fields(*this, f); }
    patterns::BinaryPartition partition() const {
      return {.step = neighbors, .clip_dist = clip_dist, .causal = causal, .right_overflow = right_overflow};
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> spans, lengths, memory_states, memory_mask, dropout_seed;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] states of tokens");
      f("spans", spans, "[B,*,E] states of spans, level by level, the root last; default zeros");
      f("lengths", lengths, "int [B] tokens of each sequence, which is partitioned by itself; the rest is padding");
      f("memory_states", memory_states, "[B,M,E] the memory");
      f("memory_mask", memory_mask, "bool [B,M] True where a state of the memory takes part");
      f("dropout_seed", dropout_seed, "int [] seed of the draw of attention_dropout, which is then drawn in evaluation too");
    }
  };
  struct Parameters {
    layers::Heads attention;
    optional<Tensor> relative;
    layers::LayerNorm norm;
    optional<BPMemory> memory;
    layers::FeedForward feed_forward;
    layers::LayerNorm feed_forward_norm;
    void fields(auto&& f) {
      f("attention", attention, "projections, without biases");
      f("relative", relative, "[*,*] a key of width E / H for each type of edge, (2 neighbors + 1) (clip_dist + 1) of them");
      f("norm", norm, "after the residual sum");
      f("memory", memory, "attention to the memory");
      f("feed_forward", feed_forward, "W2 relu(W1 h)");
      f("feed_forward_norm", feed_forward_norm, "after its residual sum");
    }
  };
  struct Outputs {
    Tensor tokens, spans;
    void fields(auto&& f) {
      f("tokens", tokens, "[B,N,E] states of tokens");
      f("spans", spans, "[B,*,E] states of spans, level by level, the root last, of two tokens or more; in a step, of spans that end in it");
    }
  };
  struct State {
    std::vector<Tensor> kept;
    void fields(auto&& f) { f("kept", kept, "[B,H,*,d] keys and values of tokens so far, of spans that have ended, and of the memory"); }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&, bool training);
  static std::pair<Outputs, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// The model: embeddings are normed, spans start from zeros, blocks follow. The root serves classification, tokens serve language models.
struct FOVEATE_API BPTransformer {
  static constexpr Form form{.card = &bp_transformer,
                             .summary = "stack of blocks over embedded tokens and the spans of their binary partition",
                             .example = R"(model = foveate.nn.BPTransformer(embed_dim=32, num_layers=2, num_heads=4, inner_dim=64, causal=True).eval()
x = torch.randn(2, 50, 32)
tokens, spans = model(x)
root = spans[:, -1]
first, _, state = model.step(x[:, :30])
rest, _, state = model.step(x[:, 30:], state=state)
assert torch.allclose(torch.cat([first, rest], 1), tokens, atol=1e-4))"};
  struct Options {
    int64_t embed_dim = 0;
    int64_t num_layers = 6;
    int64_t num_heads = 8;
    int64_t inner_dim = 2048;
    int64_t neighbors = 4;
    int64_t clip_dist = 4;
    bool causal = false;
    bool rel_pos = true;
    bool memory = false;
    bool right_overflow = false;
    double layer_norm_eps = 1e-5;
    double attention_dropout = 0.1;
    double dropout = 0.1;
    bool input_norm = true;
    optional<int64_t> max_len;
    void fields(auto&& f) {
      f("num_layers", num_layers, "blocks (paper: 12 for characters)");
      bp_block_fields(*this, f);
      f("input_norm", input_norm, "embeddings are dropped out and normed first (authors' code: True)");
      f("max_len", max_len,
        "most tokens of a sequence, each place with a learned embedding that is added (authors' code: 5000, where rel_pos is False); default no "
        "such embeddings");
    }
    BPTransformerBlock::Options block() const {
      return {.embed_dim = embed_dim,
              .num_heads = num_heads,
              .inner_dim = inner_dim,
              .neighbors = neighbors,
              .clip_dist = clip_dist,
              .causal = causal,
              .rel_pos = rel_pos,
              .memory = memory,
              .right_overflow = right_overflow,
              .layer_norm_eps = layer_norm_eps,
              .attention_dropout = attention_dropout,
              .dropout = dropout};
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> lengths, memory_states, memory_mask;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] embeddings of tokens");
      f("lengths", lengths, "int [B] tokens of each sequence, which is partitioned by itself; the rest is padding");
      f("memory_states", memory_states, "[B,M,E] the memory; in a step, needed by the first only");
      f("memory_mask", memory_mask, "bool [B,M] True where a state of the memory takes part");
    }
  };
  struct Parameters {
    optional<Tensor> positions;
    optional<layers::LayerNorm> norm;
    std::vector<BPTransformerBlock::Parameters> blocks;
    void fields(auto&& f) {
      f("positions", positions, "[*,E] an embedding of every place, where max_len is given");
      f("norm", norm, "of embeddings, where input_norm is True");
      f("blocks", blocks, "residual blocks");
    }
  };
  using Outputs = BPTransformerBlock::Outputs;
  using State = BPTransformerBlock::State;
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&, bool training);
  static std::pair<Outputs, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

}  // namespace foveate
