#include <foveate/segment_sum.h>

#include "kernels/dispatch.h"

#include <ATen/Parallel.h>
#include <foveate/attention_formula.h>
#include <foveate/op.h>

namespace foveate::ops {
namespace {

/// The row of each, `count` where it belongs to none, as an index of rows like x: [B,H,N,D]
Tensor place_of(const Tensor& groups, int64_t count, int64_t D) {
  const Tensor place = groups.masked_fill((groups < 0) | (groups >= count), count).unsqueeze(3);
  return place.expand({-1, -1, -1, D});
}

Tensor segment_sum_formula(const Tensor& x, const Tensor& groups, int64_t count) {
  const auto type = accumulation_type(x.scalar_type());
  const Tensor sums = at::zeros({x.size(0), x.size(1), count + 1, x.size(3)}, x.options().dtype(type));
  return sums.scatter_add(2, place_of(groups, count, x.size(3)), x.to(type)).narrow(2, 0, count).to(x.scalar_type()).contiguous();
}

Tensor segment_sum_meta(const Tensor& x, const Tensor&, int64_t count) {
  return x.new_empty_symint({extent(x, 0), extent(x, 1), count, extent(x, 3)});
}

Tensor take_rows_formula(const Tensor& x, const Tensor& groups) {
  return at::constant_pad_nd(x, {0, 0, 0, 1}).gather(2, place_of(groups, x.size(2), x.size(3)));
}

Tensor take_rows_meta(const Tensor& x, const Tensor& groups) {
  return x.new_empty_symint({extent(x, 0), extent(x, 1), extent(groups, 2), extent(x, 3)});
}

/// Either of both, for the rows of every (b, h): x [B,H,*,D] -> [B,H,height,D]
template <class scalar, class F> Tensor by_head(const Tensor& x, const Tensor& groups_given, int64_t height, const F& kernel) {
  const Tensor groups = groups_given.contiguous();
  Tensor result = at::empty({x.size(0), x.size(1), height, x.size(3)}, x.options());
  const auto* from = x.const_data_ptr<scalar>();
  const auto* index = groups.const_data_ptr<int64_t>();
  auto* to = result.mutable_data_ptr<scalar>();
  at::parallel_for(0, x.size(0) * x.size(1), 1, [&](int64_t begin, int64_t end) { kernel(from, index, to, begin, end); });
  return result;
}

/// The call of one of the kernels with the engine of the type of x; half precision is added up in float32.
template <class F> Tensor run(const Tensor& x_given, const F& call) {
  const Tensor x = x_given.to(accumulation_type(x_given.scalar_type())).contiguous();
  const Tensor result = x.scalar_type() == at::kDouble ? call(x, *cpu_kernels().selection_double) : call(x, *cpu_kernels().selection_float);
  return result.to(x_given.scalar_type());
}

Tensor segment_sum_cpu(const Tensor& x_given, const Tensor& groups, int64_t count) {
  return run(x_given, [&]<class scalar>(const Tensor& x, const kernels::SelectionEngine<scalar>& engine) {
    return by_head<scalar>(x, groups, count, [&](const scalar* from, const long* index, scalar* to, int64_t begin, int64_t end) {
      engine.segment_sum(from, index, x.size(2), count, x.size(3), to, begin, end);
    });
  });
}

Tensor take_rows_cpu(const Tensor& x_given, const Tensor& groups) {
  const int64_t N = groups.size(2);
  return run(x_given, [&]<class scalar>(const Tensor& x, const kernels::SelectionEngine<scalar>& engine) {
    return by_head<scalar>(x, groups, N, [&](const scalar* from, const long* index, scalar* to, int64_t begin, int64_t end) {
      engine.take_rows(from, index, N, x.size(2), x.size(3), to, begin, end);
    });
  });
}

Gradients segment_sum_backward_cpu(const Backward& call, const Tensor&, const Tensor& groups, int64_t) {
  if (!call.gradients[0].defined()) return std::nullopt;
  return std::vector<Tensor>{take_rows_cpu(call.gradients[0], groups)};
}

Gradients take_rows_backward_cpu(const Backward& call, const Tensor& x, const Tensor& groups) {
  if (!call.gradients[0].defined()) return std::nullopt;
  return std::vector<Tensor>{segment_sum_cpu(call.gradients[0], groups, x.size(2))};
}

}  // namespace

FOVEATE_OP(segment_sum, "_segment_sum(Tensor x, Tensor groups, int count) -> Tensor",
           {.formula = &segment_sum_formula, .meta = &segment_sum_meta, .cpu = &segment_sum_cpu, .cpu_backward = &segment_sum_backward_cpu})
FOVEATE_OP(take_rows, "_take_rows(Tensor x, Tensor groups) -> Tensor",
           {.formula = &take_rows_formula, .meta = &take_rows_meta, .cpu = &take_rows_cpu, .cpu_backward = &take_rows_backward_cpu})

Tensor segment_sum(const Tensor& x, const Tensor& groups, int64_t count) {
  return primitive<decltype(segment_sum_formula)>("foveate::_segment_sum").call(x, groups, count);
}

Tensor take_rows(const Tensor& x, const Tensor& groups) { return primitive<decltype(take_rows_formula)>("foveate::_take_rows").call(x, groups); }

}  // namespace foveate::ops
