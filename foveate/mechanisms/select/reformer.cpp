#include <foveate/attention.h>
#include <foveate/attention_formula.h>
#include <foveate/dropout.h>
#include <foveate/heads.h>
#include <foveate/init.h>
#include <foveate/merge_attention.h>
#include <foveate/reformer.h>
#include <foveate/sparse_attention.h>

#include <algorithm>
#include <numeric>

namespace foveate {
namespace {

/// The score of a token before itself: seen, but a last resort.
double itself(ReformerVariant variant) { return variant == ReformerVariant::l2norm ? -5e4 : -1e5; }

/// Queries as keys, scores scaled within.
Tensor as_keys(const Tensor& qk, ReformerVariant variant) {
  const double scale = default_scale(qk);
  if (variant == ReformerVariant::l2norm) return qk / at::linalg_vector_norm(qk, 2, at::IntArrayRef{-1}, true).clamp_min(1e-12) * scale;
  return qk * (qk.square().mean(-1, true) + 1e-6).rsqrt() * scale;
}

/// A line [B,H,T] of tokens cut into chunks of L, each with those around it, the last before the first.
struct Chunks {
  optional<Tensor> tokens;  // int [B,H,T], which token stands at each place; in their order if there is none
  int64_t L, before, after;

  int64_t around() const { return before + 1 + after; }
  /// x [B,H,N,...] -> [B,H,C,L,...]
  Tensor cut(const Tensor& x) const {
    Tensor line = x;
    if (tokens) {
      Tensor index = *tokens;
      for (int64_t d = 3; d < x.dim(); ++d) index = index.unsqueeze(-1);
      auto shape = x.sym_sizes().vec();
      shape[2] = extent(*tokens, 2);
      line = x.gather(2, index.expand_symint(shape));
    }
    return line.unflatten(2, {-1, L});
  }
  /// [B,H,C,L,...] -> [B,H,C,around L,...]
  Tensor spread(const Tensor& chunks) const {
    std::vector<Tensor> parts;
    for (int64_t offset = -before; offset <= after; ++offset) parts.push_back(offset == 0 ? chunks : chunks.roll(-offset, 2));
    return parts.size() == 1 ? parts.front() : at::cat(parts, 3);
  }
  /// How often a chunk meets itself: where there are few, more than once.
  int64_t met(int64_t count) const {
    int64_t times = 0;
    for (int64_t offset = -before; offset <= after; ++offset) times += offset % count == 0 ? 1 : 0;
    return times;
  }
};

/// What hides a key at time tk from a query at time tq, both [B,H,C,*]: causality, and padding [B,N] of keys, and of queries.
Tensor visible(const Tensor& tq, const Tensor& tk, bool causal, const optional<Tensor>& mask, bool queries_too, int64_t query_len, bool self) {
  const Tensor i = tq.unsqueeze(4), j = tk.unsqueeze(3);
  Tensor seen = self ? at::ones_like(i == j) : i != j;  // [B,H,C,L,around L]
  if (causal) seen = seen & ((j <= i) | (j >= query_len));
  if (mask) {
    const auto taking_part = [&](const Tensor& times) {
      const auto sizes = times.sym_sizes();
      const Tensor each = mask->unsqueeze(1).expand_symint({-1, sizes[1], -1}).gather(2, times.flatten(2));
      return each.reshape_symint(sizes);
    };
    seen = seen & taking_part(tk).unsqueeze(3);
    if (queries_too) seen = seen & taking_part(tq).unsqueeze(4);
  }
  return seen;
}

/// Attention of chunks [B,H,C,L,*] to keys [B,H,C,M,*]: out [B,H,C L,Dv] and lse [B,H,C L].
ops::Attended attend(const Tensor& q, const Tensor& k, const Tensor& v, ops::Attention how) {
  how.scale = 1;
  const auto [out, lse] = ops::attention(q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2), how);  // [B,H C,L,*]
  const int64_t heads = plain_extent(q, 1);
  return {.out = out.unflatten(1, {heads, -1}).flatten(2, 3), .lse = lse.unflatten(1, {heads, -1}).flatten(2, 3)};
}

// --- hashing -----------------------------------------------------------------------------------------------------------------

int64_t product(const std::vector<int64_t>& factors) {
  return std::accumulate(factors.begin(), factors.end(), int64_t{1}, std::multiplies<int64_t>());
}

/// The numbers of buckets that the authors' codes take for N tokens, where none are given.
std::vector<int64_t> factors(const LSHAttention::Options& o, int64_t N) {
  if (!o.n_buckets.empty()) return o.n_buckets;
  const int64_t chunks = std::max<int64_t>(N / o.bucket_size, 2);
  if (o.variant == ReformerVariant::l2norm) return {chunks - chunks % 2};
  int64_t power = 2;
  while (2 * power <= 2 * chunks) power *= 2;
  const auto limit = static_cast<int64_t>(2 * std::max(std::sqrt(static_cast<double>(chunks)), static_cast<double>(o.bucket_size)));
  if (power <= limit) return {power};
  int64_t first = 2;
  while (first * first < power) first *= 2;
  return {first, power / first};
}

/// Rotations as [B or 1,H or 1,R,D,columns].
Tensor rotations(const LSHAttention::Options& o, const LSHAttention::Inputs& in, const Tensor& x, const std::vector<int64_t>& buckets) {
  const int64_t columns = std::accumulate(buckets.begin(), buckets.end(), int64_t{0}) / 2;
  const int64_t rounds = o.rehash_each_round ? o.n_hashes : 1;
  const Size B = extent(x, 0), H = extent(x, 1);
  Tensor W;
  if (in.rotations) {
    W = in.rotations->detach().to(x.scalar_type());
    TORCH_CHECK_VALUE(extent(W, 1) == extent(x, 3) && extent(W, 2) == rounds && extent(W, 3) == columns,
                      "lsh_attention: rotations must be [*,D,R,half the buckets] with D = ", extent(x, 3), ", R = ", rounds, " and ", columns,
                      " columns, got ", W.sym_sizes());
  } else {
    const Size first = o.variant == ReformerVariant::rmsnorm ? H : o.rotations_per_head ? B * H : Size(1);
    W = at::randn_symint({first, extent(x, 3), rounds, columns}, x.options());
  }
  W = W.movedim(2, 1);  // [*,R,D,columns]
  if (extent(W, 0) == 1) return W.unsqueeze(0);
  if (extent(W, 0) == H) return W.unsqueeze(0);
  TORCH_CHECK_VALUE(extent(W, 0) == B * H, "lsh_attention: rotations must be of all, of each of H = ", H, " heads or of each of B H = ", B * H,
                    ", got ", extent(W, 0));
  return W.unflatten_symint(0, {B, H});
}

/// The bucket of each token in each round, rounds counted on: int [B,H,R,N]
Tensor hashed(const LSHAttention::Options& o, const LSHAttention::Inputs& in, const std::vector<int64_t>& counts) {
  const Tensor x = in.qk.detach().to(ops::accumulation_type(in.qk.scalar_type()));
  const Tensor p = at::matmul(x.unsqueeze(2), rotations(o, in, x, counts));  // [B,H,R,N,columns]
  const auto signs = [&](int64_t column, int64_t count) {
    const Tensor part = p.narrow(4, column, count / 2);
    return at::cat({part, -part}, 4);
  };
  Tensor bucket;
  if (!o.rehash_each_round) {
    const Tensor order = at::argsort(signs(0, counts.front()).squeeze(2), /*stable=*/true, /*dim=*/-1, /*descending=*/false);  // [B,H,N,buckets]
    bucket = order.narrow(3, counts.front() - o.n_hashes, o.n_hashes).transpose(2, 3);
  } else {
    int64_t base = 1, column = 0;
    for (const int64_t count : counts) {
      const Tensor part = signs(column, count).argmax(-1) * base;
      bucket = bucket.defined() ? bucket + part : part;
      base *= count;
      column += count / 2;
    }
  }
  int64_t all = product(counts);
  if (o.variant == ReformerVariant::rmsnorm && in.mask) {  // padding has a bucket of its own
    bucket = at::where(in.mask->unsqueeze(1).unsqueeze(1), bucket, at::full_like(bucket, all));
    const Tensor rounds = at::arange(o.n_hashes, bucket.options()).unsqueeze(1);
    return bucket + rounds * (all + in.mask->logical_not().any().to(at::kLong));
  }
  return bucket + at::arange(o.n_hashes, bucket.options()).unsqueeze(1) * all;
}

/// log of how often the pairs meet over all rounds: [B,H,C,L,2L]. `order` [B,H,R N] sorts entries, `chunks` cuts their tokens.
Tensor log_meetings(const LSHAttention::Options& o, const Tensor& buckets, const Tensor& order, const Chunks& chunks) {
  const int64_t L = chunks.L;
  const Size N = extent(buckets, 3), C = extent(order, 2) / L;
  const Tensor place = at::scatter(at::zeros_like(order), 2, order, at::arange(extent(order, 2), order.options()).expand_as(order));
  Tensor own = place.floor_divide(L).unflatten_symint(2, {o.n_hashes, N});  // [B,H,R,N]: the chunk of each entry
  Tensor next = (own + 1).remainder(at::ones_like(own) * C);
  if (!o.attend_across_buckets) {
    own = own + buckets * C;
    next = next + buckets * C;
  }
  Tensor count;
  for (int64_t r = 0; r < o.n_hashes; ++r) {
    const Tensor of_query = chunks.cut(own.select(2, r)).unsqueeze(4);
    const auto same = [&](const Tensor& of_key) { return (of_query == chunks.spread(chunks.cut(of_key.select(2, r))).unsqueeze(3)).to(at::kInt); };
    const Tensor met = same(own) + same(next);
    count = count.defined() ? count + met : met;
  }
  return count;
}

LSHAttention::Outputs in_full(const LSHAttention::Options& o, const LSHAttention::Inputs& in) {
  const int64_t N = plain_extent(in.qk, 2), queries = o.query_len.value_or(N);
  const Tensor time = at::arange(N, in.qk.options().dtype(at::kLong)).expand_symint({extent(in.qk, 0), extent(in.qk, 1), 1, -1});
  const Tensor seen = visible(time, time, o.causal, in.mask, o.variant == ReformerVariant::l2norm, queries, false);
  const auto alone = [](const Tensor& x) { return x.unsqueeze(2); };
  const ops::Attention how{.mask = seen.flatten(1, 2), .start = ops::Start{.logit = in.qk.new_full({}, itself(o.variant)), .value = in.v}};
  const Tensor out = attend(alone(in.qk), alone(as_keys(in.qk, o.variant)), alone(in.v), how).out;
  return {.out = out.narrow(2, 0, queries), .buckets = at::zeros_symint({extent(in.qk, 0), extent(in.qk, 1), o.n_hashes, N}, time.options())};
}

LSHAttention::Outputs by_hashing(const LSHAttention::Options& o, const LSHAttention::Inputs& in) {
  const bool unit = o.variant == ReformerVariant::l2norm;
  const int64_t N = plain_extent(in.qk, 2), R = o.n_hashes, L = o.bucket_size, queries = o.query_len.value_or(N);
  TORCH_CHECK_VALUE(N % (unit ? 2 * L : L) == 0, "lsh_attention: ", unit ? "2 bucket_size" : "bucket_size", " must divide the length, got ", L,
                    " and N = ", N);
  const Tensor buckets = hashed(o, in, factors(o, N));
  const Tensor time = at::arange(N, buckets.options());
  const Tensor by_round = at::argsort(buckets * N + time, /*stable=*/true, /*dim=*/-1, /*descending=*/false);  // [B,H,R,N]
  const Tensor order = (by_round + at::arange(R, buckets.options()).unsqueeze(1) * N).flatten(2);              // of entries
  const Chunks chunks{.tokens = by_round.flatten(2), .L = L, .before = unit ? 1 : o.chunks_before, .after = unit ? 0 : o.chunks_after};

  const Tensor tq = chunks.tokens->unflatten(2, {-1, L}), tk = chunks.spread(tq);  // [B,H,C,*]
  Tensor seen = visible(tq, tk, o.causal, in.mask, unit, queries, false);
  if (!o.attend_across_buckets) {
    const Tensor bucket = buckets.flatten(2).gather(2, order).unflatten(2, {-1, L});
    seen = seen & (bucket.unsqueeze(4) == chunks.spread(bucket).unsqueeze(3));
  }
  ops::Attention how{.mask = seen.flatten(1, 2)};
  const Tensor v = chunks.cut(in.v);
  const int64_t C = R * N / L;
  Tensor self = in.qk.new_full({}, itself(o.variant) + std::log(static_cast<double>(std::max<int64_t>(chunks.met(C), 1))));
  if (!o.allow_duplicate_attention) {
    const Tensor met = log_meetings(o, buckets, order, chunks);
    const auto discount = [&](const Tensor& count) { return -(count.to(in.qk.scalar_type()) + 1e-9).log(); };
    how.bias = discount(met).flatten(1, 2);
    const Tensor alone = at::where(tq.unsqueeze(4) == tk.unsqueeze(3), met, at::zeros_like(met)).amax(-1);  // with itself
    self = (discount(alone) + itself(o.variant)).flatten(1, 2);                                             // [B,H C,L]
  }
  how.start = ops::Start{.logit = self, .value = v.flatten(1, 2)};
  const auto [out, lse] = attend(chunks.cut(in.qk), chunks.spread(chunks.cut(as_keys(in.qk, o.variant))), chunks.spread(v), how);

  const Tensor back = at::scatter(at::zeros_like(by_round), 3, by_round, time.expand_as(by_round));  // [B,H,R,N]: where each entry stands
  const Tensor outs = out.unflatten(2, {R, N}).gather(3, back.unsqueeze(4).expand_symint({-1, -1, -1, -1, extent(out, 3)}));
  const Tensor lses = lse.unflatten(2, {R, N}).gather(3, back);
  const Tensor merged = R == 1 ? outs.squeeze(2) : ops::merge_attention(outs.movedim(2, 0), lses.movedim(2, 0)).out;
  return {.out = merged.narrow(2, 0, queries), .buckets = buckets};
}

LSHAttention::Outputs attend(const LSHAttention::Options& o, const LSHAttention::Inputs& in) {
  const int64_t N = plain_extent(in.qk, 2);
  TORCH_CHECK_VALUE(o.query_len.value_or(N) <= N, "lsh_attention: query_len must be no more than N = ", N, ", got ", o.query_len.value_or(N));
  const bool few = N < o.full_attn_thres || (o.variant == ReformerVariant::rmsnorm && N <= o.bucket_size);
  return few ? in_full(o, in) : by_hashing(o, in);
}

void check_factors(const char* form, const char* option, const std::vector<int64_t>& counts) {
  for (const int64_t count : counts) {
    TORCH_CHECK_VALUE(count > 0 && count % 2 == 0, form, ": ", option, " must be even numbers, got ", count);
  }
}

}  // namespace

