#include <foveate/delta_attention.h>

#include <foveate/attention.h>
#include <foveate/attention_formula.h>
#include <foveate/delta_attention_formula.h>
#include <foveate/linear_attention_cpu.h>
#include <foveate/op.h>

namespace foveate::ops {
namespace {

std::tuple<Tensor, Tensor> delta_attention_meta(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor&, const optional<Tensor>&,
                                                const optional<Tensor>&, Size, bool) {
  return {q.new_empty_symint({extent(q, 0), extent(q, 1), extent(q, 2), extent(v, 3)}),
          q.new_empty_symint({extent(k, 0), extent(k, 1), extent(k, 3), extent(v, 3)}, q.options().dtype(accumulation_type(q.scalar_type())))};
}

}  // namespace

FOVEATE_OP(
    delta_attention,
    "_delta_attention(Tensor q, Tensor k, Tensor v, Tensor beta, Tensor? key_mask, Tensor? state, SymInt offset, bool causal) "
    "-> (Tensor out, Tensor state)",
    {.formula = &delta_attention_formula, .meta = &delta_attention_meta, .cpu = &delta_attention_cpu, .cpu_backward = &delta_attention_backward_cpu})

DeltaAttended delta_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta, const DeltaAttention& o) {
  check_qkv("delta_attention", q, k, v);
  const auto type = q.scalar_type();
  const Size B = extent(k, 0), Hk = extent(k, 1), M = extent(k, 2), F = extent(k, 3), Dv = extent(v, 3);
  check_argument("delta_attention", "beta", "[B,Hk,M]", beta, {B, Hk, M}, type);
  if (o.key_mask) check_argument("delta_attention", "key_mask", "[B,M]", *o.key_mask, {B, M}, at::kBool);
  if (o.state.defined()) check_argument("delta_attention", "state", "[B,Hk,F,Dv]", o.state, {B, Hk, F, Dv}, accumulation_type(type));
  auto [out, state] =
      primitive<decltype(delta_attention_formula)>("foveate::_delta_attention")
          .call(q, k, v, beta, o.key_mask, o.state.defined() ? optional(o.state) : std::nullopt, o.offset.value_or(M - extent(q, 2)), o.causal);
  return {.out = std::move(out), .state = std::move(state)};
}

}  // namespace foveate::ops
