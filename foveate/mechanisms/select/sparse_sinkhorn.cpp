#include <foveate/dropout.h>
#include <foveate/heads.h>
#include <foveate/init.h>
#include <foveate/kv_cache.h>
#include <foveate/sinkhorn_attention.h>
#include <foveate/sparse_attention.h>
#include <foveate/sparse_sinkhorn.h>

namespace foveate {
namespace {

Size buckets_of(const Tensor& x, int64_t size) { return (extent(x, 2) + size - 1) / size; }

void check_sorting(const char* form, const auto& o) {
  TORCH_CHECK_VALUE(o.num_heads > 0 && o.head_dim > 0 && o.bucket_size > 0, form, ": num_heads, head_dim and bucket_size must be positive, got ",
                    o.num_heads, ", ", o.head_dim, " and ", o.bucket_size);
  TORCH_CHECK_VALUE(o.sort_net == SortNet::attention || o.max_buckets.value_or(0) > 0, form, ": max_buckets must be given for sort_net simple");
  TORCH_CHECK_VALUE(o.temperature > 0 && o.n_top_buckets > 0, form, ": temperature and n_top_buckets must be positive, got ", o.temperature, " and ",
                    o.n_top_buckets);
  layers::check_dropout(form, "dropout", o.dropout);
}

/// The weight of sort_net simple, which knows so many buckets and nulls; none for the other.
optional<Tensor> sort_weight_of(const char* form, SortNet net, const SinkhornParameters& p, const Size& buckets, int64_t nulls) {
  if (net == SortNet::attention) return std::nullopt;
  TORCH_CHECK_VALUE(p.sort_weight, form, ": sort_weight must be given for sort_net simple");
  TORCH_CHECK_VALUE(buckets + nulls <= extent(*p.sort_weight, 3), form,
                    ": q must have no more than max_buckets = ", extent(*p.sort_weight, 3) - nulls, " buckets, got ", buckets);
  return p.sort_weight;
}

Tensor drawn_gumbel(c10::SymIntArrayRef shape, const at::TensorOptions& options) {
  const Tensor u = at::rand_symint(shape, options);
  return -((-((u + 1e-6).log()) + 1e-6).log());
}

}  // namespace

void SinkhornAttention::check(const Options& o) {
  check_sorting("sinkhorn_attention", o);
  TORCH_CHECK_VALUE(o.kv_bucket_size.value_or(1) > 0, "sinkhorn_attention: kv_bucket_size must be positive, got ", o.kv_bucket_size.value_or(0));
  TORCH_CHECK_VALUE(o.n_sortcut >= 0 && o.sinkhorn_iter >= 0, "sinkhorn_attention: n_sortcut and sinkhorn_iter must not be negative, got ",
                    o.n_sortcut, " and ", o.sinkhorn_iter);
  TORCH_CHECK_VALUE(o.n_sortcut == 0 || o.sort_net == SortNet::attention, "sinkhorn_attention: sort_net must be attention for n_sortcut");
}

SinkhornParameters SinkhornAttention::init(const Options& o) {
  if (o.sort_net == SortNet::attention) return {};
  return {.sort_weight = layers::normal({1, o.num_heads, 2 * o.head_dim, *o.max_buckets}, 1)};
}

SinkhornOutputs SinkhornAttention::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  const int64_t kv_bucket_size = o.kv_bucket_size.value_or(o.bucket_size);
  const Size U = buckets_of(in.q, o.bucket_size), C = buckets_of(in.k, kv_bucket_size);
  const bool is_simple = o.sort_net == SortNet::simple, is_mixture = !o.non_permutative;
  if (is_simple) TORCH_CHECK_VALUE(U == C, "sinkhorn_attention: k must have as many buckets as q for sort_net simple, got ", C, " and ", U);
  optional<Tensor> gumbel = in.gumbel;
  const Size rows = o.n_sortcut > 0 ? Size(1) : U;  // of scores
  if (is_mixture && !gumbel) gumbel = drawn_gumbel({extent(in.q, 0), extent(in.q, 1), rows, C}, in.q.options());
  const layers::WeightDropout dropout(o.dropout, in.dropout_seed, training, in.q);
  const auto found = ops::sinkhorn_attention(in.q, in.k, in.v,
                                             {.bucket_size = o.bucket_size,
                                              .kv_bucket_size = kv_bucket_size,
                                              .top_buckets = is_mixture ? 0 : o.n_top_buckets,
                                              .sortcut = o.n_sortcut,
                                              .iterations = o.sinkhorn_iter,
                                              .temperature = is_simple || is_mixture ? o.temperature : 1,
                                              .values_from_keys = o.values_from_keys,
                                              .sort_weight = sort_weight_of("sinkhorn_attention", o.sort_net, p, U, 0),
                                              .gumbel = gumbel,
                                              .key_mask = in.key_mask,
                                              .dropout = o.dropout,
                                              .dropout_seed = dropout.seed()});
  return {.out = masked_rows(found.out, in.query_mask), .sort_matrix = found.S};
}

