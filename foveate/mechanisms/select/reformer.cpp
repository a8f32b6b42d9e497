#include <foveate/attention_formula.h>
#include <foveate/cluster_attention.h>
#include <foveate/dropout.h>
#include <foveate/heads.h>
#include <foveate/init.h>
#include <foveate/lsh.h>
#include <foveate/op.h>
#include <foveate/reformer.h>
#include <foveate/rotary.h>
#include <foveate/sparse_attention.h>

#include <algorithm>

namespace foveate {

Tensor detail::reformer_keys(const Tensor& qk, ReformerVariant variant) {
  const double scale = default_scale(qk);
  if (variant == ReformerVariant::l2norm) return qk / at::linalg_vector_norm(qk, 2, at::IntArrayRef{-1}, true).clamp_min(1e-12) * scale;
  return qk * (qk.square().mean(-1, true) + 1e-6).rsqrt() * scale;
}

double detail::reformer_self_score(ReformerVariant variant) { return variant == ReformerVariant::l2norm ? -5e4 : -1e5; }

void detail::check_reformer_buckets(const char* form, const char* option, const std::vector<int64_t>& counts) {
  for (const int64_t count : counts) {
    TORCH_CHECK_VALUE(count > 0 && count % 2 == 0, form, ": ", option, " must be even numbers, got ", count);
  }
}

namespace {

using detail::check_reformer_buckets;
using detail::reformer_keys;
using detail::reformer_self_score;

using Call = detail::ReformerCall;

Call call_of(const LSHAttention::Options& o, const LSHAttention::Inputs& in) {
  const Size N = extent(in.qk, 2);
  TORCH_CHECK_VALUE(!o.query_len || *o.query_len <= N, "lsh_attention: query_len must be no more than N = ", N, ", got ", o.query_len.value_or(0));
  return {.qk = in.qk, .v = in.v, .rotations = in.rotations, .mask = in.mask, .queries = o.query_len ? Size(*o.query_len) : N};
}

bool is_unit(const LSHAttention::Options& o) { return o.variant == ReformerVariant::l2norm; }

/// The rules of both ways to attend.
ops::ClusterAttention rules(const LSHAttention::Options& o, const Call& call) {
  return {.key_mask = call.mask,
          .query_mask = is_unit(o) ? call.mask : std::nullopt,
          .causal = o.causal,
          .causal_keys = call.queries,
          .self_score = reformer_self_score(o.variant),
          .scale = 1,
          .dropout_seed = call.dropout.dropout_seed,
          .dropout = call.dropout.dropout};
}

/// The first N of x [B,H,M,D] turned by their positions.
Tensor turned(const Tensor& x, const Size& N) {
  const Tensor first = positions::rotate(x.narrow_symint(2, 0, N), 0, {.interleaved = true});
  return at::cat({first, x.narrow_symint(2, N, extent(x, 2) - N)}, 2);
}

Tensor in_full(const LSHAttention::Options& o, const Call& call) {
  return ops::cluster_attention(call.qk, reformer_keys(call.qk, o.variant), call.v, rules(o, call)).out.narrow_symint(2, 0, call.queries);
}

LSHAttention::Outputs attend(const LSHAttention::Options& o, Call call) {
  if (o.full_attn_thres > 0 && extent(call.qk, 2) < o.full_attn_thres) {
    const auto whole = call.qk.options().dtype(at::kLong);
    return {.out = in_full(o, call), .buckets = at::zeros_symint({extent(call.qk, 0), extent(call.qk, 1), o.n_hashes, extent(call.qk, 2)}, whole)};
  }
  if (!call.rotations) call.seed = ops::draw_seed(call.qk);
  const Tensor buckets = detail::reformer_buckets(o, call);
  return {.out = detail::reformer_by_buckets(o, call, buckets), .buckets = buckets};
}

}  // namespace

Tensor detail::reformer_buckets(const LSHAttention::Options& o, const Call& call) {
  return ops::lsh_buckets(call.qk, {.factors = o.n_buckets,
                                    .rounds = o.n_hashes,
                                    .chunk = o.bucket_size,
                                    .rule = is_unit(o) ? ops::BucketRule::one_a_chunk : ops::BucketRule::power_of_two,
                                    .per_head = !is_unit(o) || o.rotations_per_head,
                                    .rehash = o.rehash_each_round,
                                    .rotations = call.rotations,
                                    .seed = call.seed,
                                    .mask = is_unit(o) ? std::nullopt : call.mask});
}

Tensor detail::reformer_by_buckets(const LSHAttention::Options& o, const Call& call, const Tensor& buckets) {
  const auto line = ops::lsh_line(buckets, o.bucket_size, !o.attend_across_buckets);
  ops::ClusterAttention how = rules(o, call);
  how.q_index = how.k_index = line.token;
  how.q_size = how.k_size = o.bucket_size;
  how.before = o.chunks_before;
  how.after = o.chunks_after;
  how.circular = true;
  if (!o.attend_across_buckets) how.label = line.label;
  if (!o.allow_duplicate_attention) how.meetings = line.meetings;
  how.merged = true;
  const Tensor qk = call.rotary ? turned(call.qk, call.queries) : call.qk;
  return ops::cluster_attention(qk, reformer_keys(qk, o.variant), call.v, how).out.narrow_symint(2, 0, call.queries);
}

// --- the bare function -------------------------------------------------------------------------------------------------------

void LSHAttention::check(const Options& o) {
  TORCH_CHECK_VALUE(o.bucket_size > 0 && o.n_hashes > 0, "lsh_attention: bucket_size and n_hashes must be positive, got ", o.bucket_size, " and ",
                    o.n_hashes);
  TORCH_CHECK_VALUE(o.chunks_before >= 0 && o.chunks_after >= 0, "lsh_attention: chunks_before and chunks_after must not be negative, got ",
                    o.chunks_before, " and ", o.chunks_after);
  check_reformer_buckets("lsh_attention", "n_buckets", o.n_buckets);
  const bool unit = o.variant == ReformerVariant::l2norm;
  TORCH_CHECK_VALUE(unit || (o.allow_duplicate_attention && o.attend_across_buckets && o.rehash_each_round),
                    "lsh_attention: allow_duplicate_attention, attend_across_buckets and rehash_each_round must be True for rmsnorm");
  TORCH_CHECK_VALUE(!unit || (o.chunks_before == 1 && o.chunks_after == 0),
                    "lsh_attention: chunks_before and chunks_after must be 1 and 0 for l2norm, got ", o.chunks_before, " and ", o.chunks_after);
  TORCH_CHECK_VALUE(o.rehash_each_round || o.allow_duplicate_attention,
                    "lsh_attention: allow_duplicate_attention must be True without rehash_each_round");
}

LSHAttention::Outputs LSHAttention::forward(const Options& o, const Parameters&, const Inputs& in) { return attend(o, call_of(o, in)); }

FOVEATE_MECHANISM(LSHAttention)

// --- the layer of reformer-pytorch -------------------------------------------------------------------------------------------

LSHAttention::Options LSHSelfAttention::Options::hashed() const {
  return {.variant = ReformerVariant::l2norm,
          .bucket_size = bucket_size,
          .n_buckets = n_buckets,
          .n_hashes = n_hashes,
          .causal = causal,
          .allow_duplicate_attention = allow_duplicate_attention,
          .attend_across_buckets = attend_across_buckets,
          .rotations_per_head = rotations_per_head,
          .rehash_each_round = rehash_each_round,
          .full_attn_thres = full_attn_thres};
}

void LSHSelfAttention::check(const Options& o) {
  layers::check_heads("lsh_self_attention", o.embed_dim, o.num_heads);
  layers::check_dropout("lsh_self_attention", "dropout", o.dropout);
  layers::check_dropout("lsh_self_attention", "attention_dropout", o.attention_dropout);
  LSHAttention::check(o.hashed());
  TORCH_CHECK_VALUE(o.n_local_heads >= 0 && o.n_local_heads <= o.num_heads && o.num_mem_kv >= 0,
                    "lsh_self_attention: n_local_heads must be 0 to num_heads = ", o.num_heads, ", num_mem_kv not negative, got ", o.n_local_heads,
                    " and ", o.num_mem_kv);
}

LSHSelfAttention::Parameters LSHSelfAttention::init(const Options& o) {
  const int64_t E = o.embed_dim;
  Parameters p{.query_key = layers::Linear::init(E, E, false),
               .value = layers::Linear::init(E, o.one_value_head ? E / o.num_heads : E, false),
               .out = layers::Linear::init(E, E)};
  if (o.num_mem_kv > 0) p.mem_kv = layers::normal({1, o.num_mem_kv, E}, 1);
  return p;
}

Tensor LSHSelfAttention::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  const Size N = extent(in.x, 1);
  const int64_t local = o.n_local_heads;
  const Tensor all = p.mem_kv ? at::cat({in.x, p.mem_kv->expand_symint({extent(in.x, 0), -1, -1})}, 1) : in.x;
  const Tensor qk = split_heads(p.query_key(all), o.num_heads);
  const Tensor v = o.one_value_head ? p.value(all).unsqueeze(1).expand_symint({-1, o.num_heads, -1, -1}) : split_heads(p.value(all), o.num_heads);
  const ops::Attention dropout = layers::WeightDropout(o.attention_dropout, std::nullopt, training, in.x).with({});
  std::vector<Tensor> heads;
  if (local > 0) {  // they see the sequence alone, and padding not even itself
    const auto mine = [&](const Tensor& x) { return x.narrow(1, 0, local).narrow_symint(2, 0, N); };
    const int64_t window = 2 * o.bucket_size;
    heads.push_back(ops::cluster_attention(mine(qk), reformer_keys(mine(qk), ReformerVariant::l2norm), mine(v),
                                           {.q_size = window,
                                            .k_size = window,
                                            .before = 1,
                                            .after = o.causal ? 0 : 1,
                                            .key_mask = in.mask,
                                            .query_mask = in.mask,
                                            .causal = o.causal,
                                            .self_score = reformer_self_score(ReformerVariant::l2norm),
                                            .self_seen = false,
                                            .scale = 1,
                                            .dropout_seed = dropout.dropout_seed,
                                            .dropout = dropout.dropout})
                        .out);
  }
  if (local < o.num_heads) {
    const auto mine = [&](const Tensor& x) { return x.narrow(1, local, o.num_heads - local); };
    optional<Tensor> mask = in.mask;
    if (mask && p.mem_kv) mask = at::cat({*mask, at::ones_symint({extent(in.x, 0), extent(*p.mem_kv, 1)}, mask->options())}, 1);
    heads.push_back(
        attend(o.hashed(),
               {.qk = mine(qk), .v = mine(v), .rotations = in.rotations, .mask = mask, .queries = N, .dropout = dropout, .rotary = o.rotary})
            .out);
  }
  return layers::dropout(p.out(merge_heads(heads)), o.dropout, std::nullopt, training);
}

