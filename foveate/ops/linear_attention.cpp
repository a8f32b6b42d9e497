#include <foveate/linear_attention.h>

#include <foveate/attention.h>
#include <foveate/attention_formula.h>
#include <foveate/linear_attention_cpu.h>
#include <foveate/linear_attention_formula.h>
#include <foveate/op.h>

namespace foveate::ops {
namespace {

std::tuple<Tensor, Tensor, Tensor> linear_attention_meta(const Tensor& q, const Tensor& k, const Tensor& v, const optional<Tensor>&,
                                                         const optional<Tensor>&, const optional<Tensor>&, const optional<Tensor>&, Size, bool,
                                                         std::string_view, double) {
  const auto sums = q.options().dtype(accumulation_type(q.scalar_type()));
  return {q.new_empty_symint({extent(q, 0), extent(q, 1), extent(q, 2), extent(v, 3)}),
          q.new_empty_symint({extent(k, 0), extent(k, 1), extent(k, 3), extent(v, 3)}, sums),
          q.new_empty_symint({extent(k, 0), extent(k, 1), extent(k, 3)}, sums)};
}

}  // namespace

FOVEATE_OP(linear_attention,
           "_linear_attention(Tensor q, Tensor k, Tensor v, Tensor? key_mask, Tensor? log_decay, Tensor? state, Tensor? key_sum, SymInt offset, "
           "bool causal, str normalizer, float eps) -> (Tensor out, Tensor state, Tensor key_sum)",
           {.formula = &linear_attention_formula,
            .meta = &linear_attention_meta,
            .cpu = &linear_attention_cpu,
            .cpu_backward = &linear_attention_backward_cpu})

LinearAttended linear_attention(const Tensor& q, const Tensor& k, const Tensor& v, const LinearAttention& o) {
  check_qkv("linear_attention", q, k, v);
  const auto type = q.scalar_type(), sums = accumulation_type(type);
  const Size B = extent(k, 0), Hk = extent(k, 1), M = extent(k, 2), F = extent(k, 3), Dv = extent(v, 3);
  if (o.key_mask) check_argument("linear_attention", "key_mask", "[B,M]", *o.key_mask, {B, M}, at::kBool);
  if (o.log_decay) check_argument("linear_attention", "log_decay", "[B,Hk,M]", *o.log_decay, {B, Hk, M}, type);
  TORCH_CHECK_VALUE(!o.log_decay || o.causal, "linear_attention: log_decay needs causal: without an order nothing is older");
  TORCH_CHECK_VALUE(o.state.S.defined() == o.state.z.defined(), "linear_attention: state needs both the sum of k v^T and the sum of k");
  if (o.state.S.defined()) {
    check_argument("linear_attention", "state", "[B,Hk,F,Dv]", o.state.S, {B, Hk, F, Dv}, sums);
    check_argument("linear_attention", "key_sum", "[B,Hk,F]", o.state.z, {B, Hk, F}, sums);
  }
  TORCH_CHECK_VALUE(o.eps >= 0, "linear_attention: eps must not be negative, got ", o.eps);
  const auto given = [](const Tensor& t) { return t.defined() ? optional(t) : std::nullopt; };
  auto [out, S, z] = primitive<decltype(linear_attention_formula)>("foveate::_linear_attention")
                         .call(q, k, v, visible_keys(k, o.key_mask, o.key_lengths), o.log_decay, given(o.state.S), given(o.state.z),
                               o.offset.value_or(M - extent(q, 2)), o.causal, names<Normalizer>[static_cast<std::size_t>(o.normalizer)], o.eps);
  return {.out = std::move(out), .state = {.S = std::move(S), .z = std::move(z)}};
}

}  // namespace foveate::ops
