#include <foveate/attention.h>

#include <foveate/attention_cpu.h>
#include <foveate/attention_formula.h>
#include <foveate/op.h>

namespace foveate::ops {
namespace {

std::tuple<Tensor, Tensor> attention_meta(const Tensor& q, const Tensor&, const Tensor& v, const optional<Tensor>&, const optional<Tensor>&,
                                          const optional<Tensor>&, const optional<Tensor>&, const optional<Tensor>&, const optional<Tensor>&,
                                          const optional<Tensor>&, const optional<Tensor>&, const optional<Tensor>&, Size, Size, optional<int64_t>,
                                          bool, double, double) {
  return {q.new_empty_symint({extent(q, 0), extent(q, 1), extent(q, 2), extent(v, 3)}),
          q.new_empty_symint({extent(q, 0), extent(q, 1), extent(q, 2)}, q.options().dtype(accumulation_type(q.scalar_type())))};
}

}  // namespace

FOVEATE_OP(attention,
           "_attention(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? key_mask, Tensor? bias, Tensor? slopes, Tensor? table, "
           "Tensor? rows, Tensor? row_query, Tensor? value_rows, Tensor? dropout_keep, SymInt offset, SymInt origin, int? window, "
           "bool causal, float scale, float dropout) -> (Tensor out, Tensor lse)",
           {.formula = &attention_formula, .meta = &attention_meta, .cpu = &attention_cpu, .cpu_backward = &attention_backward_cpu})

void check_qkv(const char* op, const Tensor& q, const Tensor& k, const Tensor& v) {
  TORCH_CHECK_VALUE(q.dim() == 4, op, ": q must be [B,H,N,D], got ", q.sym_sizes());
  TORCH_CHECK_VALUE(k.dim() == 4 && extent(k, 0) == extent(q, 0) && extent(k, 3) == extent(q, 3), op,
                    ": k must be [B,Hk,M,D] with B = ", extent(q, 0), " and D = ", extent(q, 3), " as in q, got ", k.sym_sizes());
  TORCH_CHECK_VALUE(v.dim() == 4 && extent(v, 0) == extent(k, 0) && extent(v, 1) == extent(k, 1) && extent(v, 2) == extent(k, 2), op,
                    ": v must be [B,Hk,M,Dv] with B, Hk, M of k, got ", v.sym_sizes(), " beside k ", k.sym_sizes());
  TORCH_CHECK_VALUE(extent(k, 1) == extent(q, 1) || (extent(k, 1) > 0 && extent(q, 1) % extent(k, 1) == 0), op,
                    ": k: its heads must divide those of q, got ", extent(k, 1), " and ", extent(q, 1));
  TORCH_CHECK_TYPE(k.scalar_type() == q.scalar_type(), op, ": k must be ", q.scalar_type(), " like q, got ", k.scalar_type());
  TORCH_CHECK_TYPE(v.scalar_type() == q.scalar_type(), op, ": v must be ", q.scalar_type(), " like q, got ", v.scalar_type());
}

optional<Tensor> visible_keys(const Tensor& k, const optional<Tensor>& key_mask, const optional<Tensor>& key_lengths) {
  if (!key_lengths) return key_mask;
  const Tensor within = at::arange(extent(k, 2), key_lengths->options()) < key_lengths->unsqueeze(1);  // [B,M]
  return key_mask ? within & *key_mask : within;
}

Attended attention(const Tensor& q, const Tensor& k, const Tensor& v, const Attention& o) {
  check_qkv("attention", q, k, v);
  TORCH_CHECK_TYPE(!o.mask || o.mask->scalar_type() == at::kBool, "attention: mask must be bool, got ", o.mask->scalar_type());
  TORCH_CHECK_VALUE(!o.key_mask || (o.key_mask->dim() == 2 && extent(*o.key_mask, 0) == extent(k, 0) && extent(*o.key_mask, 1) == extent(k, 2)),
                    "attention: key_mask must be [B,M] with B = ", extent(k, 0), " and M = ", extent(k, 2), " as in k, got ",
                    o.key_mask->sym_sizes());
  TORCH_CHECK_VALUE(o.dropout >= 0 && o.dropout < 1, "attention: dropout must lie in [0, 1), got ", o.dropout);
  const auto& p = o.position;
  const double scale = o.scale.value_or(default_scale(q));
  const auto [out, lse] =
      primitive<decltype(attention_formula)>("foveate::_attention")
          .call(q, k, v, o.mask, visible_keys(k, o.key_mask, o.key_lengths), o.bias, p.slopes, p.table, p.rows, p.row_query, p.value_rows,
                o.dropout_keep, o.offset.value_or(extent(k, 2) - extent(q, 2)), p.origin, o.window, o.causal, scale, o.dropout);
  return {.out = out, .lse = lse};
}

}  // namespace foveate::ops
