#include <ATen/OpMathType.h>
#include <foveate/dropout.h>
#include <foveate/init.h>
#include <foveate/kv_cache.h>
#include <foveate/sinkhorn.h>
#include <foveate/sparse_sinkhorn.h>

namespace foveate {
namespace {

/// A sequence of a length cut into buckets of one size; zeros fill the last one, and count in its sums.
struct Buckets {
  Size length, count;
  int64_t size;
  Buckets(Size tokens, int64_t bucket_size) : length(std::move(tokens)), count((length + bucket_size - 1) / bucket_size), size(bucket_size) {}
  /// False where it depends on a length not known yet.
  bool is_whole() const { return (count * size - length).maybe_as_int() == 0; }

  /// x [B,H,length,D] -> [B,H,count,size,D]
  Tensor cut(const Tensor& x) const {
    const Tensor whole = is_whole() ? x : at::constant_pad_nd_symint(x, {0, 0, 0, count * size - length});
    return whole.unflatten_symint(2, {count, size});
  }
  /// mask [B,length] -> [B,count,size]; False for what fills the last bucket
  Tensor cut_mask(const Tensor& mask) const {
    return at::constant_pad_nd_symint(mask, {0, count * size - length}, false).unflatten_symint(1, {count, size});
  }
  /// Which places hold a token that takes part, [B or 1,count,size]; nothing where all do.
  optional<Tensor> taken(const optional<Tensor>& mask, const Tensor& like) const {
    if (mask) return cut_mask(*mask);
    if (is_whole()) return std::nullopt;
    return cut_mask(at::ones_symint({1, length}, like.options().dtype(at::kBool)));
  }
  /// x [count,B H,size,D], heads H -> [B,H,length,D]
  Tensor put_back(const Tensor& x, const Size& B, const Size& H) const {
    const Tensor n = at::arange(length, x.options().dtype(at::kLong));
    const c10::List<optional<Tensor>> where({n.floor_divide(size), n.remainder(size)});
    return at::index(x.transpose(1, 2), where).unflatten_symint(1, {B, H}).movedim(0, 2);
  }
};

/// Buckets first: torch.export cannot bound other foldings of a number that depends on the length. [B,H,U,L,D] -> [U,B H,L,D]
Tensor buckets_first(const Tensor& x) { return x.movedim(2, 0).flatten(1, 2); }

/// What makes sorted buckets: S [B,H,R,C], or its only entry of each row.
struct Sorting {
  Tensor S;       // [B,H,R,C]
  Tensor column;  // int [B,H,R]: where a row is largest, of equally large ones the first
  Tensor weight;  // [B,H,R]: the only entry that is not 0; undefined where there are others
};

/// K rows for each bucket of queries: the best column by softmax of R [B,H,U,C] among those left, times its probability.
Sorting top_rows(const Tensor& R, int64_t K, double temperature, const optional<Tensor>& allowed) {
  constexpr double low = -1e30;
  Tensor s = R.to(at::toOpMathType(R.scalar_type())) / temperature;
  if (allowed) s = s.masked_fill(allowed->logical_not(), low);
  std::vector<Tensor> columns, weights, rows;
  for (int64_t n = 0; n < K; ++n) {
    const Tensor p = s.softmax(-1), column = p.argmax(-1, true), weight = p.gather(-1, column);
    columns.push_back(column);
    weights.push_back(weight);
    rows.push_back(at::zeros_like(p).scatter(-1, column, weight).unsqueeze(3));
    s = s.scatter(-1, column, low);
  }
  const auto joined = [&](const std::vector<Tensor>& parts) { return at::cat(parts, 3).to(R.scalar_type()); };
  return {.S = joined(rows), .column = at::cat(columns, 3), .weight = joined(weights)};  // rows of a bucket still apart: [B,H,U,K,C]
}

/// The rows of S one below the other. Buckets are few, and flattening their number is beyond torch.export.
Tensor rows_of(const Tensor& S) {
  const Tensor row = at::arange(extent(S, 2) * extent(S, 3), S.options().dtype(at::kLong));
  const int64_t K = plain_extent(S, 3);
  return at::index(S.permute({2, 3, 0, 1, 4}), c10::List<optional<Tensor>>({row.floor_divide(K), row.remainder(K)})).movedim(0, 2);
}

/// x [B,H,1,L,...] -> [B,H,U,L,...]
Tensor repeated(const Tensor& x, const Size& U) {
  auto shape = x.sym_sizes().vec();
  shape[2] = U;
  return x.expand_symint(shape);
}

/// The buckets [B,H,C,b,D] mixed as the sorting says: [B,H,U,K b,D]
Tensor mixed(const Sorting& by, const Tensor& buckets) {
  const Size B = extent(buckets, 0), H = extent(buckets, 1);
  if (!by.weight.defined()) {
    const Tensor rows = at::matmul(by.S, buckets.flatten(3));  // [B,H,U,b D]
    return rows.unflatten_symint(3, {extent(buckets, 3), extent(buckets, 4)});
  }
  const auto whole = by.column.options();
  const Tensor b = at::arange(B, whole).view_symint({B, 1, 1, 1}), h = at::arange(H, whole).view_symint({H, 1, 1});
  const Tensor picked = at::index(buckets, c10::List<optional<Tensor>>({b, h, by.column}));  // [B,H,U,K,b,D]
  return (picked * by.weight.unsqueeze(4).unsqueeze(5)).flatten(3, 4);
}

/// Which of the mixed tokens take part: mask [B or 1,C,b] -> [B,H,U,K b]
Tensor mixed_mask(const Sorting& by, const Tensor& mask) {
  const Size B = extent(by.column, 0);
  const Tensor b = at::arange(B, by.column.options()).view_symint({B, 1, 1, 1});
  const Tensor all = mask.expand_symint({B, extent(mask, 1), extent(mask, 2)});
  return at::index(all, c10::List<optional<Tensor>>({b, by.column})).flatten(3);
}

/// Queries of each bucket attend to its keys; places that are not taken do not take part. All by buckets: q [B,H,U,b,D], keys [B,H,U,L,D]
Tensor attend_by_buckets(const Buckets& queries, const Tensor& q, const Tensor& keys, const Tensor& values, const optional<Tensor>& taken,
                         bool causal, const layers::WeightDropout& dropout, int64_t part) {
  const Size B = extent(q, 0), H = extent(q, 1);
  const auto out = ops::attention(
      buckets_first(q), buckets_first(keys), buckets_first(values),
      dropout.with({.mask = taken ? optional(buckets_first(taken->unsqueeze(4)).transpose(2, 3)) : std::nullopt, .causal = causal}, part));
  return queries.put_back(out.out, B, H);
}

Tensor drawn_gumbel(const Tensor& R) {
  const Tensor u = at::rand_symint(R.sym_sizes(), R.options());
  return -((-((u + 1e-6).log()) + 1e-6).log());
}

void check_sorting(const char* form, const auto& o) {
  TORCH_CHECK_VALUE(o.num_heads > 0 && o.head_dim > 0 && o.bucket_size > 0, form, ": num_heads, head_dim and bucket_size must be positive, got ",
                    o.num_heads, ", ", o.head_dim, " and ", o.bucket_size);
  TORCH_CHECK_VALUE(o.sort_net == SortNet::attention || o.max_buckets.value_or(0) > 0, form, ": max_buckets must be given for sort_net simple");
  TORCH_CHECK_VALUE(o.temperature > 0 && o.n_top_buckets > 0, form, ": temperature and n_top_buckets must be positive, got ", o.temperature, " and ",
                    o.n_top_buckets);
  layers::check_dropout(form, "dropout", o.dropout);
}

/// Refuses more buckets than sort_net simple knows.
const Tensor& sort_weight_of(const char* form, const SinkhornParameters& p, const Size& buckets, int64_t nulls) {
  TORCH_CHECK_VALUE(p.sort_weight, form, ": sort_weight must be given for sort_net simple");
  TORCH_CHECK_VALUE(buckets + nulls <= extent(*p.sort_weight, 3), form,
                    ": q must have no more than max_buckets = ", extent(*p.sort_weight, 3) - nulls, " buckets, got ", buckets);
  return *p.sort_weight;
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
  const Buckets queries(extent(in.q, 2), o.bucket_size), keys(extent(in.k, 2), o.kv_bucket_size.value_or(o.bucket_size));
  const Tensor q = queries.cut(in.q), k = keys.cut(in.k), v = keys.cut(in.v);  // [B,H,U,b,D], [B,H,C,b',D]
  const bool has_own = queries.count == keys.count, is_cut = o.n_sortcut > 0;
  const Size U = queries.count;

  // Scores of pairs of buckets.
  Tensor R;  // [B,H,U or 1,C]
  if (o.sort_net == SortNet::attention) {
    const Tensor by_bucket = q.mean(3), asked = is_cut ? by_bucket.mean(2, true) : by_bucket;
    R = at::matmul(asked, k.mean(3).transpose(2, 3)) * default_scale(q);
  } else {
    TORCH_CHECK_VALUE(has_own, "sinkhorn_attention: k must have as many buckets as q for sort_net simple, got ", keys.count, " and ", U);
    const Tensor& W = sort_weight_of("sinkhorn_attention", p, U, 0);
    R = at::matmul(at::cat({q.sum(3), k.sum(3)}, 3), W).relu().slice_symint(3, 0, keys.count);
  }

  Sorting by;
  if (o.non_permutative) {
    const int64_t wanted = is_cut ? o.n_sortcut : o.n_top_buckets;
    const int64_t rows = keys.count < wanted ? keys.count.guard_int(__FILE__, __LINE__) : wanted;
    by = top_rows(R, rows, o.sort_net == SortNet::simple ? o.temperature : 1, {});
  } else {
    const Tensor noise = in.gumbel ? *in.gumbel : drawn_gumbel(R);
    const Tensor S = ops::sinkhorn(((R.relu() + 1e-6).log() + noise) / o.temperature, o.sinkhorn_iter);
    by = {.S = S, .column = S.abs().argmax(-1).unsqueeze(3), .weight = {}};
  }

  // Each bucket of queries sees its sorted buckets and its own one.
  const auto for_each = [&](const Tensor& x) { return is_cut ? repeated(x, U) : x; };
  std::vector<Tensor> seen_k{for_each(mixed(by, k))}, seen_v{for_each(mixed(by, o.values_from_keys && !is_cut ? k : v))}, seen;
  const auto taken = keys.taken(in.key_mask, in.k);
  if (taken) seen.push_back(for_each(mixed_mask(by, *taken)));
  if (has_own) {
    seen_k.push_back(k);
    seen_v.push_back(v);
    if (taken) seen.push_back(taken->unsqueeze(1).expand_symint({extent(k, 0), extent(k, 1), extent(k, 2), extent(k, 3)}));
  }
  const layers::WeightDropout dropout(o.dropout, in.dropout_seed, training, in.q);
  const Tensor out =
      attend_by_buckets(queries, q, at::cat(seen_k, 3), at::cat(seen_v, 3), taken ? optional(at::cat(seen, 3)) : std::nullopt, false, dropout, 0);
  const Tensor S = by.weight.defined() ? rows_of(by.S) : by.S;
  return {.out = masked_rows(out, in.query_mask), .sort_matrix = S};
}

void SinkhornCausalAttention::check(const Options& o) { check_sorting("sinkhorn_causal_attention", o); }

SinkhornParameters SinkhornCausalAttention::init(const Options& o) {
  SinkhornParameters p{.sort_weight = {},
                       .null_keys = layers::normal({o.num_heads, 1, o.head_dim}, 1),
                       .null_values = layers::normal({o.num_heads, 1, o.head_dim}, 1)};
  if (o.sort_net == SortNet::simple) p.sort_weight = layers::normal({1, o.num_heads, 2 * o.head_dim, *o.max_buckets + o.n_top_buckets}, 1);
  return p;
}

namespace {

/// Heads whose buckets begin at token `lead`; tokens before it see only each other. Of m + n tokens the last n ask.
struct CausalHeads {
  const SinkhornCausalAttention::Options& o;
  Tensor q, k, v;                // [B,H,n,D], [B,H,m+n,D], [B,H,m+n,D]
  Tensor null_k, null_v;         // [H,1,D]
  optional<Tensor> sort_weight;  // [1,H,2D,K+C]
  optional<Tensor> key_mask;     // [B,m+n]
  Tensor q_sum, bucket_q;        // [B,H,D]: of the m tokens before, and the mean of q up to the first token of the last bucket that began
  int64_t lead;

