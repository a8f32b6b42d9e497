#include <foveate/attention_formula.h>
#include <foveate/cluster_attention.h>
#include <foveate/op.h>
#include <foveate/sinkhorn_attention.h>
#include <torch/csrc/autograd/autograd.h>

namespace foveate::ops {
namespace {

Tensor sinkhorn_formula(const Tensor& logits, int64_t iterations) {
  Tensor t = logits.to(accumulation_type(logits.scalar_type()));
  if (t.numel() == 0) return t.exp().to(logits.scalar_type());
  for (int64_t it = 0; it < iterations; ++it) {
    t = t - t.logsumexp(-1, true);
    t = t - t.logsumexp(-2, true);
  }
  return t.exp().to(logits.scalar_type()).contiguous();
}

Tensor sinkhorn_meta(const Tensor& logits, int64_t) { return logits.new_empty_symint(logits.sym_sizes()); }

int64_t buckets_of(int64_t length, int64_t size) { return (length + size - 1) / size; }

/// x [B,H,N,D] -> [B,H,buckets,size,D], zeros behind
Tensor cut(const Tensor& x, int64_t size) {
  const int64_t count = buckets_of(x.size(2), size);
  return at::constant_pad_nd(x, {0, 0, 0, count * size - x.size(2)}).unflatten(2, {count, size});
}
/// mask [B,M] -> [B,buckets,size], False behind
Tensor cut_mask(const Tensor& mask, int64_t size) {
  const int64_t count = buckets_of(mask.size(1), size);
  return at::constant_pad_nd(mask, {0, count * size - mask.size(1)}, false).unflatten(1, {count, size});
}

/// What makes mixed buckets.
struct Sorting {
  Tensor S;       // [B,H,U,K,C]
  Tensor column;  // int [B,H,U,K]: where a row is largest
  Tensor weight;  // [B,H,U,K]: its only entry that is not 0; undefined where there are others
};

/// K rows for each bucket of queries: the best column by softmax of R [B,H,U,C] among those left, times its probability.
Sorting top_rows(const Tensor& R, int64_t K, double temperature, const optional<Tensor>& allowed) {
  constexpr double low = -1e30;
  Tensor s = R / temperature;
  if (allowed) s = s.masked_fill(allowed->logical_not(), low);
  std::vector<Tensor> columns, weights, rows;
  for (int64_t n = 0; n < K; ++n) {
    const Tensor p = s.softmax(-1), column = p.argmax(-1, true), weight = p.gather(-1, column);
    columns.push_back(column);
    weights.push_back(weight);
    rows.push_back(at::zeros_like(p).scatter(-1, column, weight).unsqueeze(3));
    s = s.scatter(-1, column, low);
  }
  return {.S = at::cat(rows, 3), .column = at::cat(columns, 3), .weight = at::cat(weights, 3)};
}

/// The buckets [B,H,C,b,D] mixed: [B,H,U,K b,D]
Tensor mixed(const Sorting& by, const Tensor& buckets) {
  const int64_t B = buckets.size(0), H = buckets.size(1);
  if (!by.weight.defined()) return at::matmul(by.S.flatten(2, 3), buckets.flatten(3)).unflatten(3, {buckets.size(3), buckets.size(4)});
  const Tensor b = at::arange(B, by.column.options()).view({B, 1, 1, 1}), h = at::arange(H, by.column.options()).view({H, 1, 1});
  const Tensor picked = at::index(buckets, c10::List<optional<Tensor>>({b, h, by.column}));  // [B,H,U,K,b,D]
  return (picked * by.weight.unsqueeze(4).unsqueeze(5)).flatten(3, 4);
}

/// Which of the mixed tokens take part: mask [B,C,b] -> [B,H,U,K b]
Tensor mixed_mask(const Sorting& by, const Tensor& mask) {
  const int64_t B = mask.size(0);
  const Tensor b = at::arange(B, by.column.options()).view({B, 1, 1, 1});
  return at::index(mask, c10::List<optional<Tensor>>({b, by.column})).flatten(3);
}

/// Queries of each bucket attend to its keys: q [B,H,U,b,D], keys and values [B,H,U,L,D], taken bool [B,H,U,L] -> [B,H,U b,D], [B,H,U b]
Attended attend_by_buckets(const Tensor& q, const Tensor& keys, const Tensor& values, const optional<Tensor>& taken, Attention how) {
  const auto together = [](const Tensor& x) { return x.flatten(1, 2); };  // a bucket is as a head
  if (taken) how.mask = together(*taken).unsqueeze(2);
  const auto [out, lse] = attention(together(q), together(keys), together(values), how);
  const auto by_head = [&](const Tensor& x) { return x.unflatten(1, {q.size(1), q.size(2)}).flatten(2, 3); };
  return {.out = by_head(out), .lse = by_head(lse)};
}

Tensor number(int64_t count, const Tensor& like) { return at::arange(count, like.options().dtype(at::kLong)); }

/// One call of the primitive foveate::_sinkhorn_attention.
struct Arguments {
  Tensor q, k, v;
  optional<Tensor> sort_weight, gumbel, key_mask, dropout_seed;
  int64_t bucket_size = 0, kv_bucket_size = 0, top_buckets = 0, sortcut = 0, iterations = 0;
  double temperature = 1;
  bool values_from_keys = false;
  double dropout = 0;

