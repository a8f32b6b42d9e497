#include <foveate/dropout.h>
#include <foveate/init.h>
#include <foveate/routing_transformer_model.h>

namespace foveate {

RoutingSelfAttention::Options RoutingTransformer::Options::attention(std::size_t layer) const {
  return {.embed_dim = embed_dim,
          .num_heads = num_heads,
          .local_heads = local_heads[local_heads.size() == 1 ? 0 : layer],
          .num_clusters = num_clusters,
          .window_size = window_size,
          .context_window_size = context_window_size,
          .causal = causal,
          .shared_qk = shared_qk,
          .num_mem_kv = num_mem_kv,
          .local_window_size = local_window_size,
          .local_radius = local_radius,
          .rotary_local = rotary_local,
          .rotary_global = rotary_global,
          .commitment = commitment,
          .ema_decay = ema_decay,
          .eps = eps,
          .dropout = dropout};
}

void RoutingTransformer::check(const Options& o) {
  TORCH_CHECK_VALUE(o.vocab_size > 0 && o.depth > 0 && o.ff_mult > 0, "routing_transformer: vocab_size, depth and ff_mult must be positive, got ",
                    o.vocab_size, ", ", o.depth, " and ", o.ff_mult);
  const auto kinds = static_cast<int64_t>(o.local_heads.size());
  TORCH_CHECK_VALUE(kinds == 1 || kinds == o.depth, "routing_transformer: local_heads must be one number or one for each of the ", o.depth,
                    " layers, got ", kinds);
  layers::check_dropout("routing_transformer", "ff_dropout", o.ff_dropout);
  for (std::size_t l = 0; l < o.local_heads.size(); ++l) RoutingSelfAttention::check(o.attention(l));
}

RoutingTransformer::Parameters RoutingTransformer::shape(const Options& o) {
  Parameters p;
  p.layers.resize(static_cast<std::size_t>(o.depth));
  return p;
}

RoutingTransformer::Parameters RoutingTransformer::init(const Options& o) {
  Parameters p = shape(o);
  p.embedding = layers::normal({o.vocab_size, o.embed_dim}, 0.02);
  for (std::size_t l = 0; l < p.layers.size(); ++l) {
    p.layers[l] = RoutingLayer::init(o.embed_dim, o.ff_mult * o.embed_dim, RoutingSelfAttention::init(o.attention(l)));
  }
  p.norm = layers::LayerNorm::init(o.embed_dim);
  if (!o.tie_embedding) p.head = layers::Linear::init(o.embed_dim, o.vocab_size);
  return p;
}

RoutingTransformer::Outputs RoutingTransformer::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  TORCH_CHECK_VALUE(p.head.has_value() != o.tie_embedding, "routing_transformer: head is needed without tie_embedding, and only then");
  Tensor x = at::embedding(p.embedding, in.ids);
  Tensor loss = x.new_zeros({});
  for (std::size_t l = 0; l < p.layers.size(); ++l) {
    const RoutingLayer& layer = p.layers[l];
    const auto read = RoutingSelfAttention::forward(o.attention(l), layer.attention, {.x = layer.attention_norm(x), .mask = in.mask}, training);
    x = x + read.out;
    loss = loss + read.loss;
    x = layer.with_network(x, o.ff_dropout, training);
  }
  x = p.norm(x);
  return {.logits = p.head ? (*p.head)(x) : at::matmul(x, p.embedding.t()), .loss = loss};
}

FOVEATE_MECHANISM(RoutingTransformer)

}  // namespace foveate
