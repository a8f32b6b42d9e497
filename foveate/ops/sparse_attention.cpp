#include <foveate/attention_formula.h>
#include <foveate/op.h>
#include <foveate/rules.h>
#include <foveate/sparse_attention.h>
#include <foveate/sparse_attention_cpu.h>
#include <foveate/sparse_attention_formula.h>

namespace foveate::ops {
namespace {

std::tuple<Tensor, Tensor> sparse_attention_meta(const Tensor& q, const Tensor&, const Tensor& v, std::string_view, at::TensorList,
                                                 const optional<Tensor>&, const optional<Tensor>&, const optional<Tensor>&, double, Size) {
  return {q.new_empty_symint({extent(q, 0), extent(q, 1), extent(q, 2), extent(v, 3)}),
          q.new_empty_symint({extent(q, 0), extent(q, 1), extent(q, 2)}, q.options().dtype(accumulation_type(q.scalar_type())))};
}

/// Refuses a tensor that does not broadcast to [B,H,N,M].
void check_broadcast(const char* name, const Tensor& t, const Tensor& q, const Tensor& k) {
  const std::array scores{extent(q, 0), extent(q, 1), extent(q, 2), extent(k, 2)};
  bool fits = t.dim() <= 4;
  for (int64_t d = 1; fits && d <= t.dim(); ++d) {
    const Size size = extent(t, -d);
    fits = size == 1 || size == scores[static_cast<std::size_t>(4 - d)];
  }
  TORCH_CHECK_VALUE(fits, "sparse_attention: ", name, " must broadcast to [B,H,N,M] = ", c10::SymIntArrayRef(scores), ", got ", t.sym_sizes());
}

}  // namespace

FOVEATE_OP(sparse_attention,
           "_sparse_attention(Tensor q, Tensor k, Tensor v, str pattern, Tensor[] tables, Tensor? key_mask, Tensor? mask, Tensor? bias, "
           "float scale, SymInt offset) -> (Tensor out, Tensor lse)",
           {.formula = &sparse_attention_formula,
            .meta = &sparse_attention_meta,
            .cpu = &sparse_attention_cpu,
            .cpu_backward = &sparse_attention_backward_cpu})

Attended sparse_attention(const Tensor& q, const Tensor& k, const Tensor& v, const patterns::Pattern& pattern, const SparseAttention& o) {
  check_qkv("sparse_attention", q, k, v);
  patterns::parse(pattern.expression);  // refused here, where the caller can see it
  if (o.mask) {
    TORCH_CHECK_TYPE(o.mask->scalar_type() == at::kBool, "sparse_attention: mask must be bool, got ", o.mask->scalar_type());
    check_broadcast("mask", *o.mask, q, k);
  }
  if (o.bias) check_broadcast("bias", *o.bias, q, k);
  const auto key_mask = visible_keys(k, o.key_mask, o.key_lengths);
  if (key_mask) {
    TORCH_CHECK_TYPE(key_mask->scalar_type() == at::kBool, "sparse_attention: key_mask must be bool, got ", key_mask->scalar_type());
    TORCH_CHECK_VALUE(key_mask->dim() == 2 && extent(*key_mask, 0) == extent(k, 0) && extent(*key_mask, 1) == extent(k, 2),
                      "sparse_attention: key_mask must be [B,M] = ", c10::SymIntArrayRef({extent(k, 0), extent(k, 2)}), ", got ",
                      key_mask->sym_sizes());
  }
  const auto [out, lse] = primitive<decltype(sparse_attention_formula)>("foveate::_sparse_attention")
                              .call(q, k, v, pattern.expression, pattern.tables, key_mask, o.mask, o.bias, o.scale.value_or(default_scale(q)),
                                    o.offset.value_or(extent(k, 2) - extent(q, 2)));
  return {.out = out, .lse = lse};
}

}  // namespace foveate::ops