// --- the bare function -------------------------------------------------------------------------------------------------------

void LSHAttention::check(const Options& o) {
  TORCH_CHECK_VALUE(o.bucket_size > 0 && o.n_hashes > 0, "lsh_attention: bucket_size and n_hashes must be positive, got ", o.bucket_size, " and ",
                    o.n_hashes);
  TORCH_CHECK_VALUE(o.chunks_before >= 0 && o.chunks_after >= 0, "lsh_attention: chunks_before and chunks_after must not be negative, got ",
                    o.chunks_before, " and ", o.chunks_after);
  check_factors("lsh_attention", "n_buckets", o.n_buckets);
  const bool unit = o.variant == ReformerVariant::l2norm;
  TORCH_CHECK_VALUE(unit || (o.allow_duplicate_attention && o.attend_across_buckets && o.rehash_each_round),
                    "lsh_attention: allow_duplicate_attention, attend_across_buckets and rehash_each_round must be True for rmsnorm");
  TORCH_CHECK_VALUE(!unit || (o.chunks_before == 1 && o.chunks_after == 0),
                    "lsh_attention: chunks_before and chunks_after must be 1 and 0 for l2norm, got ", o.chunks_before, " and ", o.chunks_after);
  TORCH_CHECK_VALUE(o.rehash_each_round || o.allow_duplicate_attention,
                    "lsh_attention: allow_duplicate_attention must be True without rehash_each_round");
}

