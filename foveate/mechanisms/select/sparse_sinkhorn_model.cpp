#include <foveate/dropout.h>
#include <foveate/init.h>
#include <foveate/sparse_sinkhorn_model.h>

namespace foveate {
namespace {

using Model = SinkhornTransformer;
using LayerState = SinkhornSelfAttention::State;
constexpr std::size_t per_layer = 6;  // tensors of a layer's state

LayerState taken(const std::vector<Tensor>& kept, std::size_t layer) {
  const Tensor* t = &kept[per_layer * layer];
  return {.sorted = {.k = t[0], .v = t[1], .q_sum = t[2], .bucket_q = t[3]}, .local_k = t[4], .local_v = t[5]};
}

void keep(std::vector<Tensor>& kept, const LayerState& s) {
  kept.insert(kept.end(), {s.sorted.k, s.sorted.v, s.sorted.q_sum, s.sorted.bucket_q, s.local_k, s.local_v});
}

/// Embeddings of tokens of which the first stands at `first`: [B,N,E]
Tensor embedded(const Model::Options& o, const Model::Parameters& p, const Tensor& ids, const Size& first, bool training) {
  const Tensor place = at::arange(first, first + extent(ids, 1), ids.options().dtype(at::kLong));
  const Tensor bucket = at::floor_divide(place, at::scalar_tensor(o.bucket_size, place.options()));
  const Tensor position =
      at::embedding(p.bucket_positions.flatten(0, 2), bucket) + at::embedding(p.inner_positions.flatten(0, 2), place - bucket * o.bucket_size);
  return layers::dropout(at::embedding(p.embedding, ids) + position, o.embedding_dropout, std::nullopt, training);
}

/// Each layer by `attend`: what it attends with, its number, its normalised input, and what comes out.
template <class Attend> Tensor run(const Model::Options& o, const Model::Parameters& p, Tensor x, bool training, const Attend& attend) {
  for (std::size_t l = 0; l < p.layers.size(); ++l) {
    const SinkhornLayer& layer = p.layers[l];
    x = x + attend(layer.attention, l, layer.attention_norm(x));
    x = layer.with_network(x, o.ff_dropout, training);
  }
  return p.head(p.norm(x));
}

}  // namespace

SinkhornSelfAttention::Options SinkhornTransformer::Options::attention() const {
  return {.embed_dim = embed_dim,
          .num_heads = num_heads,
          .head_dim = head_dim,
          .bucket_size = bucket_size,
          .causal = causal,
          .n_local_attn_heads = n_local_attn_heads,
          .kv_bucket_size = kv_bucket_size,
          .sort_net = sort_net,
          .max_buckets = max_buckets ? max_buckets : std::optional(max_len / kv_bucket_size.value_or(bucket_size)),
          .non_permutative = non_permutative,
          .sinkhorn_iter = sinkhorn_iter,
          .temperature = temperature,
          .n_sortcut = n_sortcut,
          .n_top_buckets = n_top_buckets,
          .values_from_keys = values_from_keys,
          .attention_dropout = attention_dropout,
          .dropout = dropout};
}

void SinkhornTransformer::check(const Options& o) {
  TORCH_CHECK_VALUE(o.vocab_size > 0 && o.depth > 0 && o.ff_mult > 0, "sinkhorn_transformer: vocab_size, depth and ff_mult must be positive, got ",
                    o.vocab_size, ", ", o.depth, " and ", o.ff_mult);
  TORCH_CHECK_VALUE(o.bucket_size > 0 && o.max_len > 0 && o.max_len % o.bucket_size == 0,
                    "sinkhorn_transformer: max_len must be a multiple of bucket_size = ", o.bucket_size, ", got ", o.max_len);
  layers::check_dropout("sinkhorn_transformer", "ff_dropout", o.ff_dropout);
  layers::check_dropout("sinkhorn_transformer", "embedding_dropout", o.embedding_dropout);
  SinkhornSelfAttention::check(o.attention());
}

SinkhornTransformer::Parameters SinkhornTransformer::shape(const Options& o) {
  Parameters p;
  p.layers.resize(static_cast<std::size_t>(o.depth));
  return p;
}

SinkhornTransformer::Parameters SinkhornTransformer::init(const Options& o) {
  Parameters p = shape(o);
  const int64_t E = o.embed_dim;
  p.embedding = layers::normal({o.vocab_size, E}, 1);
  p.bucket_positions = layers::normal({1, o.max_len / o.bucket_size, 1, E}, 1);
  p.inner_positions = layers::normal({1, 1, o.bucket_size, E}, 1);
  for (auto& layer : p.layers) layer = SinkhornLayer::init(E, o.ff_mult * E, SinkhornSelfAttention::init(o.attention()));
  p.norm = layers::LayerNorm::init(E);
  p.head = layers::Linear::init(E, o.vocab_size);
  return p;
}

Tensor SinkhornTransformer::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  const auto how = o.attention();
  return run(o, p, embedded(o, p, in.ids, 0, training), training, [&](const auto& attention, std::size_t, const Tensor& x) {
    return SinkhornSelfAttention::forward(how, attention, {.x = x, .key_mask = in.key_mask}, training);
  });
}

std::pair<Tensor, SinkhornTransformer::State> SinkhornTransformer::step(const Options& o, const Parameters& p, const Inputs& in, State&& past,
                                                                        bool training) {
  TORCH_CHECK_VALUE(o.causal, "sinkhorn_transformer_step: causal must be True for the form to stream, got False");
  TORCH_CHECK_VALUE(past.kept.empty() || past.kept.size() == per_layer * p.layers.size(), "sinkhorn_transformer_step: state must hold ",
                    per_layer * p.layers.size(), " tensors, got ", past.kept.size());
  const auto how = o.attention();
  const Size first = past.kept.empty() ? Size(0) : extent(past.kept[0], 2);
  State next;
  Tensor out = run(o, p, embedded(o, p, in.ids, first, training), training, [&](const auto& attention, std::size_t l, const Tensor& x) {
    auto [read, after] = SinkhornSelfAttention::step(how, attention, {.x = x, .key_mask = in.key_mask},
                                                     past.kept.empty() ? LayerState{} : taken(past.kept, l), training);
    keep(next.kept, after);
    return read;
  });
  return {std::move(out), std::move(next)};
}

FOVEATE_MECHANISM(SinkhornTransformer)

}  // namespace foveate
