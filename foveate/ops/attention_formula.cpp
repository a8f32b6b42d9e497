// attention, plainly: scores, hidden ones to -inf, softmax, values. N x M in memory, or what of it a pattern shows.
#include <foveate/attention_formula.h>

#include <limits>

namespace foveate::ops {
namespace {

/// What a table [H or 1, L, ...] holds for the heads of `head`: [...head...,L,...].
Tensor by_head(const Tensor& table, const Tensor& head) {
  const Tensor place = table.size(0) == 1 ? at::zeros_like(head) : head;
  std::vector<int64_t> shape(place.sizes().begin(), place.sizes().end() - 2);
  shape.insert(shape.end(), table.sizes().begin() + 1, table.sizes().end());
  return table.index_select(0, place.flatten()).view(shape);
}

/// Where each score's distance stands in a table [H or 1, L, ...].
Tensor entry(const AttentionArguments& c, const Scores& s, const Tensor& table) {
  return (s.j - s.i + (c.origin - c.offset).guard_int(__FILE__, __LINE__)).clamp(0, table.size(1) - 1);
}

/// A draw of dropout that depends on the seed and on the place of a probability alone, whatever is computed beside it: True where kept.
/// 32-bit numbers in 64 bits; kernels/softmax_score.h does the same.
Tensor drawn(const AttentionArguments& c, const Scores& s) {
  constexpr int64_t low = 0xffffffff;
  const auto mix = [&](Tensor x) {
    x = ((x ^ x.bitwise_right_shift(16)) * 0x7feb352d) & low;
    x = ((x ^ x.bitwise_right_shift(15)) * 0x846ca68b) & low;
    return x ^ x.bitwise_right_shift(16);
  };
  const Tensor seed = *c.dropout_seed & low;
  const Tensor row = mix(((s.b * c.q.size(1) + s.head) * c.q.size(2) + s.i + seed) & low);
  return mix((row + s.j * 0x9e3779b1) & low) >= static_cast<int64_t>(c.dropout * 4294967296.0);
}

/// The same call with queries and keys put where the indices say, and hidden where they say -1.
AttentionArguments in_line(const AttentionArguments& c) {
  AttentionArguments d = c;
  d.q_index = d.k_index = std::nullopt;
  const auto hide = [&](const Tensor& seen) { d.mask = d.mask ? *d.mask & seen : seen; };
  const auto take = [](const Tensor& x, const Tensor& index) {
    const Tensor place = index.clamp_min(0).expand({x.size(0), x.size(1), index.size(2)}).unsqueeze(3);
    return x.gather(2, place.expand({-1, -1, -1, x.size(3)}));
  };
  if (c.q_index) {
    d.q = take(c.q, *c.q_index);
    d.row_query = c.row_query ? optional(take(*c.row_query, *c.q_index)) : std::nullopt;
    hide((*c.q_index >= 0).unsqueeze(3));
  }
  if (c.k_index) {
    d.k = take(c.k, *c.k_index);
    d.v = take(c.v, *c.k_index);
    Tensor seen = *c.k_index >= 0;
    if (c.key_mask) seen = seen & take(c.key_mask->unsqueeze(1).unsqueeze(3).expand({-1, c.k.size(1), -1, 1}), *c.k_index).squeeze(3);
    d.key_mask = std::nullopt;
    hide((seen.size(1) == 1 ? seen : repeat_heads(seen.unsqueeze(3), c.q.size(1)).squeeze(3)).unsqueeze(2));
  }
  return d;
}

}  // namespace

Tensor repeat_heads(const Tensor& k, int64_t heads) {
  const int64_t key_heads = k.size(1);
  if (key_heads == heads) return k;
  return k.unsqueeze(2).expand({k.size(0), key_heads, heads / key_heads, k.size(2), k.size(3)}).flatten(1, 2);
}

Softmax safe_softmax(const Tensor& scores) {
  const Tensor empty = scores.new_full({}, 0.0);
  Tensor top = scores.size(-1) > 0 ? scores.detach().amax(-1, true) : scores.new_zeros({}).expand_as(scores.sum(-1, true));
  top = at::where(top == -std::numeric_limits<double>::infinity(), empty, top);
  const Tensor weights = (scores - top).exp();
  const Tensor total = weights.sum(-1, true);  // [...,N,1]
  const Tensor seen = total > 0;
  const Tensor safe = at::where(seen, total, at::ones_like(total));  // both branches finite, or the gradient of log is NaN
  const Tensor lse = at::where(seen, safe.log() + top, at::full_like(total, -std::numeric_limits<double>::infinity()));
  return {.probabilities = weights / safe, .lse = lse.squeeze(-1)};
}

Softmax weigh(const AttentionArguments& c, const Scores& scores) {
  Tensor s = scores.products;
  const auto exact = [&](const Tensor& t) { return t.to(s.scalar_type()); };
  const Tensor here = scores.i + c.offset.guard_int(__FILE__, __LINE__);
  if (c.softcap) s = (s / *c.softcap).tanh() * *c.softcap;
  if (c.rows) {
    const Tensor by_row = at::matmul(exact(scores.row_query), by_head(exact(*c.rows), scores.head).transpose(-1, -2)) * c.scale;  // [...,n,L]
    s = s + by_row.gather(-1, entry(c, scores, *c.rows).expand_as(s));
  }
  if (c.table) {
    const Tensor place = entry(c, scores, *c.table) + (c.table->size(0) == 1 ? at::zeros_like(scores.head) : scores.head) * c.table->size(1);
    s = s + exact(*c.table).flatten().index_select(0, place.flatten()).view(place.sizes());
  }
  if (c.slopes) s = s - exact(*c.slopes).index_select(0, scores.head.flatten()).view(scores.head.sizes()) * (scores.j - here).abs();
  if (c.bias) s = s + scores.of_all(exact(*c.bias));
  const auto hide = [&](const Tensor& hidden) { s = s.masked_fill(hidden, -std::numeric_limits<double>::infinity()); };
  if (scores.seen) hide(scores.seen->logical_not());
  if (c.mask) hide(scores.of_all(*c.mask).logical_not());
  if (c.key_mask) hide(scores.of_all_keys(*c.key_mask).logical_not());
  if (c.query_mask) hide(scores.of_all(c.query_mask->unsqueeze(1).unsqueeze(3)).logical_not());
  if (c.causal) hide(scores.j > here);
  if (c.window) hide(scores.j <= here - *c.window);
  auto [p, lse] = safe_softmax(s);
  if (c.dropout_keep) p = p * exact(scores.of_all(*c.dropout_keep)) / (1 - c.dropout);
  if (c.dropout_seed) p = p * exact(drawn(c, scores)) / (1 - c.dropout);
  return {.probabilities = p, .lse = lse};
}

Tensor plus_value_rows(const AttentionArguments& c, const Scores& scores, const Tensor& p, const Tensor& out) {
  if (!c.value_rows) return out;
  std::vector<int64_t> shape(p.sizes().begin(), p.sizes().end() - 1);
  shape.push_back(c.value_rows->size(1));
  const Tensor by_row = at::zeros(shape, p.options()).scatter_add(-1, entry(c, scores, *c.value_rows).expand_as(p), p);
  return out + at::matmul(by_row, by_head(c.value_rows->to(p.scalar_type()), scores.head));
}

OutAndLse attention_formula(const AttentionArguments& c) {
  if (c.q_index || c.k_index) return attention_formula(in_line(c));
  if (c.pattern) return sparse_attention_formula(c);
  const auto type = accumulation_type(c.q.scalar_type());
  const int64_t B = c.q.size(0), H = c.q.size(1), N = c.q.size(2), M = c.k.size(2);
  const Tensor q = c.q.to(type), k = repeat_heads(c.k, H).to(type), v = repeat_heads(c.v, H).to(type);
  const auto numbers = [&](int64_t count, at::IntArrayRef shape) { return at::arange(count, q.options().dtype(at::kLong)).view(shape); };
  const auto as_it_is = [](const Tensor& t) { return t; };
  const Scores scores{.products = at::matmul(q, k.transpose(-1, -2)) * c.scale,  // [B,H,N,M]
                      .b = numbers(B, {B, 1, 1, 1}),
                      .head = numbers(H, {H, 1, 1}),
                      .i = numbers(N, {N, 1}),
                      .j = numbers(M, {1, M}),
                      .row_query = c.row_query.value_or(c.q),
                      .of_all = as_it_is,
                      .of_all_keys = [](const Tensor& t) { return t.unsqueeze(1).unsqueeze(1); }};
  const auto [p, lse] = weigh(c, scores);
  const Tensor out = plus_value_rows(c, scores, p, at::matmul(p, v));  // [B,H,N,Dv]
  return {out.to(c.q.scalar_type()).contiguous(), lse.contiguous()};
}

}  // namespace foveate::ops