FOVEATE_MECHANISM(LSHSelfAttention)

// --- the layers of transformers ----------------------------------------------------------------------------------------------

namespace {

void check_chunks(const char* form, const auto& o) {
  TORCH_CHECK_VALUE(o.embed_dim > 0 && o.num_heads > 0 && o.head_dim > 0 && o.chunk_length > 0, form,
                    ": embed_dim, num_heads, head_dim and chunk_length must be positive, got ", o.embed_dim, ", ", o.num_heads, ", ", o.head_dim,
                    " and ", o.chunk_length);
  TORCH_CHECK_VALUE(o.chunks_before >= 0 && o.chunks_after >= 0, form, ": chunks_before and chunks_after must not be negative, got ", o.chunks_before,
                    " and ", o.chunks_after);
}

}  // namespace

layers::Linear detail::reformer_projection(int64_t in, int64_t out) { return {.weight = layers::normal({out, in}, 0.02), .bias = {}}; }

Tensor detail::reformer_locally(const ReformerLocalSelfAttention::Options& o, const Tensor& q, const Tensor& k, const Tensor& v,
                                const optional<Tensor>& mask, const ops::Attention& dropout) {
  return ops::cluster_attention(q, k, v,
                                {.q_size = o.chunk_length,
                                 .k_size = o.chunk_length,
                                 .before = o.chunks_before,
                                 .after = o.chunks_after,
                                 .circular = true,
                                 .key_mask = mask,
                                 .causal = o.causal,
                                 .dropout_seed = dropout.dropout_seed,
                                 .dropout = dropout.dropout})
      .out;
}