LSHAttention::Outputs LSHAttention::forward(const Options& o, const Parameters&, const Inputs& in) { return attend(o, in); }

FOVEATE_MECHANISM(LSHAttention)

// --- the layer of reformer-pytorch -------------------------------------------------------------------------------------------

LSHAttention::Options LSHSelfAttention::Options::hashed(const optional<int64_t>& query_len) const {
  return {.variant = ReformerVariant::l2norm,
          .bucket_size = bucket_size,
          .n_buckets = n_buckets,
          .n_hashes = n_hashes,
          .causal = causal,
          .allow_duplicate_attention = allow_duplicate_attention,
          .attend_across_buckets = attend_across_buckets,
          .rotations_per_head = rotations_per_head,
          .rehash_each_round = rehash_each_round,
          .query_len = query_len,
          .full_attn_thres = full_attn_thres};
}

void LSHSelfAttention::check(const Options& o) {
  layers::check_heads("lsh_self_attention", o.embed_dim, o.num_heads);
  layers::check_dropout("lsh_self_attention", "dropout", o.dropout);
  LSHAttention::check(o.hashed({}));
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
  const int64_t N = plain_extent(in.x, 1), local = o.n_local_heads;
  const Tensor all = p.mem_kv ? at::cat({in.x, p.mem_kv->expand_symint({extent(in.x, 0), -1, -1})}, 1) : in.x;
  const Tensor qk = split_heads(p.query_key(all), o.num_heads);
  const Tensor v = o.one_value_head ? p.value(all).unsqueeze(1).expand_symint({-1, o.num_heads, -1, -1}) : split_heads(p.value(all), o.num_heads);
  std::vector<Tensor> heads;
  if (local > 0) {
    const auto mine = [&](const Tensor& x) { return x.narrow(1, 0, local).narrow(2, 0, N); };
    const int64_t window = 2 * o.bucket_size;
    const auto near = patterns::block_window(window, window, o.causal ? 0 : window) & ~patterns::sliding_window(0, 0);
    ops::Attention how{.key_mask = in.mask, .causal = o.causal, .scale = 1, .query_mask = in.mask};
    how.start = ops::Start{.logit = qk.new_full({}, itself(ReformerVariant::l2norm)), .value = mine(v)};
    heads.push_back(ops::sparse_attention(mine(qk), as_keys(mine(qk), ReformerVariant::l2norm), mine(v), near, how).out);
  }
  if (local < o.num_heads) {
    const auto mine = [&](const Tensor& x) { return x.narrow(1, local, o.num_heads - local); };
    optional<Tensor> mask = in.mask;
    if (mask && p.mem_kv) mask = at::cat({*mask, at::ones_symint({extent(in.x, 0), extent(*p.mem_kv, 1)}, mask->options())}, 1);
    heads.push_back(attend(o.hashed(N), {.qk = mine(qk), .v = mine(v), .rotations = in.rotations, .mask = mask}).out);
  }
  return layers::dropout(p.out(merge_heads(at::cat(heads, 1))), o.dropout, std::nullopt, training);
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

layers::Linear plain(int64_t in, int64_t out) { return {.weight = layers::normal({out, in}, 0.02), .bias = {}}; }

/// q, k, v [B,H,N,D] in chunks as they stand.
Tensor locally(const ReformerLocalSelfAttention::Options& o, const Tensor& q, const Tensor& k, const Tensor& v, const optional<Tensor>& mask) {
  const int64_t N = plain_extent(q, 2), L = std::min(o.chunk_length, N);
  TORCH_CHECK_VALUE(L == 0 || N % L == 0, "reformer_local_self_attention: chunk_length must divide the length, got ", o.chunk_length, " and N = ", N);
  const Chunks chunks{.tokens = {}, .L = L, .before = N > L ? o.chunks_before : 0, .after = N > L ? o.chunks_after : 0};
  const Tensor time = at::arange(N, q.options().dtype(at::kLong)).expand_symint({extent(q, 0), extent(q, 1), -1}).unflatten(2, {-1, L});
  ops::Attention how;
  if (o.causal || mask) how.mask = visible(time, chunks.spread(time), o.causal, mask, false, N, true).flatten(1, 2);
  return attend(chunks.cut(q), chunks.spread(chunks.cut(k * default_scale(k))), chunks.spread(chunks.cut(v)), how).out;
}

}  // namespace

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
  check_factors("reformer_lsh_self_attention", "num_buckets", o.num_buckets);
  TORCH_CHECK_VALUE(o.num_hashes > 0, "reformer_lsh_self_attention: num_hashes must be positive, got ", o.num_hashes);
}