void SinkhornCausalAttention::check(const Options& o) { check_sorting("sinkhorn_causal_attention", o); }

SinkhornParameters SinkhornCausalAttention::init(const Options& o) {
  SinkhornParameters p{.sort_weight = {},
                       .null_keys = layers::normal({o.num_heads, 1, o.head_dim}, 1),
                       .null_values = layers::normal({o.num_heads, 1, o.head_dim}, 1)};
  if (o.sort_net == SortNet::simple) p.sort_weight = layers::normal({1, o.num_heads, 2 * o.head_dim, *o.max_buckets + o.n_top_buckets}, 1);
  return p;
}

SinkhornOutputs SinkhornCausalAttention::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  return step(o, p, in, {}, training).first;
}

std::pair<SinkhornOutputs, SinkhornCausalAttention::State> SinkhornCausalAttention::step(const Options& o, const Parameters& p, const Inputs& in,
                                                                                         State&& past, bool training) {
  constexpr auto form_name = "sinkhorn_causal_attention";
  const auto [k, v] = layers::KVCache{.k = past.k, .v = past.v}.then(in.k, in.v);
  TORCH_CHECK_VALUE(p.null_keys && p.null_values, form_name, ": null_keys and null_values must be given");
  TORCH_CHECK_VALUE(extent(*p.null_keys, 0) == extent(in.q, 1), form_name, ": q must have num_heads = ", extent(*p.null_keys, 0), " heads, got ",
                    extent(in.q, 1));
  const Tensor nothing = at::zeros_symint({extent(in.q, 0), extent(in.q, 1), extent(in.q, 3)}, in.q.options());
  const layers::WeightDropout dropout(o.dropout, in.dropout_seed, training, in.q);
  const auto found =
      ops::sinkhorn_causal_attention(in.q, k, v,
                                     {.bucket_size = o.bucket_size,
                                      .top_buckets = o.n_top_buckets,
                                      .temperature = o.temperature,
                                      .null_k = *p.null_keys,
                                      .null_v = *p.null_values,
                                      .sort_weight = sort_weight_of(form_name, o.sort_net, p, buckets_of(k, o.bucket_size), o.n_top_buckets),
                                      .key_mask = in.key_mask,
                                      .dropout = o.dropout,
                                      .dropout_seed = dropout.seed(),
                                      .q_sum = past.q_sum.defined() ? past.q_sum : nothing,
                                      .bucket_q = past.bucket_q.defined() ? past.bucket_q : nothing});
  return {{.out = masked_rows(found.out, in.query_mask), .sort_matrix = found.S}, {.k = k, .v = v, .q_sum = found.q_sum, .bucket_q = found.bucket_q}};
}