  void fields(auto&& f) {
    f("q", q, "queries");
    f("k", k, "keys");
    f("v", v, "values");
    f("sort_weight", sort_weight, "of sums of buckets");
    f("gumbel", gumbel, "noise of scores");
    f("key_mask", key_mask, "bool");
    f("dropout_seed", dropout_seed, "int");
    f("bucket_size", bucket_size, "tokens");
    f("kv_bucket_size", kv_bucket_size, "tokens");
    f("top_buckets", top_buckets, "rows of S for a bucket; 0: a mixture");
    f("sortcut", sortcut, "rows of S that all see");
    f("iterations", iterations, "of sinkhorn");
    f("temperature", temperature, "of scores");
    f("values_from_keys", values_from_keys, "mixed values are mixed keys");
    f("dropout", dropout, "probability");
  }

  bool is_cut() const { return sortcut > 0; }
  bool is_mixture() const { return top_buckets == 0; }
};

/// Buckets sorted by sums of their queries [B,H,U,D] and of their keys [B,H,C,D].
Sorting sorted(const Arguments& c, const Tensor& q_sums, const Tensor& k_sums) {
  const int64_t C = k_sums.size(2);
  Tensor R;  // [B,H,U or 1,C]
  if (c.sort_weight) {
    R = at::matmul(at::cat({q_sums, k_sums}, 3), c.sort_weight->to(q_sums.scalar_type())).relu().narrow(3, 0, C);
  } else {
    const Tensor by_bucket = q_sums / c.bucket_size;
    R = at::matmul(c.is_cut() ? by_bucket.mean(2, true) : by_bucket, (k_sums / c.kv_bucket_size).transpose(2, 3)) * default_scale(c.q);
  }
  if (!c.is_mixture()) return top_rows(R, std::min(c.is_cut() ? c.sortcut : c.top_buckets, C), c.temperature, {});
  const Tensor S = sinkhorn_formula(((R.relu() + 1e-6).log() + c.gumbel->to(R.scalar_type())) / c.temperature, c.iterations);
  return {.S = S.unsqueeze(3), .column = S.argmax(-1, true), .weight = {}};
}

/// As it is given out.
Tensor sort_matrix(const Arguments& c, const Sorting& by) { return by.S.flatten(2, 3).to(c.q.scalar_type()).contiguous(); }

using Result = std::tuple<Tensor, Tensor, Tensor>;  // out, S, lse [B,H,N]

Result sinkhorn_attention_formula(const Arguments& c) {
  const int64_t b = c.bucket_size, kv_b = c.kv_bucket_size;
  const auto type = accumulation_type(c.q.scalar_type());
  const Tensor q = cut(c.q.to(type), b), k = cut(c.k.to(type), kv_b), v = cut(c.v.to(type), kv_b);  // [B,H,U,b,D], [B,H,C,b',D]
  const int64_t B = q.size(0), H = q.size(1), U = q.size(2), C = k.size(2), N = c.q.size(2), M = c.k.size(2);
  const bool has_own = U == C;
  const Sorting by = sorted(c, q.sum(3), k.sum(3));

  const auto for_all = [&](const Tensor& x) {  // what all queries see, for each bucket of them
    if (!c.is_cut()) return x;
    auto shape = x.sizes().vec();
    shape[2] = U;
    return x.expand(shape);
  };
  std::vector<Tensor> seen_k{for_all(mixed(by, k))}, seen_v{for_all(mixed(by, c.values_from_keys && !c.is_cut() ? k : v))}, seen;
  const bool is_masked = c.key_mask || M % kv_b != 0;
  const Tensor mask = is_masked ? cut_mask(c.key_mask ? *c.key_mask : at::ones({B, M}, q.options().dtype(at::kBool)), kv_b) : Tensor();  // [B,C,b']
  if (is_masked) seen.push_back(for_all(mixed_mask(by, mask)));
  if (has_own) {
    seen_k.push_back(k);
    seen_v.push_back(v);
    if (is_masked) seen.push_back(mask.unsqueeze(1).expand({B, H, C, kv_b}));
  }
  const auto [out, lse] = attend_by_buckets(q, at::cat(seen_k, 3), at::cat(seen_v, 3), is_masked ? optional(at::cat(seen, 3)) : std::nullopt,
                                            {.dropout = c.dropout_seed ? c.dropout : 0, .dropout_seed = c.dropout_seed});
  return {out.narrow(2, 0, N).to(c.q.scalar_type()).contiguous(), sort_matrix(c, by), lse.narrow(2, 0, N).contiguous()};
}

Size count_of(const Size& length, int64_t size) { return (length + size - 1) / size; }

Result sinkhorn_attention_meta(const Arguments& c) {
  const Size U = count_of(extent(c.q, 2), c.bucket_size), C = count_of(extent(c.k, 2), c.kv_bucket_size);
  const Size rows = (c.is_cut() ? Size(1) : U) * (c.is_mixture() ? Size(1) : C.min(c.is_cut() ? c.sortcut : c.top_buckets));
  return {c.q.new_empty_symint(c.q.sym_sizes()), c.q.new_empty_symint({extent(c.q, 0), extent(c.q, 1), rows, C}),
          c.q.new_empty_symint({extent(c.q, 0), extent(c.q, 1), extent(c.q, 2)}, c.q.options().dtype(accumulation_type(c.q.scalar_type())))};
}

// --- on the CPU: buckets that are picked whole are read where they lie, as clusters of keys ---------------------------------

bool picks_buckets(const Arguments& c) {
  const bool drops = c.dropout_seed && c.dropout > 0, is_mixed = c.is_mixture() || (c.values_from_keys && !c.is_cut());
  return !drops && !is_mixed && c.q.numel() > 0 && c.k.numel() > 0;
}

/// x [B,H,N,D] -> [B,H,buckets,D]
Tensor bucket_sums(const Tensor& x, int64_t size) { return cut(x, size).sum(3, false, accumulation_type(x.scalar_type())); }

/// Queries of a bucket see the buckets that it picks, times their weights, and its own.
ClusterAttention as_clusters(const Arguments& c, const Sorting& by) {
  const int64_t b = c.bucket_size, kv_b = c.kv_bucket_size, M = c.k.size(2);
  const int64_t B = c.q.size(0), H = c.q.size(1), U = buckets_of(c.q.size(2), b), C = buckets_of(M, kv_b);
  const auto tokens = [&](const Tensor& bucket) {  // of buckets [...,n]: [...,n b'], -1 beyond the last token
    const Tensor token = (bucket.unsqueeze(-1) * kv_b + number(kv_b, bucket)).flatten(-2);
    return at::where(token < M, token, -1);
  };
  const auto for_all = [&](const Tensor& x) { return x.expand({B, H, U, x.size(-1)}); };
  std::vector<Tensor> token{for_all(tokens(by.column))}, weight{for_all(by.weight.repeat_interleave(kv_b, 3))};
  if (U == C) {
    token.push_back(for_all(tokens(number(C, by.column).unsqueeze(1))));
    weight.push_back(at::ones({B, H, U, kv_b}, by.weight.options()));
  }
  const Tensor seen = at::cat(token, 3);  // [B,H,U,places]
  return {.k_index = seen.flatten(2), .k_weight = at::cat(weight, 3).flatten(2), .q_size = b, .k_size = seen.size(3), .key_mask = c.key_mask};
}

Result sinkhorn_attention_cpu(const Arguments& c) {
  if (!picks_buckets(c)) return sinkhorn_attention_formula(c);
  const Sorting by = sorted(c, bucket_sums(c.q, c.bucket_size), bucket_sums(c.k, c.kv_bucket_size));
  const auto [out, lse] = cluster_attention(c.q, c.k, c.v, as_clusters(c, by));
  return {out, sort_matrix(c, by), lse};
}

/// Adds the gradient of the sums of buckets to that of their tokens, d [B,H,N,D].
void add_to_tokens(const Tensor& of_sums, int64_t size, const Tensor& d) {
  const int64_t full = d.size(2) / size, rest = d.size(2) % size;
  if (full > 0) d.narrow(2, 0, full * size).unflatten(2, {full, size}).add_(of_sums.narrow(2, 0, full).unsqueeze(3));
  if (rest > 0) d.narrow(2, full * size, rest).add_(of_sums.narrow(2, full, 1));
}

/// The sorting is small: it is computed once more, and differentiated. What attends has its results.
Gradients sinkhorn_attention_backward_cpu(const Backward& call, const Arguments& given) {
  if (!picks_buckets(given)) return std::nullopt;
  const Recording recording;
  const auto leaf = [](const Tensor& t) { return t.detach().requires_grad_(); };
  Arguments c = given;
  for (Tensor* t : {&c.q, &c.k, &c.v}) *t = t->detach();
  const Tensor q_sums = leaf(bucket_sums(c.q, c.bucket_size)), k_sums = leaf(bucket_sums(c.k, c.kv_bucket_size));
  std::vector<Tensor> sources{q_sums, k_sums};
  if (c.sort_weight) sources.push_back(*(c.sort_weight = leaf(*c.sort_weight)));
  const Sorting by = sorted(c, q_sums, k_sums);
  const ClusterAttention how = as_clusters(c, by);

  ClusterAttention known = how;
  known.k_weight = how.k_weight->detach();
  const auto of = [](const std::vector<Tensor>& results) { return Attended{.out = results[0].detach(), .lse = results[2].detach()}; };
  const auto d = cluster_attention_gradients(c.q, c.k, c.v, known, of(call.results), {.out = call.gradients[0], .lse = call.gradients[2]});
  std::vector<Tensor> made{*how.k_weight}, d_made{d[3]};
  if (call.gradients[1].defined()) {
    made.push_back(sort_matrix(c, by));
    d_made.push_back(call.gradients[1]);
  }
  const auto d_sources = torch::autograd::grad(made, sources, d_made);
  add_to_tokens(d_sources[0], c.bucket_size, d[0]);
  add_to_tokens(d_sources[1], c.kv_bucket_size, d[1]);

  std::vector<Tensor> found;
  Wanted wanted(call);
  give(found, wanted(given.q), given.q, [&] { return d[0]; });
  give(found, wanted(given.k), given.k, [&] { return d[1]; });
  give(found, wanted(given.v), given.v, [&] { return d[2]; });
  give(found, wanted(given.sort_weight), given.sort_weight, [&] { return d_sources[2]; });
  give(found, wanted(given.gumbel), given.gumbel, [&] { return at::zeros_like(*given.gumbel); });
  return found;
}

/// Heads whose buckets begin at token `lead`. Of m + n tokens the last n ask.
struct CausalHeads {
  int64_t b, K;  // tokens of a bucket, buckets that each sees besides its own
  double temperature;
  Tensor q, k, v;                // [B,H,n,D], [B,H,m+n,D], [B,H,m+n,D]
  Tensor null_k, null_v;         // [H,1,D]
  optional<Tensor> sort_weight;  // [1,H,2D,K+C]
  optional<Tensor> key_mask;     // [B,m+n]
  Tensor q_sum, bucket_q;        // [B,H,D]
  int64_t lead;

