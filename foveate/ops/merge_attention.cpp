#include <foveate/merge_attention.h>

#include "kernels/dispatch.h"
#include "kernels/merge_attention.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <foveate/attention_formula.h>
#include <foveate/op.h>

namespace foveate::ops {
namespace {

using Result = std::tuple<Tensor, Tensor>;

Result merge_formula(const Tensor& outs, const Tensor& lses) {
  const auto [weights, lse] = safe_softmax(lses.movedim(0, -1));                                  // [...,P]
  const Tensor weight = weights.movedim(-1, 0).unsqueeze(-1);                                     // [P,...,1]
  const Tensor parts = at::where(weight > 0, outs.to(lses.scalar_type()), weight.new_zeros({}));  // a part that saw nothing may hold anything
  return {(weight * parts).sum(0).to(outs.scalar_type()).contiguous(), lse.contiguous()};
}

Result merge_meta(const Tensor& outs, const Tensor& lses) {
  return {outs.new_empty_symint(outs.sym_sizes().slice(1)), lses.new_empty_symint(lses.sym_sizes().slice(1))};
}

void over_rows(const kernels::MergeAttention& arguments, void (*kernel)(const kernels::MergeAttention&, long begin, long end)) {
  constexpr int64_t rows_a_thread = 64;
  at::parallel_for(0, arguments.rows, rows_a_thread, [&](int64_t begin, int64_t end) { kernel(arguments, begin, end); });
}

/// What both directions read.
kernels::MergeAttention parts_of(const Tensor& outs, const Tensor& lses, const Tensor& lse) {
  kernels::MergeAttention a{};
  a.outs = outs.const_data_ptr();
  a.lses = lses.const_data_ptr();
  a.parts = lses.size(0);
  a.rows = lse.numel();
  a.width = outs.size(-1);
  return a;
}

Result merge_cpu(const Tensor& outs_given, const Tensor& lses_given) {
  if (outs_given.scalar_type() != lses_given.scalar_type()) return merge_formula(outs_given, lses_given);  // half-precision parts
  const Tensor outs = outs_given.contiguous(), lses = lses_given.contiguous();
  Tensor out = at::empty(outs.sizes().slice(1), outs.options()), lse = at::empty(lses.sizes().slice(1), lses.options());
  kernels::MergeAttention arguments = parts_of(outs, lses, lse);
  arguments.out = out.mutable_data_ptr();
  arguments.lse = lse.mutable_data_ptr();
  over_rows(arguments, outs.scalar_type() == at::kDouble ? cpu_kernels().merge_attention_double : cpu_kernels().merge_attention_float);
  return {out, lse};
}

Gradients merge_backward(const Backward& call, Tensor outs_given, Tensor lses_given) {
  const Tensor& given = call.gradients[0];
  if (!given.defined() || outs_given.numel() == 0 || outs_given.scalar_type() != lses_given.scalar_type()) return std::nullopt;
  const Tensor outs = outs_given.contiguous(), lses = lses_given.contiguous(), lse = call.results[1].contiguous();
  const Tensor d_lse = call.gradients[1].defined() ? call.gradients[1].contiguous() : Tensor();
  Tensor d_outs = at::empty_like(outs), d_lses = at::empty_like(lses);
  const Tensor weights = at::empty_like(lses);
  d_outs[0].copy_(given);
  kernels::MergeAttention arguments = parts_of(outs, lses, lse);
  arguments.lse = const_cast<void*>(lse.const_data_ptr());  // NOLINT: read only in the backward
  arguments.d_lse = d_lse.defined() ? d_lse.const_data_ptr() : nullptr;
  arguments.d_outs = d_outs.mutable_data_ptr();
  arguments.d_lses = d_lses.mutable_data_ptr();
  arguments.weights = weights.mutable_data_ptr();
  over_rows(arguments, outs.scalar_type() == at::kDouble ? cpu_kernels().merge_backward_double : cpu_kernels().merge_backward_float);
  Wanted wanted(call);
  std::vector<Tensor> found;
  give(found, wanted(outs), outs, [&] { return d_outs; });
  give(found, wanted(lses), lses, [&] { return d_lses; });
  return found;
}

}  // namespace

FOVEATE_OP(merge_attention, "_merge_attention(Tensor outs, Tensor lses) -> (Tensor out, Tensor lse)",
           {.formula = &merge_formula, .meta = &merge_meta, .cpu = &merge_cpu, .cpu_backward = &merge_backward})

Attended merge_attention(const Tensor& outs, const Tensor& lses) {
  TORCH_CHECK_VALUE(outs.dim() >= 2 && lses.dim() == outs.dim() - 1, "merge_attention: lses must be [P,...] beside outs [P,...,Dv], got ",
                    lses.sym_sizes(), " and ", outs.sym_sizes());
  for (int64_t d = 0; d < lses.dim(); ++d) {
    TORCH_CHECK_VALUE(extent(lses, d) == extent(outs, d), "merge_attention: lses must be [P,...] beside outs [P,...,Dv], got ", lses.sym_sizes(),
                      " and ", outs.sym_sizes());
  }
  TORCH_CHECK_TYPE(lses.scalar_type() == accumulation_type(outs.scalar_type()), "merge_attention: lses must be ",
                   accumulation_type(outs.scalar_type()), " beside outs of ", outs.scalar_type(), ", got ", lses.scalar_type());
  const auto [out, lse] = primitive<Result(const Tensor&, const Tensor&)>("foveate::_merge_attention").call(outs, lses);
  return {.out = out, .lse = lse};
}

Attended merge_attention(std::span<const Attended> parts) {
  std::vector<Tensor> outs, lses;
  for (const auto& part : parts) {
    outs.push_back(part.out);
    lses.push_back(part.lse);
  }
  return merge_attention(at::stack(outs), at::stack(lses));
}

}  // namespace foveate::ops