namespace {

/// The options of the heads that sort.
SinkhornAttention::Options sorting_of(const SinkhornSelfAttention::Options& o) {
  return {.num_heads = o.num_heads - o.n_local_attn_heads,
          .head_dim = o.head_dim.value_or(o.embed_dim / o.num_heads),
          .bucket_size = o.bucket_size,
          .kv_bucket_size = o.kv_bucket_size,
          .sort_net = o.sort_net,
          .max_buckets = o.max_buckets,
          .non_permutative = o.non_permutative,
          .sinkhorn_iter = o.sinkhorn_iter,
          .temperature = o.temperature,
          .n_sortcut = o.n_sortcut,
          .n_top_buckets = o.n_top_buckets,
          .values_from_keys = o.values_from_keys,
          .dropout = o.attention_dropout};
}
SinkhornCausalAttention::Options causal_sorting_of(const SinkhornSelfAttention::Options& o) {
  return {.num_heads = o.num_heads - o.n_local_attn_heads,
          .head_dim = o.head_dim.value_or(o.embed_dim / o.num_heads),
          .bucket_size = o.bucket_size,
          .sort_net = o.sort_net,
          .max_buckets = o.max_buckets,
          .temperature = o.temperature,
          .n_top_buckets = o.n_top_buckets,
          .dropout = o.attention_dropout};
}

}  // namespace

void SinkhornSelfAttention::check(const Options& o) {
  constexpr auto form_name = "sinkhorn_self_attention";
  layers::check_heads(form_name, o.embed_dim, o.num_heads, o.head_dim);
  TORCH_CHECK_VALUE(o.n_local_attn_heads >= 0 && o.n_local_attn_heads < o.num_heads, form_name,
                    ": n_local_attn_heads must leave a head that sorts, got ", o.n_local_attn_heads, " of ", o.num_heads);
  TORCH_CHECK_VALUE(!o.causal || !o.context_only, form_name, ": causal and context_only exclude each other");
  TORCH_CHECK_VALUE(!o.causal || (o.n_sortcut == 0 && o.non_permutative), form_name, ": n_sortcut must be 0 and non_permutative True if causal");
  TORCH_CHECK_VALUE(!o.causal || o.kv_bucket_size.value_or(o.bucket_size) == o.bucket_size, form_name,
                    ": kv_bucket_size must be bucket_size if causal, got ", o.kv_bucket_size.value_or(0), " and ", o.bucket_size);
  TORCH_CHECK_VALUE(!o.context_only || o.n_local_attn_heads == 0, form_name, ": n_local_attn_heads must be 0 for context_only, got ",
                    o.n_local_attn_heads);
  TORCH_CHECK_VALUE(!o.context_only || !o.head_dim || *o.head_dim * o.num_heads == o.embed_dim, form_name,
                    ": head_dim must be E/H for context_only, got ", o.head_dim.value_or(0));
  layers::check_dropout(form_name, "dropout", o.dropout);
  SinkhornAttention::check(sorting_of(o));
}

SinkhornSelfAttention::Parameters SinkhornSelfAttention::init(const Options& o) {
  const int64_t inner = o.head_dim.value_or(o.embed_dim / o.num_heads) * o.num_heads;
  const auto projection = [&] { return layers::Linear::init(o.embed_dim, inner, false); };
  Parameters p{.query = projection(), .key = {}, .value = {}, .out = layers::Linear::init(inner, o.embed_dim), .sorting = {}};
  if (!o.context_only) {
    p.key = projection();
    p.value = projection();
  }
  p.sorting = o.causal ? SinkhornCausalAttention::init(causal_sorting_of(o)) : SinkhornAttention::init(sorting_of(o));
  return p;
}