  int64_t size() const { return o.bucket_size; }
  int64_t nulls() const { return o.n_top_buckets; }
  Size asking() const { return extent(q, 2); }
  Size total() const { return extent(k, 2); }
  Size before() const { return total() - asking(); }
  Buckets all() const { return {total(), size()}; }
  /// A token more stands before the first where `lead` tokens do: then they fill a bucket, as all others do.
  int64_t shift() const { return lead > 0 ? 1 : 0; }
  /// The bucket of the first token that asks, that one counted.
  Size first_window() const { return (before() + shift()) / size(); }
  /// Rows of S begin at this bucket, in all heads alike: the first that some ask from.
  Size first_row() const { return size() > 1 ? (before() + 1) / size() - 1 : before(); }

  /// x [B,H,m+n,D] cut from `lead` on: [B,H,U,b,D], zeros behind the last token
  Tensor cut(const Tensor& x) const {
    const auto buckets = all();
    return at::constant_pad_nd_symint(x, {0, 0, 0, buckets.count * size() - total() + lead})
        .slice(2, lead)
        .unflatten_symint(2, {buckets.count, size()});
  }
  /// Running means of x [B,H,*,D], from token `lead` on: the first row is token `first`, before which the sum is `sum`.
  Tensor means(const Tensor& x, const Size& first, const optional<Tensor>& sum) const {
    const auto type = at::toOpMathType(x.scalar_type());
    const Tensor count = at::arange(first, first + extent(x, 2), x.options().dtype(at::kLong)).unsqueeze(1) + (1 - lead);
    Tensor running = (x.to(type) * (count > 0).to(type)).cumsum(2);
    if (sum) running = running + sum->to(type).unsqueeze(2);
    return running / count.clamp_min(1).to(type);
  }
  Tensor rows() const { return at::arange(first_row(), all().count, q.options().dtype(at::kLong)); }  // [R]: their buckets

