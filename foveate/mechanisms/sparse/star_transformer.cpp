#include <foveate/attention.h>
#include <foveate/dropout.h>
#include <foveate/init.h>
#include <foveate/merge_attention.h>
#include <foveate/sparse_attention.h>
#include <foveate/star_transformer.h>

namespace foveate {
namespace {

/// The part of a softmax that one key of each query's own has. q [B,H,N,d], k and v [B,H,N or 1,d]
ops::Attended one_key(const Tensor& q, const Tensor& k, const Tensor& v, at::ScalarType type) {
  return {.out = v.expand_as(q), .lse = (q.to(type) * k.to(type)).sum(-1) * default_scale(q)};
}

/// Each satellite asks its left neighbour, itself, its right neighbour, its embedding and the relay. Beyond both ends stand keys and
/// values of zeros. `here` [B,1,N,1] is 0 where a token is as nothing to its neighbours.
Tensor ring(const layers::Heads& p, int64_t heads, const Tensor& normed, const Tensor& embedded, const Tensor& relay, const optional<Tensor>& here) {
  const auto [q, k, v] = p.project(normed, normed, heads);
  const auto with_ends = [&](const Tensor& x) { return at::constant_pad_nd(here ? x * *here : x, {0, 0, 1, 1}); };  // [B,H,N+2,d]
  const auto near = ops::sparse_attention(q, with_ends(k), with_ends(v), patterns::sliding_window(1, 1), {.offset = 1});
  const auto one = [&](const Tensor& x) { return one_key(q, split_heads(p.key(x), heads), split_heads(p.value(x), heads), near.lse.scalar_type()); };
  const std::array parts{near, one(embedded), one(relay)};
  return p.join(ops::merge_attention(parts).out);
}

/// The relay asks itself and all satellites.
Tensor star(const layers::Heads& p, int64_t heads, const Tensor& relay, const Tensor& satellites, const optional<Tensor>& key_mask) {
  const auto [q, k, v] = p.project(relay, at::cat({relay, satellites}, 1), heads);
  const auto there = key_mask ? optional(at::constant_pad_nd(*key_mask, {1, 0}, true)) : std::nullopt;
  return p.join(ops::attention(q, k, v, {.key_mask = there}).out);
}

}  // namespace

void StarTransformer::check(const Options& o) {
  TORCH_CHECK_VALUE(o.embed_dim > 0 && o.num_layers > 0 && o.num_heads > 0 && o.head_dim > 0,
                    "star_transformer: embed_dim, num_layers, num_heads and head_dim must be positive, got ", o.embed_dim, ", ", o.num_layers, ", ",
                    o.num_heads, " and ", o.head_dim);
  layers::check_dropout("star_transformer", "dropout", o.dropout);
  TORCH_CHECK_VALUE(!o.max_len || *o.max_len > 0, "star_transformer: max_len must be positive, got ", o.max_len.value_or(0));
}

StarTransformer::Parameters StarTransformer::shape(const Options& o) {
  Parameters p;
  p.cycles.resize(static_cast<std::size_t>(o.num_layers));
  return p;
}

StarTransformer::Parameters StarTransformer::init(const Options& o) {
  Parameters p;
  if (o.max_len) p.positions = layers::normal({*o.max_len, o.embed_dim}, 1);
  const int64_t inner = o.num_heads * o.head_dim;
  const layers::Heads::Sizes sizes{.width = o.embed_dim, .keys = inner, .values = inner};
  for (int64_t t = 0; t < o.num_layers; ++t) {
    p.cycles.push_back({.norm = layers::LayerNorm::init(o.embed_dim), .ring = layers::Heads::init(sizes), .star = layers::Heads::init(sizes)});
  }
  return p;
}

StarTransformer::Outputs StarTransformer::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  const Size N = extent(in.x, 1);
  TORCH_CHECK_VALUE(p.positions.has_value() == o.max_len.has_value(), "star_transformer: positions must be given with max_len, and only then");
  TORCH_CHECK_VALUE(!o.max_len || N <= *o.max_len, "star_transformer: x must have no more than max_len = ", o.max_len.value_or(0), " tokens, got ",
                    N);
  Tensor embedded = p.positions ? in.x + p.positions->narrow_symint(0, 0, N) : in.x;
  if (training && o.dropout > 0) {
    const Tensor keep = in.dropout_keep.value_or(at::rand_like(embedded) >= o.dropout);
    embedded = embedded * keep.to(embedded.scalar_type()) / (1 - o.dropout);
  }

  optional<Tensor> there;  // [B,N,1]
  if (in.key_mask) there = in.key_mask->to(embedded.scalar_type()).unsqueeze(-1);
  const bool is_mean_of_some = there && o.mask_mean;
  const auto here = there && o.mask_ring ? optional(there->unsqueeze(1)) : std::nullopt;
  Tensor relay = is_mean_of_some ? (embedded * *there).sum(1, true) / there->sum(1, true).clamp_min(1) : embedded.mean(1, true);  // [B,1,E]
  Tensor satellites = embedded;
  for (const auto& cycle : p.cycles) {
    satellites = at::leaky_relu(ring(cycle.ring, o.num_heads, cycle.norm(satellites, 1e-6), embedded, relay, here));
    relay = at::leaky_relu(star(cycle.star, o.num_heads, relay, satellites, in.key_mask));
    if (there) satellites = satellites * *there;
  }
  return {.satellites = satellites, .relay = relay.squeeze(1)};
}

FOVEATE_MECHANISM(StarTransformer)

}  // namespace foveate
