// ETC: a long and a global stream; a long token sees 2r + 1 neighbours and the global tokens in one softmax, a global token sees all;
// s_ij = (q_i.k_j + q_i.a_t + c_t) / sqrt(D), t the label of the pair.   arXiv 2004.08483
#pragma once
#include <foveate/contract.h>
#include <foveate/feed_forward.h>
#include <foveate/linear.h>
#include <foveate/norm.h>

namespace foveate {

inline constexpr Card etc{.slug = "etc",
                          .title = "ETC (extended Transformer construction)",
                          .paper = "2004.08483",
                          .year = 2020,
                          .family = Family::sparse,
                          .cost = "O((N (k + g) + g^2) D)",
                          .causality = Causality::none,
                          .equation = "s_ij = (q_i.k_j + q_i.a_t + c_t) / sqrt(D), t = label(i,j); one softmax over neighbours and global tokens"};

/// The options that attention and layers share.
void etc_fields(auto& o, auto&& f) {
  f("embed_dim", o.embed_dim, "width E of the long stream (paper: 768 in the base model)");
  f("global_dim", o.global_dim, "width F of the global stream, default E; another needs share_qkv, share_kv and share_out to be False");
  f("num_heads", o.num_heads, "heads H (paper: 12 in the base model)");
  f("attention_dim", o.attention_dim, "H D, all heads together, default E");
  f("local_radius", o.local_radius, "r, neighbours seen on each side (paper: 84)");
  f("relative_vocab_size", o.relative_vocab_size,
    "V, how many labels a pair of tokens may have; default none, pairs have no labels (released models: 32)");
  f("max_distance", o.max_distance,
    "neighbours are labelled by their distance, without l2l_ids: 0 for the token itself, 1..m to the right, m + 1..2 m to the left, m where further "
    "(released models: 12)");
  f("ignore_direction", o.ignore_direction, "with max_distance: neighbours on the left are labelled like those on the right, 0..m");
  f("share_qkv", o.share_qkv, "one query, key and value projection for all four pieces (authors' attention: False, their layers: True)");
  f("share_kv", o.share_kv, "one key and value projection for long tokens that ask, one for global ones (authors' code: False)");
  f("share_out", o.share_out, "one output projection (authors' code: False)");
  f("attention_dropout", o.attention_dropout,
    "probability of dropping an attention weight in training, or where dropout_seed is given (authors' code: 0.1)");
}

/// The inputs that attention and layers share.
struct ETCInputs {
  Tensor long_input, global_input;
  optional<Tensor> l2l_mask, l2g_mask, g2g_mask, g2l_mask, l2l_ids, l2g_ids, g2g_ids, g2l_ids, long_key_mask, global_key_mask, dropout_seed;
  void fields(auto&& f) {
    f("long_input", long_input, "[B,N,E] long stream, the tokens of the text");
    f("global_input", global_input, "[B,G,F] global stream, a few tokens that stand for parts of the text, such as one for each sentence");
    f("l2l_mask", l2l_mask,
      "bool [B,N,*] True where a long token sees its neighbour: of 2r + 1, entry u is the token u - r places on, itself the middle one");
    f("l2g_mask", l2g_mask, "bool [B,N,G] True where a long token sees a global one");
    f("g2g_mask", g2g_mask, "bool [B,G,G] True where a global token sees a global one");
    f("g2l_mask", g2l_mask, "bool [B,G,N] True where a global token sees a long one");
    f("l2l_ids", l2l_ids, "int [B,N,*] labels 0..V-1 of long tokens' neighbours, laid out as l2l_mask");
    f("l2g_ids", l2g_ids, "int [B,N,G] labels of pairs in which a long token asks and a global one is asked");
    f("g2g_ids", g2g_ids, "int [B,G,G] labels of pairs of global tokens");
    f("g2l_ids", g2l_ids, "int [B,G,N] labels of pairs in which a global token asks and a long one is asked");
    f("long_key_mask", long_key_mask, "bool [B,N] True where a long token takes part as key");
    f("global_key_mask", global_key_mask, "bool [B,G] True where a global token takes part as key");
    f("dropout_seed", dropout_seed, "int [] seed of the draw of attention_dropout; layers take others from it in turn");
  }
};

/// Labels of pairs, of one stream.
struct ETCLabels {
  Tensor emb;   // [V,H,D]
  Tensor bias;  // [V,H]
  void fields(auto&& f) {
    f("emb", emb, "[*,H,D] what a label is to a query (the paper's a)");
    f("bias", bias, "[*,H] added to the score of a label, and divided by sqrt(D) with it");
  }
};

/// The fused attention of both streams.
struct FOVEATE_API GlobalLocalAttention {
  static constexpr Form form{
      .card = &etc,
      .summary = "attention of a long and a global stream to themselves and each other",
      .example = R"(layer = foveate.nn.GlobalLocalAttention(embed_dim=32, num_heads=4, local_radius=8, relative_vocab_size=9, max_distance=4)
long, summary = layer(torch.randn(2, 100, 32), torch.randn(2, 5, 32))
assert long.shape == (2, 100, 32) and summary.shape == (2, 5, 32))"};
  struct Options {
    int64_t embed_dim = 768;
    optional<int64_t> global_dim;
    int64_t num_heads = 12;
    optional<int64_t> attention_dim;
    int64_t local_radius = 84;
    optional<int64_t> relative_vocab_size;
    optional<int64_t> max_distance;
    bool ignore_direction = false;
    bool share_qkv = false;
    bool share_kv = false;
    bool share_out = false;
    double attention_dropout = 0;
    void fields(auto&& f) { etc_fields(*this, f); }
  };
  using Inputs = ETCInputs;
  struct Parameters {
    layers::Linear long_query, l2l_key, l2l_value;
    optional<layers::Linear> l2g_key, l2g_value, global_query, g2g_key, g2g_value, g2l_key, g2l_value;
    layers::Linear long_out;
    optional<layers::Linear> global_out;
    optional<ETCLabels> long_relative, global_relative;
    void fields(auto&& f) {
      f("long_query", long_query, "queries of long tokens");
      f("l2l_key", l2l_key, "keys of long tokens that long ones ask");
      f("l2l_value", l2l_value, "their values");
      f("l2g_key", l2g_key, "keys of global tokens that long ones ask; where it is shared, absent");
      f("l2g_value", l2g_value, "their values");
      f("global_query", global_query, "queries of global tokens");
      f("g2g_key", g2g_key, "keys of global tokens that global ones ask");
      f("g2g_value", g2g_value, "their values");
      f("g2l_key", g2l_key, "keys of long tokens that global ones ask");
      f("g2l_value", g2l_value, "their values");
      f("long_out", long_out, "output projection of long tokens");
      f("global_out", global_out, "output projection of global tokens");
      f("long_relative", long_relative, "labels of pairs in which a long token asks");
      f("global_relative", global_relative, "labels of pairs in which a global token asks");
    }
  };
  struct Outputs {
    Tensor long_output, global_output;
    void fields(auto&& f) {
      f("long_output", long_output, "[B,N,E] long stream, token by token");
      f("global_output", global_output, "[B,G,F] global stream, token by token");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&, bool training = false);
};

/// The tensors of a layer.
struct FOVEATE_API GlobalLocalLayer {
  GlobalLocalAttention::Parameters attention;
  layers::LayerNorm attention_norm_long, attention_norm_global;
  layers::FeedForward feed_forward;
  layers::LayerNorm feed_forward_norm;
  optional<layers::FeedForward> feed_forward_global;
  optional<layers::LayerNorm> feed_forward_norm_global;
  void fields(auto&& f) {
    f("attention", attention, "attention of both streams");
    f("attention_norm_long", attention_norm_long, "around attention, of the long stream");
    f("attention_norm_global", attention_norm_global, "around attention, of the global stream");
    f("feed_forward", feed_forward, "W2 gelu(W1 x)");
    f("feed_forward_norm", feed_forward_norm, "around the feed-forward network");
    f("feed_forward_global", feed_forward_global, "that of the global stream, where it has its own");
    f("feed_forward_norm_global", feed_forward_norm_global, "around it");
  }
};

/// A stack of layers.
struct FOVEATE_API GlobalLocalTransformerLayers {
  static constexpr Form form{
      .card = &etc,
      .summary = "stack of Transformer layers on a long and a global stream",
      .example = R"(stack = foveate.nn.GlobalLocalTransformerLayers(embed_dim=32, num_heads=4, num_layers=2, inner_dim=64, local_radius=8)
long, summary = stack(torch.randn(2, 100, 32), torch.randn(2, 5, 32))
assert long.shape == (2, 100, 32) and summary.shape == (2, 5, 32))"};
  struct Options {
    int64_t embed_dim = 768;
    optional<int64_t> global_dim;
    int64_t num_heads = 12;
    optional<int64_t> attention_dim;
    int64_t local_radius = 84;
    optional<int64_t> relative_vocab_size;
    optional<int64_t> max_distance;
    bool ignore_direction = false;
    bool share_qkv = true;
    bool share_kv = false;
    bool share_out = false;
    double attention_dropout = 0;
    int64_t num_layers = 12;
    int64_t inner_dim = 3072;
    bool share_feed_forward_params = true;
    bool pre_activation = false;
    double layer_norm_eps = 1e-12;
    double dropout = 0;
    void fields(auto&& f) {
      etc_fields(*this, f);
      f("num_layers", num_layers, "layers (paper: 12 in the base model)");
      f("inner_dim", inner_dim, "inner width of the feed-forward networks (paper: 3072 in the base model)");
      f("share_feed_forward_params", share_feed_forward_params,
        "one feed-forward network and normalisation for both streams, which must then be of one width");
      f("pre_activation", pre_activation, "normalises before attention and network, not behind the residual sums");
      f("layer_norm_eps", layer_norm_eps, "added to the variance (authors' code: 1e-12)");
      f("dropout", dropout, "probability of dropping an element of what a sublayer adds, in training (authors' code: 0.1)");
    }
    GlobalLocalAttention::Options attention() const {
      return {.embed_dim = embed_dim,
              .global_dim = global_dim,
              .num_heads = num_heads,
              .attention_dim = attention_dim,
              .local_radius = local_radius,
              .relative_vocab_size = relative_vocab_size,
              .max_distance = max_distance,
              .ignore_direction = ignore_direction,
              .share_qkv = share_qkv,
              .share_kv = share_kv,
              .share_out = share_out,
              .attention_dropout = attention_dropout};
    }
  };
  using Inputs = ETCInputs;
  struct Parameters {
    std::vector<GlobalLocalLayer> layers;
    void fields(auto&& f) { f("layers", layers, "layers"); }
  };
  using Outputs = GlobalLocalAttention::Outputs;
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&, bool training = false);
};

}  // namespace foveate
