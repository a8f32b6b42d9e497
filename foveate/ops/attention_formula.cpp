// attention, plainly: scores, hidden ones to -inf, softmax, values. N x M in memory.
#include <foveate/attention_formula.h>

#include <limits>

namespace foveate::ops {

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

std::tuple<Tensor, Tensor> attention_formula(const Tensor& q_given, const Tensor& k_given, const Tensor& v_given, const optional<Tensor>& mask,
                                             const optional<Tensor>& key_mask, const optional<Tensor>& bias, const optional<Tensor>& slopes,
                                             const optional<Tensor>& table, const optional<Tensor>& rows, const optional<Tensor>& row_query,
                                             const optional<Tensor>& value_rows, const optional<Tensor>& dropout_keep, Size offset_given, Size origin,
                                             optional<int64_t> window, bool causal, double scale, double dropout) {
  const auto type = accumulation_type(q_given.scalar_type());
  const auto exact = [&](const Tensor& t) { return t.to(type); };
  const int64_t H = q_given.size(1), N = q_given.size(2), M = k_given.size(2);
  const Tensor q = exact(q_given), k = exact(repeat_heads(k_given, H)), v = exact(repeat_heads(v_given, H));

  const auto whole = q.options().dtype(at::kLong);
  const Tensor j = at::arange(M, whole).unsqueeze(0);                                                                            // [1,M]
  const Tensor i = at::arange(N, whole).unsqueeze(1) + offset_given.guard_int(__FILE__, __LINE__);                               // [N,1]
  const auto by_distance = [&](int64_t length) { return (j - i + origin.guard_int(__FILE__, __LINE__)).clamp(0, length - 1); };  // [N,M]

  Tensor s = at::matmul(q, k.transpose(-1, -2)) * scale;  // [B,H,N,M]
  if (rows) {
    const Tensor by_row = at::matmul(exact(row_query.value_or(q_given)), exact(*rows).transpose(-1, -2)) * scale;  // [B,H,N,L]
    s = s + by_row.gather(3, by_distance(rows->size(-2)).expand({by_row.size(0), H, N, M}));
  }
  if (table) s = s + exact(*table).index_select(1, by_distance(table->size(1)).flatten()).view({table->size(0), N, M});
  if (slopes) s = s - exact(*slopes).view({-1, 1, 1}) * (j - i).abs();
  if (bias) s = s + exact(*bias);
  const auto hide = [&](const Tensor& hidden) { s = s.masked_fill(hidden, -std::numeric_limits<double>::infinity()); };
  if (mask) hide(mask->logical_not());
  if (key_mask) hide(key_mask->logical_not().unsqueeze(1).unsqueeze(1));
  if (causal) hide(j > i);
  if (window) hide(j <= i - *window);

  auto [p, lse] = safe_softmax(s);
  if (dropout_keep) p = p * dropout_keep->to(type) / (1 - dropout);
  Tensor out = at::matmul(p, v);  // [B,H,N,Dv]
  if (value_rows) {               // probabilities gathered by distance, then one product with the rows
    const int64_t length = value_rows->size(-2);
    const Tensor by_row = at::zeros({p.size(0), H, N, length}, p.options()).scatter_add(3, by_distance(length).expand_as(p), p);
    out = out + at::matmul(by_row, exact(*value_rows));
  }
  return {out.to(q_given.scalar_type()).contiguous(), lse.contiguous()};
}

}  // namespace foveate::ops