ReformerLSHSelfAttention::Parameters ReformerLSHSelfAttention::init(const Options& o) {
  const int64_t inner = o.num_heads * o.head_dim;
  return {.query_key = plain(o.embed_dim, inner), .value = plain(o.embed_dim, inner)};
}

ReformerLSHSelfAttention::Outputs ReformerLSHSelfAttention::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const auto [out, buckets] = attend(
      o.hashed(),
      {.qk = split_heads(p.query_key(in.x), o.num_heads), .v = split_heads(p.value(in.x), o.num_heads), .rotations = in.rotations, .mask = in.mask});
  return {.out = merge_heads(out), .buckets = buckets};
}

FOVEATE_MECHANISM(ReformerLSHSelfAttention)

void ReformerLocalSelfAttention::check(const Options& o) { check_chunks("reformer_local_self_attention", o); }

ReformerLocalSelfAttention::Parameters ReformerLocalSelfAttention::init(const Options& o) {
  const int64_t inner = o.num_heads * o.head_dim;
  return {.query = plain(o.embed_dim, inner), .key = plain(o.embed_dim, inner), .value = plain(o.embed_dim, inner)};
}

Tensor ReformerLocalSelfAttention::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const auto heads = [&](const layers::Linear& map) { return split_heads(map(in.x), o.num_heads); };
  return merge_heads(locally(o, heads(p.query), heads(p.key), heads(p.value), in.mask));
}