  int64_t n = q.size(2), total = k.size(2), m = total - n, U = buckets_of(total, b);
  /// A token more stands before the first where `lead` tokens do: then they fill a window, as the tokens of each bucket do.
  int64_t shift = lead > 0 ? 1 : 0;
  int64_t first_window = (m + shift) / b, windows = buckets_of(total + shift, b) - first_window;
  /// Rows of S begin at this bucket, in all heads alike: the first that some ask from. Bucket -1 holds the tokens before the first one.
  int64_t first_row = b > 1 ? (m + 1) / b - 1 : m;

  /// [B,H,m+n,D] from `lead` on: [B,H,U,b,D], zeros behind
  Tensor buckets(const Tensor& x) const { return at::constant_pad_nd(x, {0, 0, 0, U * b + lead - total}).slice(2, lead).unflatten(2, {U, b}); }

  /// Running means of x [B,H,*,D] from token `lead` on; the first row is token `first`, before which the sum is `sum`.
  Tensor means(const Tensor& x, int64_t first, const optional<Tensor>& sum) const {
    const Tensor count = (number(x.size(2), x) + (first - lead + 1)).unsqueeze(1);
    const Tensor running = (x * (count > 0).to(x.scalar_type())).cumsum(2);
    return (sum ? running + sum->unsqueeze(2) : running) / count.clamp_min(1).to(x.scalar_type());
  }