LSHAttention::Options ReformerLSHSelfAttention::Options::hashed() const {
  return {.variant = ReformerVariant::rmsnorm,
          .bucket_size = chunk_length,
          .n_buckets = num_buckets,
          .n_hashes = num_hashes,
          .causal = causal,
          .chunks_before = chunks_before,
          .chunks_after = chunks_after};
}

void ReformerLSHSelfAttention::check(const Options& o) {
  check_chunks("reformer_lsh_self_attention", o);
  check_reformer_buckets("reformer_lsh_self_attention", "num_buckets", o.num_buckets);
  TORCH_CHECK_VALUE(o.num_hashes > 0, "reformer_lsh_self_attention: num_hashes must be positive, got ", o.num_hashes);
}

ReformerLSHSelfAttention::Parameters ReformerLSHSelfAttention::init(const Options& o) {
  const int64_t inner = o.num_heads * o.head_dim;
  return {.query_key = detail::reformer_projection(o.embed_dim, inner), .value = detail::reformer_projection(o.embed_dim, inner)};
}

ReformerLSHSelfAttention::Outputs ReformerLSHSelfAttention::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const Tensor qk = split_heads(p.query_key(in.x), o.num_heads), v = split_heads(p.value(in.x), o.num_heads);
  const auto [out, buckets] = attend(o.hashed(), call_of(o.hashed(), {.qk = qk, .v = v, .rotations = in.rotations, .mask = in.mask}));
  return {.out = merge_heads(out), .buckets = buckets};
}