FOVEATE_MECHANISM(ReformerLocalSelfAttention)

// --- the stack ---------------------------------------------------------------------------------------------------------------

namespace {

using Kind = ReformerLayerKind;

/// [N,E]: the row's position beside the column's.
Tensor axial_positions(const Reformer::Parameters& p, const Size& N) {
  const Tensor &rows = *p.row_positions, &columns = *p.column_positions;
  const int64_t n1 = plain_extent(rows, 0), n2 = plain_extent(columns, 1);
  TORCH_CHECK_VALUE(N <= n1 * n2, "reformer: x must have no more tokens than axial_shape has places, ", n1 * n2, ", got ", N);
  const Tensor grid = at::cat({rows.expand_symint({-1, n2, -1}), columns.expand_symint({n1, -1, -1})}, 2);
  return grid.flatten(0, 1).narrow_symint(0, 0, N);
}

/// The network, a run of tokens at a time: what is inside is as wide as inner_dim.
Tensor network(const Reformer::Options& o, const ReformerLayer& layer, const Tensor& x) {
  const auto run = [&](const Tensor& y) { return layer.network(layer.network_norm(y, o.layer_norm_eps), o.ff_activation); };
  if (o.ff_chunk == 0) return run(x);
  std::vector<Tensor> parts;
  for (const Tensor& part : x.split(o.ff_chunk, 1)) parts.push_back(run(part));
  return at::cat(parts, 1);
}

}  // namespace