  /// Scores of buckets first_row .. U-1 with nulls and all buckets: [B,H,rows,K+U]
  Tensor scores(const Tensor& mean_q) const {
    const Tensor mean_k = means(k, 0, {}), first_token = (number(U - first_row, k) + first_row) * b + lead;
    if (sort_weight) {
      const Tensor feature = at::cat({mean_k, k}, 3).index_select(2, first_token.clamp(0, total - 1));  // [B,H,rows,2D]
      return at::leaky_relu(at::matmul(feature, *sort_weight), 0.01).narrow(3, 0, K + U);
    }
    const Tensor asked = at::cat({bucket_q.unsqueeze(2), mean_q}, 2).index_select(2, (first_token - m + 1).clamp(0, n));
    return at::constant_pad_nd(at::matmul(asked, buckets(mean_k).sum(3).transpose(2, 3)) * default_scale(q), {K, 0});
  }

  /// Windows of the tokens that ask, one bucket each; what precedes the first one is zeros. x [B,H,m+n,D] -> [B,H,windows,b,D]
  Tensor own(const Tensor& x) const { return cut(at::constant_pad_nd(x, {0, 0, shift, 0}).slice(2, first_window * b), b); }
  /// The buckets that each window sees: [B,H,windows,K b,D]
  Tensor far(const Sorting& by, const Tensor& x, const Tensor& null) const {
    const Tensor nulls = null.unsqueeze(1).unsqueeze(0).expand({x.size(0), x.size(1), K, b, x.size(3)});
    return of_windows(mixed(by, at::cat({nulls, buckets(x)}, 2)));
  }
  Tensor of_windows(const Tensor& by_row) const { return by_row.narrow(2, first_window - shift - first_row, windows); }