  /// Scores of the rows' buckets with nulls and all buckets: [B,H,R,K+U]
  Tensor scores(const Tensor& mean_q) const {
    const Tensor first_token = rows() * size() + lead, mean_k = means(k, 0, {});
    if (sort_weight) {
      const Tensor place = first_token.clamp_min(0).minimum(at::ones_symint({total()}, first_token.options()).sum() - 1);
      const Tensor feature = at::cat({mean_k, k.to(mean_k.scalar_type())}, 3).index_select(2, place);  // [B,H,R,2D]
      return at::leaky_relu(at::matmul(feature, sort_weight->to(feature.scalar_type())), 0.01).slice_symint(3, 0, all().count + nulls());
    }
    const Tensor asked = at::cat({bucket_q.to(mean_q.scalar_type()).unsqueeze(2), mean_q}, 2);
    const Tensor place = (first_token - at::ones_symint({before()}, first_token.options()).sum() + 1).clamp_min(0);
    const Tensor there = place.minimum(at::ones_symint({asking()}, place.options()).sum());  // the last bucket may not have begun
    const Tensor products = at::matmul(asked.index_select(2, there), cut(mean_k).sum(3).transpose(2, 3));
    return at::constant_pad_nd(products * default_scale(q), {nulls(), 0});
  }
  Tensor with_nulls(const Tensor& x, const Tensor& null) const {  // [B,H,K+U,b,D]
    const Tensor first = null.unsqueeze(1).unsqueeze(0).expand_symint({extent(x, 0), extent(x, 1), nulls(), size(), extent(x, 3)});
    return at::cat({first.to(x.scalar_type()), cut(x)}, 2);
  }