ReformerLSHSelfAttention::Options Reformer::Options::hashed() const {
  return {.embed_dim = embed_dim,
          .num_heads = num_heads,
          .head_dim = head_dim,
          .chunk_length = chunk_length,
          .num_hashes = num_hashes,
          .num_buckets = num_buckets,
          .chunks_before = chunks_before,
          .chunks_after = chunks_after,
          .causal = causal};
}

ReformerLocalSelfAttention::Options Reformer::Options::local() const {
  return {.embed_dim = embed_dim,
          .num_heads = num_heads,
          .head_dim = head_dim,
          .chunk_length = chunk_length,
          .chunks_before = chunks_before,
          .chunks_after = chunks_after,
          .causal = causal};
}

std::vector<Kind> Reformer::Options::kinds() const { return layers.value_or(std::vector{Kind::local, Kind::lsh}); }

void Reformer::check(const Options& o) {
  ReformerLSHSelfAttention::check(o.hashed());
  layers::check_dropout("reformer", "dropout", o.dropout);
  TORCH_CHECK_VALUE(!o.kinds().empty() && o.inner_dim > 0 && o.ff_chunk >= 0,
                    "reformer: layers must name some, inner_dim must be positive and ff_chunk not negative, got ", o.kinds().size(), " layers, ",
                    o.inner_dim, " and ", o.ff_chunk);
  TORCH_CHECK_VALUE(
      o.axial_shape.empty() || (o.axial_shape.size() == 2 && o.axial_dims.size() == 2 && o.axial_dims[0] + o.axial_dims[1] == o.embed_dim),
      "reformer: axial_shape and axial_dims must be two numbers each, axial_dims embed_dim = ", o.embed_dim, " together");
}