namespace {

/// Heads that do not sort: each bucket sees its own and those beside it, if causal the one before.
ops::Attended near_buckets(const SinkhornSelfAttention::Options& o, const Tensor& q, const Tensor& k, const Tensor& v, ops::Attention how) {
  how.causal = o.causal;
  return ops::sparse_attention(q, k, v, patterns::block_window(o.bucket_size, o.bucket_size, o.causal ? 0 : o.bucket_size), how);
}

}  // namespace

Tensor SinkhornSelfAttention::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  return advance(o, p, in, {}, training).first;
}

std::pair<Tensor, SinkhornSelfAttention::State> SinkhornSelfAttention::step(const Options& o, const Parameters& p, const Inputs& in, State&& state,
                                                                            bool training) {
  TORCH_CHECK_VALUE(o.causal, "sinkhorn_self_attention_step: causal must be True for the form to stream, got False");
  return advance(o, p, in, std::move(state), training);
}

std::pair<Tensor, SinkhornSelfAttention::State> SinkhornSelfAttention::advance(const Options& o, const Parameters& p, const Inputs& in, State&& state,
                                                                               bool training) {
  constexpr auto form_name = "sinkhorn_self_attention";
  TORCH_CHECK_VALUE(o.context_only == in.context.has_value(), form_name, ": context must be given with context_only, and only then");
  TORCH_CHECK_VALUE(o.context_only || (p.key && p.value), form_name, ": key and value must be given without context_only");
  const Tensor q = split_heads(p.query(in.x), o.num_heads);
  const Tensor k = split_heads(o.context_only ? *in.context : (*p.key)(in.x), o.num_heads);
  const Tensor v = o.context_only ? k : split_heads((*p.value)(in.x), o.num_heads);
  const auto& key_mask = o.context_only ? in.context_mask : in.key_mask;
  const optional<Tensor> query_mask = in.key_mask ? optional(in.key_mask->slice_symint(1, extent(*in.key_mask, 1) - extent(in.x, 1))) : std::nullopt;
  const layers::WeightDropout dropout(o.attention_dropout, in.dropout_seed, training, in.x);

  const int64_t local = o.n_local_attn_heads, sorted = o.num_heads - local;
  const auto of_local = [&](const Tensor& x) { return x.narrow(1, 0, local); };
  const auto of_sorting = [&](const Tensor& x) { return local > 0 ? x.narrow(1, local, sorted) : x; };  // a narrowed gradient is a copy
  State next;
  const auto cache = layers::KVCache{.k = state.local_k, .v = state.local_v}.then(of_local(k), of_local(v));
  next.local_k = cache.k;
  next.local_v = cache.v;
  std::vector<Tensor> heads;
  if (local > 0) {
    heads.push_back(near_buckets(o, of_local(q), cache.k, cache.v, dropout.with({.key_mask = key_mask, .query_mask = query_mask}, 1)).out);
  }
  if (o.causal) {
    auto [found, after] = SinkhornCausalAttention::step(
        causal_sorting_of(o), p.sorting,
        {.q = of_sorting(q), .k = of_sorting(k), .v = of_sorting(v), .key_mask = key_mask, .query_mask = query_mask, .dropout_seed = dropout.seed()},
        std::move(state.sorted), false);
    heads.push_back(found.out);
    next.sorted = std::move(after);
  } else {
    heads.push_back(SinkhornAttention::forward(sorting_of(o), p.sorting,
                                               {.q = of_sorting(q),
                                                .k = of_sorting(k),
                                                .v = of_sorting(v),
                                                .key_mask = key_mask,
                                                .query_mask = query_mask,
                                                .gumbel = in.gumbel,
                                                .dropout_seed = dropout.seed()},
                                               false)
                        .out);
  }
  return {layers::dropout(p.out(merge_heads(heads)), o.dropout, in.dropout_keep, training), std::move(next)};
}

FOVEATE_MECHANISM(SinkhornAttention)
FOVEATE_MECHANISM(SinkhornCausalAttention)
FOVEATE_MECHANISM(SinkhornSelfAttention)

}  // namespace foveate
