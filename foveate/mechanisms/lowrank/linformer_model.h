// Linformer as an encoder: post-norm Transformer blocks with slots for keys and values.   arXiv 2006.04768
#pragma once
#include <foveate/feed_forward.h>
#include <foveate/linformer.h>
#include <foveate/norm.h>

namespace foveate {

/// y = norm1(x + attention(x));  z = norm2(y + W2 f(W1 y))
struct FOVEATE_API LinformerBlock {
  LinformerMultiheadAttention::Parameters attention;
  layers::LayerNorm norm1;
  layers::FeedForward feed_forward;
  layers::LayerNorm norm2;
  void fields(auto&& f) {
    f("attention", attention, "multi-head attention");
    f("norm1", norm1, "after the attention and its residual");
    f("feed_forward", feed_forward, "position-wise network");
    f("norm2", norm2, "after the network and its residual");
  }
};

struct FOVEATE_API LinformerEncoder {
  static constexpr Form form{.card = &linformer,
                             .summary = "stack of Linformer blocks",
                             .returns = "[B,N,E] encoded sequence",
                             .example = R"(options = {"embed_dim": 32, "num_heads": 4, "length": 128, "rank": 16}
encoder = foveate.nn.LinformerEncoder(depth=2, sharing="layerwise", **options)
assert encoder(torch.randn(2, 100, 32)).shape == (2, 100, 32)
assert encoder.key_projection.weight.shape == (16, 128)   # one for all layers)"};
  struct Options {
    int64_t embed_dim = 512;
    int64_t num_heads = 8;
    int64_t depth = 6;
    int64_t length = 512;
    int64_t rank = 256;
    LinformerKind kind = LinformerKind::linear;
    LinformerSharing sharing = LinformerSharing::headwise;
    LinformerOrder project = LinformerOrder::input;
    bool slot_bias = false;
    LinformerInit initialisation = LinformerInit::xavier_uniform;
    bool slot_causal = false;
    optional<double> scale;
    optional<int64_t> head_dim;
    bool bias = true;
    bool one_kv_head = false;
    bool share_kv_projection = false;
    bool full_attention = false;
    optional<int64_t> out_inner_dim;
    int64_t rank_step = 0;
    optional<int64_t> feed_forward_dim;
    layers::Activation activation = layers::Activation::gelu;
    double eps = 1e-5;
    bool cross = false;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E of the model");
      f("num_heads", num_heads, "heads H");
      f("depth", depth, "number of blocks");
      detail::linformer_fields(f, *this);
      detail::linformer_layer_fields(f, *this);
      f("rank_step", rank_step,
        "each block has so many slots fewer than the one before, at least 1; not with sharing layerwise (tatp22: k_reduce_by_layer)");
      f("feed_forward_dim", feed_forward_dim, "inner width of the position-wise network, default 4 E");
      f("activation", activation, "of the position-wise network");
      f("eps", eps, "added to the variance by the normalisations");
      f("cross", cross, "after each block another one, whose attention reads the context (tatp22: decoder_mode)");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> context, key_mask, query_mask, context_mask;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence");
      f("context", context, "[B,M,E] sequence that the cross blocks read");
      f("key_mask", key_mask, "bool [B,N] True where a token takes part as a key");
      f("query_mask", query_mask, "bool [B,N] True where a token counts as a query");
      f("context_mask", context_mask, "bool [B,M] True where a token of the context takes part");
    }
  };
  struct Parameters {
    SlotProjection key_projection;
    std::vector<LinformerBlock> blocks;
    void fields(auto&& f) {
      f("key_projection", key_projection, "E of all blocks, where sharing is layerwise");
      f("blocks", blocks, "the blocks, in order");
    }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

}  // namespace foveate