  struct Result {
    Tensor out, S, q_sum, bucket_q;
  };
  Result attend(const layers::WeightDropout& dropout) const {
    const auto whole = q.options().dtype(at::kLong);
    const Tensor mean_q = means(q, before(), q_sum), row = rows();
    const Tensor number = at::arange(all().count + nulls(), whole) - nulls();
    const auto allowed = number < row.unsqueeze(1);  // [R,K+U]: nulls and earlier buckets
    const Sorting by = top_rows(scores(mean_q).to(q.scalar_type()), nulls(), o.temperature, allowed);

    // Windows of queries: one bucket each, from that of the first token that asks.
    const Size front = before() + shift() - first_window() * size(), skipped = first_window() - shift() - first_row();
    const Buckets windows(asking() + front, size());
    const auto own = [&](const Tensor& x) {
      return windows.cut(at::constant_pad_nd(x, {0, 0, shift(), 0}).slice_symint(2, first_window() * size()));
    };
    const auto far = [&](const Tensor& x, const Tensor& null) {
      return mixed(by, with_nulls(x, null)).slice_symint(2, skipped, skipped + windows.count);
    };
    const Tensor asked = windows.cut(at::constant_pad_nd_symint(q, {0, 0, front, 0}));
    optional<Tensor> taken;
    if (key_mask || lead > 0) {
      const Tensor mask = key_mask.value_or(at::ones_symint({1, total()}, q.options().dtype(at::kBool)));  // [B or 1,m+n]
      const Tensor later = at::constant_pad_nd_symint(mask, {0, all().count * size() - total() + lead}, false).slice(1, lead);
      const Tensor of_buckets = later.unflatten_symint(1, {all().count, size()});
      const Tensor sorted = mixed_mask(by, at::constant_pad_nd(of_buckets, {0, 0, nulls(), 0}, true)) & (row >= 0).unsqueeze(1);  // [B,H,R,L]
      const Tensor here = windows.cut_mask(at::constant_pad_nd(mask, {shift(), 0}, false).slice_symint(1, first_window() * size()));
      taken = at::cat({sorted.slice_symint(2, skipped, skipped + windows.count),
                       here.unsqueeze(1).expand_symint({extent(q, 0), extent(q, 1), windows.count, size()})},
                      3);
    }
    const Tensor out = attend_by_buckets(windows, asked, at::cat({far(k, null_k), own(k)}, 3), at::cat({far(v, null_v), own(v)}, 3), taken, true,
                                         dropout, lead > 0 ? 1 : 0);

    // Rows of buckets in which a token asks, nulls in one column.
    const auto number_of = [&](const Size& size) { return at::ones_symint({size}, whole).sum(); };
    const Tensor is_asking =
        (row + 1 > number_of(first_window()) - shift()) & (row < number_of(first_window() + windows.count) - shift()) & (row >= 0);
    const Tensor asked_rows = by.S * is_asking.to(by.S.scalar_type()).view({-1, 1, 1});
    const Tensor S = rows_of(first_row() < 0 ? asked_rows.slice(2, 1) : asked_rows);  // row -1 is of the tokens before the first bucket
    const Tensor last =
        ((number_of(total()) + (size() - 1 - lead)).floor_divide(size()) - 1) * size() + lead;  // first token of the last bucket begun
    const Tensor means_so_far = at::cat({bucket_q.to(mean_q.scalar_type()).unsqueeze(2), mean_q}, 2);
    return {.out = out.slice_symint(2, front),
            .S = at::cat({S.slice(3, 0, nulls()).sum(3, true), S.slice(3, nulls())}, 3),
            .q_sum = mean_q.select(2, -1) * (number_of(total()) - lead).clamp_min(0).to(mean_q.scalar_type()),
            .bucket_q = means_so_far.index_select(2, (last - number_of(before()) + 1).clamp_min(0).unsqueeze(0)).squeeze(2)};
  }
};

using CausalState = SinkhornCausalAttention::State;

std::pair<SinkhornOutputs, CausalState> advance(const SinkhornCausalAttention::Options& o, const SinkhornParameters& p,
                                                const SinkhornCausalAttention::Inputs& in, const CausalState& past, bool training) {
  constexpr auto form_name = "sinkhorn_causal_attention";
  const auto cache = layers::KVCache{.k = past.k, .v = past.v}.then(in.k, in.v);
  const int64_t H = plain_extent(in.q, 1), b = o.bucket_size, half = b > 1 ? H / 2 : H;
  TORCH_CHECK_VALUE(p.null_keys && p.null_values, form_name, ": null_keys and null_values must be given");
  TORCH_CHECK_VALUE(extent(*p.null_keys, 0) == H, form_name, ": q must have num_heads = ", extent(*p.null_keys, 0), " heads, got ", H);
  const optional<Tensor> weight =
      o.sort_net == SortNet::simple ? optional(sort_weight_of(form_name, p, Buckets(extent(cache.k, 2), b).count, o.n_top_buckets)) : std::nullopt;
  const Tensor nothing = at::zeros_symint({extent(in.q, 0), H, extent(in.q, 3)}, in.q.options());
  const layers::WeightDropout dropout(o.dropout, in.dropout_seed, training, in.q);
  std::vector<Tensor> outs, sorts, sums, means;
  for (const bool is_late : {false, true}) {
    const int64_t first = is_late ? half : 0, count = is_late ? H - half : half;
    if (count == 0) continue;
    const auto some = [&](const Tensor& x, int64_t dim) { return x.narrow(dim, first, count); };
    const CausalHeads heads{.o = o,
                            .q = some(in.q, 1),
                            .k = some(cache.k, 1),
                            .v = some(cache.v, 1),
                            .null_k = some(*p.null_keys, 0),
                            .null_v = some(*p.null_values, 0),
                            .sort_weight = weight ? optional(some(*weight, 1)) : std::nullopt,
                            .key_mask = in.key_mask,
                            .q_sum = some(past.q_sum.defined() ? past.q_sum : nothing, 1),
                            .bucket_q = some(past.bucket_q.defined() ? past.bucket_q : nothing, 1),
                            .lead = is_late ? b - 1 : 0};
    const auto found = heads.attend(dropout);
    outs.push_back(found.out);
    sorts.push_back(found.S);
    sums.push_back(found.q_sum);
    means.push_back(found.bucket_q);
  }
  const Tensor S = at::cat(sorts, 1);
  return {{.out = masked_rows(at::cat(outs, 1), in.query_mask), .sort_matrix = S},
          {.k = cache.k, .v = cache.v, .q_sum = at::cat(sums, 1).to(in.q.scalar_type()), .bucket_q = at::cat(means, 1).to(in.q.scalar_type())}};
}

}  // namespace

SinkhornOutputs SinkhornCausalAttention::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  return advance(o, p, in, {}, training).first;
}

std::pair<SinkhornOutputs, CausalState> SinkhornCausalAttention::step(const Options& o, const Parameters& p, const Inputs& in, State&& state,
                                                                      bool training) {
  return advance(o, p, in, state, training);
}

FOVEATE_MECHANISM(SinkhornCausalAttention)
FOVEATE_MECHANISM(SinkhornAttention)

}  // namespace foveate