  /// [B,H,windows,K b + b], or nothing where all take part
  optional<Tensor> taken(const Sorting& by) const {
    if (!key_mask && lead == 0) return std::nullopt;
    const int64_t B = q.size(0);
    const Tensor mask = key_mask ? *key_mask : at::ones({B, total}, q.options().dtype(at::kBool));
    const Tensor of_buckets = at::constant_pad_nd(mask, {0, U * b + lead - total}, false).slice(1, lead).unflatten(1, {U, b});
    const Tensor row = number(U - first_row, q) + first_row;
    const Tensor sorted = mixed_mask(by, at::constant_pad_nd(of_buckets, {0, 0, K, 0}, true)) & (row >= 0).unsqueeze(1);
    const Tensor here = cut_mask(at::constant_pad_nd(mask, {shift, 0}, false).slice(1, first_window * b), b);
    return at::cat({of_windows(sorted), here.unsqueeze(1).expand({B, q.size(1), windows, b})}, 3);
  }

  std::array<Tensor, 4> attend(Attention how) const {  // out, S, q_sum, bucket_q
    const Tensor mean_q = means(q, m, q_sum), row = number(U - first_row, q) + first_row;
    const Sorting by = top_rows(scores(mean_q), K, temperature, number(K + U, q) - K < row.unsqueeze(1));  // nulls and earlier buckets
    const int64_t front = m + shift - first_window * b;
    how.causal = true;  // the last query of a window meets its last key
    const Tensor out = attend_by_buckets(cut(at::constant_pad_nd(q, {0, 0, front, 0}), b), at::cat({far(by, k, null_k), own(k)}, 3),
                                         at::cat({far(by, v, null_v), own(v)}, 3), taken(by), how)
                           .out;
    const Tensor is_asking = (row + shift >= first_window) & (row + shift < first_window + windows) & (row >= 0);
    const Tensor S = (by.S * is_asking.to(by.S.scalar_type()).view({-1, 1, 1})).slice(2, first_row < 0 ? 1 : 0).flatten(2, 3);
    const int64_t last = (buckets_of(total - lead, b) - 1) * b + lead;  // the first token of the last bucket that began
    return {out.narrow(2, front, n), at::cat({S.narrow(3, 0, K).sum(3, true), S.narrow(3, K, U)}, 3),
            total > lead ? mean_q.select(2, n - 1) * static_cast<double>(total - lead) : q_sum,
            total > lead && last >= m ? mean_q.select(2, last - m) : bucket_q};
  }
};

using CausalResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;

CausalResult sinkhorn_causal_formula(const Tensor& q_given, const Tensor& k_given, const Tensor& v_given, const Tensor& null_k, const Tensor& null_v,
                                     const Tensor& q_sum, const Tensor& bucket_q, const optional<Tensor>& sort_weight,
                                     const optional<Tensor>& key_mask, const optional<Tensor>& dropout_seed, int64_t b, int64_t K, double temperature,
                                     double dropout) {
  const auto type = accumulation_type(q_given.scalar_type());
  const auto exact = [&](const Tensor& x) { return x.to(type); };
  const int64_t H = q_given.size(1), early = b > 1 ? H / 2 : H;
  std::array<std::vector<Tensor>, 4> parts;
  for (const bool is_late : {false, true}) {
    const int64_t first = is_late ? early : 0, count = is_late ? H - early : early;
    if (count == 0) continue;
    const auto some = [&](const Tensor& x, int64_t dim) { return exact(x).narrow(dim, first, count); };
    const CausalHeads heads{.b = b,
                            .K = K,
                            .temperature = temperature,
                            .q = some(q_given, 1),
                            .k = some(k_given, 1),
                            .v = some(v_given, 1),
                            .null_k = some(null_k, 0),
                            .null_v = some(null_v, 0),
                            .sort_weight = sort_weight ? optional(some(*sort_weight, 1)) : std::nullopt,
                            .key_mask = key_mask,
                            .q_sum = some(q_sum, 1),
                            .bucket_q = some(bucket_q, 1),
                            .lead = is_late ? b - 1 : 0};
    // Heads of both kinds draw apart.
    constexpr int64_t apart = 0x51ed270b;
    const auto seed = dropout_seed ? optional(*dropout_seed + (is_late ? apart : 0)) : std::nullopt;
    const auto found = heads.attend({.dropout = seed ? dropout : 0, .dropout_seed = seed});
    for (std::size_t i = 0; i < parts.size(); ++i) parts[i].push_back(found[i]);
  }
  const auto joined = [&](std::size_t i) { return at::cat(parts[i], 1).to(q_given.scalar_type()).contiguous(); };
  return {joined(0), joined(1), joined(2), joined(3)};
}

CausalResult sinkhorn_causal_meta(const Tensor& q, const Tensor& k, const Tensor&, const Tensor&, const Tensor&, const Tensor& q_sum,
                                  const Tensor& bucket_q, const optional<Tensor>&, const optional<Tensor>&, const optional<Tensor>&, int64_t b,
                                  int64_t K, double, double) {
  const Size U = count_of(extent(k, 2), b), m = extent(k, 2) - extent(q, 2);
  const Size first = b > 1 ? ((m + 1) / b - 1).max(0) : m;
  return {q.new_empty_symint(q.sym_sizes()), q.new_empty_symint({extent(q, 0), extent(q, 1), (U - first) * K, U + 1}),
          q_sum.new_empty_symint(q_sum.sym_sizes()), bucket_q.new_empty_symint(bucket_q.sym_sizes())};
}

}  // namespace

FOVEATE_OP(sinkhorn, "_sinkhorn(Tensor logits, int iterations) -> Tensor", {.formula = &sinkhorn_formula, .meta = &sinkhorn_meta})
FOVEATE_OP(sinkhorn_attention, schema_of<Arguments>("_sinkhorn_attention") + " -> (Tensor out, Tensor S, Tensor lse)",
           {.formula = structured<&sinkhorn_attention_formula>(),
            .meta = structured<&sinkhorn_attention_meta>(),
            .cpu = structured<&sinkhorn_attention_cpu>(),
            .cpu_backward = &sinkhorn_attention_backward_cpu})
FOVEATE_OP(
    sinkhorn_causal_attention,
    "_sinkhorn_causal_attention(Tensor q, Tensor k, Tensor v, Tensor null_k, Tensor null_v, Tensor q_sum, Tensor bucket_q, Tensor? sort_weight, "
    "Tensor? key_mask, Tensor? dropout_seed, int bucket_size, int top_buckets, float temperature, float dropout) -> (Tensor out, Tensor S, "
    "Tensor q_sum_after, Tensor bucket_q_after)",
    {.formula = &sinkhorn_causal_formula, .meta = &sinkhorn_causal_meta})

Tensor sinkhorn(const Tensor& logits, int64_t iterations) {
  TORCH_CHECK_VALUE(logits.dim() >= 2, "sinkhorn: logits must be [...,R,C], got ", logits.sym_sizes());
  TORCH_CHECK_VALUE(iterations >= 0, "sinkhorn: iterations must not be negative, got ", iterations);
  return primitive<decltype(sinkhorn_formula)>("foveate::_sinkhorn").call(logits, iterations);
}

SinkhornAttended sinkhorn_attention(const Tensor& q, const Tensor& k, const Tensor& v, const SinkhornAttention& o) {
  check_qkv("sinkhorn_attention", q, k, v);
  auto stack = call("foveate::_sinkhorn_attention", Arguments{.q = q,
                                                              .k = k,
                                                              .v = v,
                                                              .sort_weight = o.sort_weight,
                                                              .gumbel = o.gumbel,
                                                              .key_mask = o.key_mask,
                                                              .dropout_seed = o.dropout_seed,
                                                              .bucket_size = o.bucket_size,
                                                              .kv_bucket_size = o.kv_bucket_size,
                                                              .top_buckets = o.top_buckets,
                                                              .sortcut = o.sortcut,
                                                              .iterations = o.iterations,
                                                              .temperature = o.temperature,
                                                              .values_from_keys = o.values_from_keys,
                                                              .dropout = o.dropout});
  return {.out = stack[0].toTensor(), .S = stack[1].toTensor()};
}

SinkhornCausalAttended sinkhorn_causal_attention(const Tensor& q, const Tensor& k, const Tensor& v, const SinkhornCausal& o) {
  check_qkv("sinkhorn_causal_attention", q, k, v);
  const auto [out, S, q_sum, bucket_q] = primitive<decltype(sinkhorn_causal_formula)>("foveate::_sinkhorn_causal_attention")
                                             .call(q, k, v, o.null_k, o.null_v, o.q_sum, o.bucket_q, o.sort_weight, o.key_mask, o.dropout_seed,
                                                   o.bucket_size, o.top_buckets, o.temperature, o.dropout);
  return {.out = out, .S = S, .q_sum = q_sum, .bucket_q = bucket_q};
}

}  // namespace foveate::ops