FOVEATE_MECHANISM(ReformerLSHSelfAttention)

void ReformerLocalSelfAttention::check(const Options& o) { check_chunks("reformer_local_self_attention", o); }

ReformerLocalSelfAttention::Parameters ReformerLocalSelfAttention::init(const Options& o) {
  const int64_t inner = o.num_heads * o.head_dim;
  return {.query = detail::reformer_projection(o.embed_dim, inner),
          .key = detail::reformer_projection(o.embed_dim, inner),
          .value = detail::reformer_projection(o.embed_dim, inner)};
}

Tensor ReformerLocalSelfAttention::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const auto heads = [&](const layers::Linear& map) { return split_heads(map(in.x), o.num_heads); };
  return merge_heads(detail::reformer_locally(o, heads(p.query), heads(p.key), heads(p.value), in.mask));
}

std::pair<Tensor, ReformerLocalSelfAttention::State> ReformerLocalSelfAttention::step(const Options& o, const Parameters& p, const Inputs& in,
                                                                                      State&& past) {
  TORCH_CHECK_VALUE(o.causal, "reformer_local_self_attention_step: causal must be True for the layer to stream, got False");
  TORCH_CHECK_VALUE(!in.mask, "reformer_local_self_attention_step: mask: tokens that take no part are left out of a stream");
  const auto heads = [&](const layers::Linear& map) { return split_heads(map(in.x), o.num_heads); };
  State next = past.then(heads(p.key), heads(p.value));
  const int64_t L = o.chunk_length;
  const auto near = patterns::block_window(L, o.chunks_before * L, o.chunks_after * L) & patterns::causal();
  return {merge_heads(ops::sparse_attention(heads(p.query), next.k, next.v, near).out), std::move(next)};
}

FOVEATE_MECHANISM(ReformerLocalSelfAttention)

}  // namespace foveate