Reformer::Parameters Reformer::shape(const Options& o) {
  Parameters p;
  for (const Kind kind : o.kinds()) {
    ReformerLayer layer;
    if (kind == Kind::lsh) layer.query_key = layers::Linear{};
    else layer.query = layer.key = layers::Linear{};
    layer.network.up.bias = Tensor();
    layer.network.down.bias = Tensor();
    p.layers.push_back(std::move(layer));
  }
  return p;
}

Reformer::Parameters Reformer::init(const Options& o) {
  const int64_t E = o.embed_dim, inner = o.num_heads * o.head_dim;
  const auto biased = [](int64_t in, int64_t out) { return layers::Linear{.weight = layers::normal({out, in}, 0.02), .bias = layers::zeros({out})}; };
  Parameters p = shape(o);
  for (auto& layer : p.layers) {
    if (layer.query_key) {
      layer.query_key = plain(E, inner);
    } else {
      layer.query = plain(E, inner);
      layer.key = plain(E, inner);
    }
    layer.attention_norm = layers::LayerNorm::init(E);
    layer.value = plain(E, inner);
    layer.out = plain(inner, E);
    layer.network_norm = layers::LayerNorm::init(E);
    layer.network = {.up = biased(E, o.inner_dim), .down = biased(o.inner_dim, E)};
  }
  if (!o.axial_shape.empty()) {
    p.row_positions = layers::normal({o.axial_shape[0], 1, o.axial_dims[0]}, 1);
    p.column_positions = layers::normal({1, o.axial_shape[1], o.axial_dims[1]}, 1);
  }
  p.norm = layers::LayerNorm::init(2 * E);
  return p;
}

Tensor Reformer::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  const auto dropped = [&](const Tensor& x) { return layers::dropout(x, o.dropout, std::nullopt, training); };
  Tensor x1 = p.row_positions && p.column_positions ? in.x + axial_positions(p, extent(in.x, 1)) : in.x, x2 = x1;
  int64_t hashing = 0;
  for (const ReformerLayer& layer : p.layers) {
    const Tensor normed = layer.attention_norm(x2, o.layer_norm_eps);
    Tensor read;
    if (layer.query_key) {
      optional<Tensor> rotations;
      if (in.rotations) rotations = in.rotations->select(0, hashing++);
      read = ReformerLSHSelfAttention::forward(o.hashed(), {.query_key = *layer.query_key, .value = layer.value},
                                               {.x = normed, .rotations = rotations, .mask = in.mask})
                 .out;
    } else {
      TORCH_CHECK_VALUE(layer.query && layer.key, "reformer: layers need query_key, or query and key");
      read = ReformerLocalSelfAttention::forward(o.local(), {.query = *layer.query, .key = *layer.key, .value = layer.value},
                                                 {.x = normed, .mask = in.mask});
    }
    x1 = x1 + dropped(layer.out(read));
    x2 = x2 + dropped(network(o, layer, x1));
  }
  return p.norm(at::cat({x1, x2}, -1), o.layer_norm_eps);
}

FOVEATE_MECHANISM(Reformer)

}  // namespace foveate
