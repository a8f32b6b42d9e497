#include <foveate/attention.h>
#include <foveate/attention_formula.h>
#include <foveate/cluster_attention.h>
#include <foveate/dropout.h>
#include <foveate/heads.h>
#include <foveate/init.h>
#include <foveate/largest.h>
#include <foveate/rotary.h>
#include <foveate/routing_transformer.h>
#include <foveate/segment_sum.h>
#include <foveate/sparse_attention.h>

namespace foveate {
namespace {

Tensor unit(const Tensor& x) { return x / at::linalg_vector_norm(x, 2, at::IntArrayRef{-1}, true).clamp_min(1e-12); }

/// The w tokens that point most towards each centroid, in their order; towards [B,H,C,T] -> int [B,H,C,w], -1 where there are fewer.
Tensor gathered(const Tensor& towards, int64_t w) { return std::get<0>(ops::largest(towards, w).sort(-1)); }

/// Rows of x [B,H,T,d] by tokens [B,H,C,s]: [B,H C,s,d]
Tensor rows(const Tensor& x, const Tensor& tokens) {
  return ops::take_rows(x, tokens.flatten(2)).unflatten(2, {plain_extent(tokens, 2), plain_extent(tokens, 3)}).flatten(1, 2);
}

/// The nearest centroid of each z [B,H,T,D]: int [B,H,T]
Tensor nearest(const Tensor& z, const Tensor& means) { return at::matmul(z.detach(), means.transpose(1, 2)).argmax(-1); }

/// Unit means of the z [B,H,T,D] of each cluster, over the whole batch; of one that has none, its old centroid.
Tensor moved(const Tensor& z, const Tensor& ids, const Tensor& means) {
  const int64_t C = plain_extent(means, 1);
  const Tensor sums = ops::segment_sum(z, ids, C).sum(0);                                    // [H,C,D]
  const Tensor members = ops::segment_sum(at::ones_like(z.narrow(3, 0, 1)), ids, C).sum(0);  // [H,C,1]
  return at::where(members > 0, unit(sums), means);
}

/// What every token takes part in, and how it is hidden; tokens [B,H,C,*] -> [B,H C,w,s], nothing where all is seen.
optional<Tensor> visible(const RoutingAttention::Options& o, const Tensor& of_query, const Tensor& of_key, const optional<Tensor>& key_mask,
                         bool shared, const Size& M) {
  const auto known = M.maybe_as_int();
  const bool full = known && *known >= plain_extent(of_key, 3);
  optional<Tensor> seen;
  const auto narrow = [&](const Tensor& more) { seen = seen ? at::logical_and(*seen, more) : more; };
  const Tensor i = of_query.unsqueeze(4), j = of_key.unsqueeze(3);  // [B,H,C,w,1], [B,H,C,1,s]
  if (!full) narrow(j >= 0);
  if (key_mask)
    narrow(ops::take_rows(key_mask->unsqueeze(1).unsqueeze(3).to(at::kDouble).expand_symint({-1, extent(of_key, 1), -1, 1}), of_key.flatten(2))
               .reshape_symint(j.sym_sizes()) > 0);
  if (o.causal) narrow(j <= i);
  if (shared) narrow(j != i);
  return seen ? optional(seen->flatten(1, 2)) : std::nullopt;
}

/// Rows [B,H,C w,d] added up where their tokens [B,H,C,w] stand, of N: [B,H,N,d]
Tensor put_back(const Tensor& line, const Tensor& tokens, const Size& N) {
  const Tensor flat = tokens.flatten(2);
  const Tensor place = at::where(flat < 0, at::ones_like(flat) * N, flat).unsqueeze(3).expand_symint(line.sym_sizes());
  const Tensor sums = line.new_zeros_symint({extent(line, 0), extent(line, 1), N + 1, extent(line, 3)});
  return sums.scatter_add(2, place, line).narrow_symint(2, 0, N);
}

constexpr double last_resort = -5e4;  // the score of a token before itself, where queries are keys

/// What each cluster's queries see of its keys; tokens int [B,H,C,w], [B,H,C,s] -> [B,H,C w,Dv].
Tensor by_clusters(const RoutingAttention::Options& o, const RoutingAttention::Inputs& in, const Tensor& k, const Tensor& of_query,
                   const Tensor& of_key) {
  const bool shared = !in.k;
  ops::ClusterAttention how{.q_index = of_query.flatten(2),
                            .k_index = of_key.flatten(2),
                            .q_size = plain_extent(of_query, 3),
                            .k_size = plain_extent(of_key, 3),
                            .key_mask = in.key_mask,
                            .causal = o.causal};
  if (shared) how.self_score = last_resort;
  return ops::cluster_attention(in.q, k, in.v, how).out;
}

/// The same where every cluster has keys besides, which all its queries see.
Tensor with_memory(const RoutingAttention::Options& o, const RoutingAttention::Inputs& in, const Tensor& k, const Tensor& of_query,
                   const Tensor& of_key) {
  const bool shared = !in.k;
  const Tensor Q = rows(in.q, of_query), V = rows(in.v, of_key);
  const auto always = [&](const Tensor& memory) { return memory.flatten(0, 1).unsqueeze(0).expand_symint({extent(Q, 0), -1, -1, -1}); };
  optional<Tensor> seen = visible(o, of_query, of_key, in.key_mask, shared, extent(in.v, 2));
  if (seen) {
    auto shape = seen->sym_sizes().vec();
    shape.back() = extent(*in.memory_key, 2);
    seen = at::cat({at::ones_symint(shape, seen->options()), *seen}, -1);
  }
  ops::Attention how{.mask = seen};
  if (shared) how.start = ops::Start{.logit = Q.new_full({}, last_resort), .value = V};
  const Tensor K = at::cat({always(*in.memory_key), rows(k, of_key)}, 2), values = at::cat({always(*in.memory_value), V}, 2);
  return ops::attention(Q, K, values, how).out.unflatten(1, {plain_extent(of_query, 1), plain_extent(of_query, 2)}).flatten(2, 3);
}

RoutingAttention::Outputs attend(const RoutingAttention::Options& o, const RoutingAttention::Inputs& in) {
  const bool shared = !in.k;
  const Size N = extent(in.q, 2);
  const Tensor unit_q = unit(in.q), k = shared ? unit_q : *in.k;
  const Tensor z = shared ? unit_q : at::cat({unit_q, unit(k)}, 2), means = in.means.detach();
  const Tensor towards = at::matmul(means, z.detach().transpose(2, 3));  // [B,H,C,T]
  const auto beyond = [&](const Size& first) { return towards.narrow_symint(3, first, extent(towards, 3) - first); };
  const Tensor of_query = gathered(towards.narrow_symint(3, 0, N), o.window_size);
  const Tensor of_key = shared ? of_query : gathered(beyond(N), o.context_window_size.value_or(o.window_size));

  const Tensor each = (in.memory_key ? with_memory : by_clusters)(o, in, k, of_query, of_key);  // [B,H,C w,Dv]
  const Tensor sums = put_back(each, of_query, N), count = put_back(at::ones_like(each.narrow(3, 0, 1)), of_query, N);
  const Tensor out = masked_rows(sums / (count + o.eps), in.query_mask);

  const Tensor ids = towards.argmax(2);
  const Tensor target = ops::take_rows(means.unsqueeze(0).expand_symint({extent(z, 0), -1, -1, -1}), ids);
  const Tensor loss = (z - target).square().mean() * o.commitment;
  const Tensor there = moved(z.detach(), ids, means);
  return {.out = out, .loss = loss, .new_means = o.ema_decay * means + (1 - o.ema_decay) * there};
}

}  // namespace

// --- the bare function -------------------------------------------------------------------------------------------------------

void RoutingAttention::check(const Options& o) {
  TORCH_CHECK_VALUE(o.window_size > 0 && o.context_window_size.value_or(1) > 0,
                    "routing_attention: window_size and context_window_size must be positive, got ", o.window_size, " and ",
                    o.context_window_size.value_or(o.window_size));
  TORCH_CHECK_VALUE(o.ema_decay >= 0 && o.ema_decay <= 1, "routing_attention: ema_decay must lie in [0, 1], got ", o.ema_decay);
}

RoutingAttention::Outputs RoutingAttention::forward(const Options& o, const Parameters&, const Inputs& in) {
  TORCH_CHECK_VALUE(in.memory_key.has_value() == in.memory_value.has_value(),
                    "routing_attention: memory_key and memory_value must be given together");
  TORCH_CHECK_VALUE(!o.causal || extent(in.q, 2) == extent(in.v, 2), "routing_attention: causal needs as many keys as queries, got ", extent(in.v, 2),
                    " and ", extent(in.q, 2));
  return attend(o, in);
}

FOVEATE_MECHANISM(RoutingAttention)

// --- where centroids start ---------------------------------------------------------------------------------------------------

void RoutingCentroids::check(const Options& o) {
  TORCH_CHECK_VALUE(o.num_clusters > 0 && o.iterations >= 0, "routing_centroids: num_clusters must be positive, iterations not negative, got ",
                    o.num_clusters, " and ", o.iterations);
}

Tensor RoutingCentroids::forward(const Options& o, const Parameters&, const Inputs& in) {
  const Tensor perm = in.perm ? *in.perm : at::argsort(at::rand_symint({extent(in.x, 1)}, in.x.options().dtype(at::kFloat)));
  const Tensor x = in.x.to(ops::accumulation_type(in.x.scalar_type())).unsqueeze(0);  // one batch; rounding would send tokens elsewhere
  Tensor means = x.squeeze(0).index_select(1, perm.narrow(0, 0, o.num_clusters));
  for (int64_t round = 0; round < o.iterations; ++round) means = moved(x, nearest(x, means.detach()), means);
  return means.to(in.x.scalar_type());
}

FOVEATE_MECHANISM(RoutingCentroids)

// --- the layer ---------------------------------------------------------------------------------------------------------------

RoutingAttention::Options RoutingSelfAttention::Options::routing() const {
  return {.window_size = window_size,
          .context_window_size = context_window_size,
          .causal = causal,
          .commitment = commitment,
          .ema_decay = ema_decay,
          .eps = eps};
}

void RoutingSelfAttention::check(const Options& o) {
  layers::check_heads("routing_self_attention", o.embed_dim, o.num_heads);
  layers::check_dropout("routing_self_attention", "dropout", o.dropout);
  RoutingAttention::check(o.routing());
  TORCH_CHECK_VALUE(o.local_heads >= 0 && o.local_heads <= o.num_heads, "routing_self_attention: local_heads must be 0 to num_heads = ", o.num_heads,
                    ", got ", o.local_heads);
  TORCH_CHECK_VALUE(o.num_clusters > 0 && o.local_window_size > 0 && o.local_radius >= 0 && o.num_mem_kv >= 0,
                    "routing_self_attention: num_clusters and local_window_size must be positive, local_radius and num_mem_kv not negative, got ",
                    o.num_clusters, ", ", o.local_window_size, ", ", o.local_radius, " and ", o.num_mem_kv);
}

RoutingSelfAttention::Parameters RoutingSelfAttention::init(const Options& o) {
  const int64_t E = o.embed_dim, D = E / o.num_heads, routed = o.num_heads - o.local_heads;
  Parameters p{.out = layers::Linear::init(E, E, o.bias)};
  if (o.local_heads > 0) p.local_qkv = layers::Linear::init(E, 3 * o.local_heads * D);
  if (routed == 0) return p;
  p.query = layers::Linear::init(E, routed * D, false);
  if (!o.shares()) p.key = layers::Linear::init(E, routed * D, false);
  p.value = layers::Linear::init(E, routed * D, false);
  if (o.memory() > 0) {
    p.memory_key = layers::normal({routed, o.num_clusters, o.memory(), D}, 1);
    p.memory_value = layers::normal({routed, o.num_clusters, o.memory(), D}, 1);
  }
  p.means = layers::normal({routed, o.num_clusters, D}, 1);
  return p;
}

RoutingSelfAttention::Outputs RoutingSelfAttention::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  TORCH_CHECK_VALUE(!in.context || (o.local_heads == 0 && !o.causal && !o.shares()),
                    "routing_self_attention: context is for routed heads that are not causal and do not share queries and keys");
  TORCH_CHECK_VALUE(p.local_qkv.has_value() == (o.local_heads > 0), "routing_self_attention: local_qkv is needed by local heads, and by them alone");
  std::vector<Tensor> heads;
  if (p.local_qkv) {
    const auto qkv = (*p.local_qkv)(in.x).chunk(3, -1);
    const auto turned = [&](const Tensor& x) {
      const Tensor each = split_heads(x, o.local_heads);
      return o.rotary_local ? positions::rotate(each, 0, {}) : each;
    };
    const int64_t around = o.local_radius * o.local_window_size;
    const auto near = patterns::block_window(o.local_window_size, around, o.causal ? 0 : around);
    heads.push_back(ops::sparse_attention(turned(qkv[0]), turned(qkv[1]), split_heads(qkv[2], o.local_heads), near,
                                          {.key_mask = in.mask, .causal = o.causal, .query_mask = in.mask})
                        .out);
  }
  Tensor loss = in.x.new_zeros({});
  if (const int64_t routed = o.num_heads - o.local_heads; routed > 0) {
    TORCH_CHECK_VALUE(p.query && p.value && p.means, "routing_self_attention: query, value and means are needed by routed heads");
    const Tensor context = in.context.value_or(in.x);
    const auto turned = [&](const layers::Linear& map, const Tensor& x) {
      const Tensor each = split_heads(map(x), routed);
      return o.rotary_global ? positions::rotate(each, 0, {.interleaved = true}) : each;
    };
    RoutingAttention::Inputs given{.q = turned(*p.query, in.x),
                                   .v = turned(*p.value, context),
                                   .means = *p.means,
                                   .k = {},
                                   .query_mask = in.mask,
                                   .key_mask = in.context ? in.context_mask : in.mask,
                                   .memory_key = p.memory_key,
                                   .memory_value = p.memory_value};
    if (p.key) given.k = turned(*p.key, context);
    const auto read = attend(o.routing(), given);
    heads.push_back(read.out);
    loss = read.loss;
    if (training) p.means->copy_(read.new_means);
  }
  const Tensor out = p.out(merge_heads(heads));
  return {.out = layers::dropout(out, o.dropout, std::nullopt, training), .loss = loss};
}

FOVEATE_MECHANISM(RoutingSelfAttention)

}  // namespace foveate
