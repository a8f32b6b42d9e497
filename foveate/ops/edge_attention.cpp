#include <foveate/attention_formula.h>
#include <foveate/edge_attention.h>
#include <foveate/op.h>

#include <limits>

namespace foveate::ops {
namespace {

using Result = std::tuple<Tensor, Tensor, Tensor>;  // [B,H,N,Dv], [B,H,N], int [B,H or 1,N]

struct Edges {
  Tensor from, to, taken;  // [B,G,L], both in range; whether an edge counts
};

/// Edges that count: both ends are there, the key takes part, and none before it is the same.
Edges edges_of(const Tensor& to_given, const optional<Tensor>& from_given, const optional<Tensor>& key_mask, int64_t B, int64_t N, int64_t M) {
  const int64_t G = to_given.size(1), L = to_given.size(2);
  const Tensor to = to_given.expand({B, G, L});
  const Tensor from = (from_given ? *from_given : at::arange(L, to.options()).floor_divide(L / N)).expand({B, G, L});
  Tensor taken = (to >= 0) & (to < M) & (from >= 0) & (from < N);
  const Tensor key = to.clamp(0, M - 1), query = from.clamp(0, N - 1);
  if (key_mask) taken = taken & key_mask->unsqueeze(1).expand({B, G, M}).gather(2, key);
  const Tensor code = at::where(taken, query * M + key, at::full({}, -1, to.options()));
  const auto [sorted, order] = code.sort(/*stable=*/true, /*dim=*/-1, /*descending=*/false);
  const Tensor again = at::constant_pad_nd(sorted.narrow(2, 1, L - 1) == sorted.narrow(2, 0, L - 1), {1, 0}, false);
  const Tensor is_first = at::zeros_like(again).scatter(2, order, again.logical_not());
  return {.from = query, .to = key, .taken = taken & is_first};
}

Result edge_attention_formula(const Tensor& q_given, const Tensor& k_given, const Tensor& v_given, const Tensor& to, const optional<Tensor>& from,
                              const optional<Tensor>& key_mask, const optional<Tensor>& dropout_seed, double scale, double dropout) {
  const auto type = accumulation_type(q_given.scalar_type());
  const Tensor q = q_given.to(type), k = k_given.to(type), v = v_given.to(type);
  const int64_t B = q.size(0), H = q.size(1), N = q.size(2), M = k.size(2), G = to.size(1), L = to.size(2);
  constexpr double low = -std::numeric_limits<double>::infinity();
  if (B * N * M * L == 0) {
    return {at::zeros({B, H, N, v.size(3)}, q_given.options()), at::full({B, H, N}, low, q.options()), at::zeros({B, G, N}, to.options())};
  }
  const Edges e = edges_of(to, from, key_mask, B, N, M);
  const Tensor degree = at::zeros({B, G, N}, to.options()).scatter_add(2, e.from, e.taken.to(at::kLong));

  const auto by_head = [&](const Tensor& x) { return x.expand({B, H, L}); };
  const auto rows = [&](const Tensor& x, const Tensor& index) { return x.gather(2, by_head(index).unsqueeze(3).expand({B, H, L, x.size(3)})); };
  const Tensor query = by_head(e.from);  // [B,H,L]
  Tensor s = (rows(q, e.from) * rows(k, e.to)).sum(-1) * scale;
  s = s.masked_fill(by_head(e.taken).logical_not(), low);
  Tensor top = at::full({B, H, N}, low, q.options()).scatter_reduce(2, query, s.detach(), "amax");
  top = top.masked_fill(top == low, 0);
  Tensor w = (s - top.gather(2, query)).exp();
  const Tensor total = at::zeros({B, H, N}, q.options()).scatter_add(2, query, w);
  const Tensor seen = total > 0;
  const Tensor safe = at::where(seen, total, at::ones_like(total));  // both branches finite, or the gradient of log is NaN
  const Tensor lse = (safe.log() + top).masked_fill(seen.logical_not(), low);
  if (dropout_seed) {
    const Tensor head = at::arange(B * H, to.options()).view({B, H, 1});
    w = w * kept_by_seed(head * N + query, by_head(e.to), *dropout_seed, dropout).to(type) / (1 - dropout);
  }
  const Tensor parts = w.unsqueeze(3) * rows(v, e.to);  // [B,H,L,Dv]
  const Tensor out = at::zeros({B, H, N, v.size(3)}, q.options()).scatter_add(2, query.unsqueeze(3).expand_as(parts), parts) / safe.unsqueeze(3);
  return {out.to(q_given.scalar_type()).contiguous(), lse.contiguous(), degree.contiguous()};
}

Result edge_attention_meta(const Tensor& q, const Tensor&, const Tensor& v, const Tensor& to, const optional<Tensor>&, const optional<Tensor>&,
                           const optional<Tensor>&, double, double) {
  const Size B = extent(q, 0), N = extent(q, 2);
  return {q.new_empty_symint({B, extent(q, 1), N, extent(v, 3)}),
          q.new_empty_symint({B, extent(q, 1), N}, q.options().dtype(accumulation_type(q.scalar_type()))),
          to.new_empty_symint({B, extent(to, 1), N})};
}

/// Refuses a list of edges that does not go with q.
void check_list(const char* name, const Tensor& list, const Tensor& q) {
  TORCH_CHECK_TYPE(list.scalar_type() == at::kLong, "edge_attention: ", name, " must be int64, got ", list.scalar_type());
  const auto fits = [&](int64_t d) { return extent(list, d) == 1 || extent(list, d) == extent(q, d); };
  TORCH_CHECK_VALUE(list.dim() == 3 && fits(0) && fits(1), "edge_attention: ", name, " must be [B or 1,H or 1,L] for q ", q.sym_sizes(), ", got ",
                    list.sym_sizes());
}

}  // namespace

FOVEATE_OP(edge_attention,
           "_edge_attention(Tensor q, Tensor k, Tensor v, Tensor to, Tensor? start, Tensor? key_mask, Tensor? dropout_seed, float scale, "
           "float dropout) -> (Tensor out, Tensor lse, Tensor degree)",
           {.formula = &edge_attention_formula, .meta = &edge_attention_meta})

AlongEdges edge_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& to, const EdgeAttention& o) {
  check_qkv("edge_attention", q, k, v);
  TORCH_CHECK_VALUE(extent(k, 1) == extent(q, 1), "edge_attention: k must have as many heads as q, got ", extent(k, 1), " and ", extent(q, 1));
  check_list("to", to, q);
  if (o.from) {
    check_list("from", *o.from, q);
    TORCH_CHECK_VALUE(extent(*o.from, 1) == extent(to, 1) && extent(*o.from, 2) == extent(to, 2), "edge_attention: from must be like to, ",
                      to.sym_sizes(), ", got ", o.from->sym_sizes());
  }
  if (o.key_mask) check_argument("edge_attention", "key_mask", "[B,M]", *o.key_mask, {extent(q, 0), extent(k, 2)}, at::kBool);
  TORCH_CHECK_VALUE(o.dropout >= 0 && o.dropout < 1, "edge_attention: dropout must lie in [0, 1), got ", o.dropout);
  const auto [out, lse, degree] = primitive<decltype(edge_attention_formula)>("foveate::_edge_attention")
                                      .call(q, k, v, to, o.from, o.key_mask, o.dropout_seed, o.scale.value_or(default_scale(q)), o.dropout);
  return {.out = out, .lse = lse, .degree = degree};
}

}  // namespace foveate::ops
