#include <foveate/linformer_model.h>

namespace foveate {
namespace {

using Layer = LinformerMultiheadAttention;
using Options = LinformerEncoder::Options;

bool is_layerwise(const Options& o) { return o.sharing == LinformerSharing::layerwise; }
int64_t count_blocks(const Options& o) { return o.cross ? 2 * o.depth : o.depth; }

/// The options of block i's attention.
Layer::Options layer_options(const Options& o, int64_t i) {
  const int64_t level = o.cross ? i / 2 : i;
  return {.embed_dim = o.embed_dim,
          .num_heads = o.num_heads,
          .length = o.length,
          .rank = is_layerwise(o) ? o.rank : std::max<int64_t>(1, o.rank - level * o.rank_step),
          .kind = o.kind,
          .sharing = o.sharing,
          .project = o.project,
          .slot_bias = o.slot_bias,
          .initialisation = o.initialisation,
          .slot_causal = o.slot_causal,
          .scale = o.scale,
          .head_dim = o.head_dim,
          .bias = o.bias,
          .one_kv_head = o.one_kv_head,
          .share_kv_projection = o.share_kv_projection,
          .full_attention = o.full_attention,
          .out_inner_dim = o.out_inner_dim};
}

}  // namespace

void LinformerEncoder::check(const Options& o) {
  TORCH_CHECK_VALUE(o.depth >= 0, "linformer_encoder: depth must not be negative, got ", o.depth);
  TORCH_CHECK_VALUE(o.rank_step == 0 || !is_layerwise(o), "linformer_encoder: rank_step: with sharing layerwise all blocks have the same slots");
  Layer::check(layer_options(o, 0));
}

LinformerEncoder::Parameters LinformerEncoder::shape(const Options& o) {
  Parameters p;
  p.blocks.resize(static_cast<std::size_t>(count_blocks(o)));
  return p;
}

LinformerEncoder::Parameters LinformerEncoder::init(const Options& o) {
  Parameters p;
  for (int64_t i = 0; i < count_blocks(o); ++i) {
    auto attention = Layer::init(layer_options(o, i));
    if (is_layerwise(o)) {
      if (i == 0) p.key_projection = attention.key_projection;
      attention.key_projection = {};
    }
    p.blocks.push_back({.attention = std::move(attention),
                        .norm1 = layers::LayerNorm::init(o.embed_dim),
                        .feed_forward = layers::FeedForward::init(o.embed_dim, o.feed_forward_dim.value_or(4 * o.embed_dim)),
                        .norm2 = layers::LayerNorm::init(o.embed_dim)});
  }
  return p;
}

Tensor LinformerEncoder::forward(const Options& o, const Parameters& p, const Inputs& in) {
  TORCH_CHECK_VALUE(in.context.has_value() == o.cross, "linformer_encoder: context must be given where cross is set, and only there");
  Tensor x = in.x;
  for (std::size_t i = 0; i < p.blocks.size(); ++i) {
    const auto& block = p.blocks[i];
    const bool reads_context = o.cross && i % 2 == 1;
    const auto& e = is_layerwise(o) ? p.key_projection : block.attention.key_projection;
    const Tensor attended = Layer::attend(layer_options(o, static_cast<int64_t>(i)), block.attention, e, block.attention.value_projection,
                                          {.x = x,
                                           .context = reads_context ? in.context : std::nullopt,
                                           .key_mask = reads_context ? in.context_mask : in.key_mask,
                                           .query_mask = in.query_mask});
    const Tensor y = block.norm1(x + attended, o.eps);
    x = block.norm2(y + block.feed_forward(y, o.activation), o.eps);
  }
  return x;
}

FOVEATE_MECHANISM(LinformerEncoder)

}  // namespace foveate
