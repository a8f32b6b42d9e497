#include <foveate/inner_sums.h>

#include "kernels/dispatch.h"
#include "kernels/inner_sums.h"

#include <ATen/Parallel.h>
#include <foveate/op.h>

namespace foveate::ops {
namespace {

Tensor inner_sums_formula(const Tensor& p, const Tensor& l, bool over_positions) {
  const auto sum = [&](const Tensor& x) { return over_positions ? x.flatten(2).sum(2) : x.sum(1); };
  const Tensor np = 1 - p, nl = 1 - l;
  return at::stack({sum(p * l), sum(p * p + l * l), sum(np * nl), sum(np * np + nl * nl)});
}

Tensor inner_sums_meta(const Tensor& p, const Tensor&, bool over_positions) {
  std::vector<Size> shape{4, extent(p, 0)};
  for (int64_t d = over_positions ? 1 : 2; d < (over_positions ? 2 : p.dim()); ++d) shape.push_back(extent(p, d));
  return p.new_empty_symint(shape);
}

template <class scalar> const kernels::InnerSumsEngine<scalar>& engine() {
  if constexpr (std::is_same_v<scalar, double>) return *cpu_kernels().inner_sums_double;
  else return *cpu_kernels().inner_sums_float;
}

template <class scalar> kernels::InnerSums<scalar> arguments(const Tensor& p, const Tensor& l, bool over_positions) {
  return {.p = p.const_data_ptr<scalar>(),
          .l = l.const_data_ptr<scalar>(),
          .B = p.size(0),
          .C = p.size(1),
          .N = p.numel() / (p.size(0) * p.size(1)),
          .over_positions = over_positions};
}

constexpr int64_t numbers_a_thread = 1 << 14;
int64_t rows_a_thread(int64_t width) { return std::max<int64_t>(1, numbers_a_thread / width); }

template <class scalar> Tensor forward(const Tensor& p, const Tensor& l, bool over_positions) {
  const Tensor out = at::empty(inner_sums_meta(p, l, over_positions).sizes(), p.options());
  auto a = arguments<scalar>(p, l, over_positions);
  a.sums = out.mutable_data_ptr<scalar>();
  if (over_positions) {
    at::parallel_for(0, a.B * a.C, rows_a_thread(a.N), [&](int64_t begin, int64_t end) { engine<scalar>().over_positions(a, begin, end); });
  } else {
    const int64_t tile = engine<scalar>().tile, tasks = a.B * ((a.N + tile - 1) / tile);
    at::parallel_for(0, tasks, rows_a_thread(a.C * tile), [&](int64_t begin, int64_t end) { engine<scalar>().over_channels(a, begin, end); });
  }
  return out;
}

Tensor inner_sums_cpu(const Tensor& p, const Tensor& l, bool over_positions) {
  if (p.numel() == 0) return inner_sums_formula(p, l, over_positions).contiguous();
  if (p.scalar_type() == at::kDouble) return forward<double>(p.contiguous(), l.contiguous(), over_positions);
  return forward<float>(p.contiguous(), l.contiguous(), over_positions);
}

template <class scalar> std::vector<Tensor> backward(const Backward& call, const Tensor& p_given, const Tensor& l_given, bool over_positions) {
  const Tensor p = p_given.contiguous(), l = l_given.contiguous(), g = call.gradients[0];  // [4,B,C or *S]
  const Tensor own = (2 * (g[1] + g[3])).contiguous(), by = (g[0] + g[2]).contiguous(), one = (-g[2] - 2 * g[3]).contiguous();
  auto a = arguments<scalar>(p, l, over_positions);
  a.own = own.const_data_ptr<scalar>();
  a.by = by.const_data_ptr<scalar>();
  a.one = one.const_data_ptr<scalar>();
  Wanted wanted(call);
  const bool of_p = wanted(p_given), of_l = wanted(l_given);
  Tensor d_p = of_p ? at::empty_like(p) : Tensor(), d_l = of_l ? at::empty_like(l) : Tensor();
  if (of_p) a.d_p = d_p.mutable_data_ptr<scalar>();
  if (of_l) a.d_l = d_l.mutable_data_ptr<scalar>();
  at::parallel_for(0, a.B * a.C, rows_a_thread(a.N), [&](int64_t begin, int64_t end) { engine<scalar>().backward(a, begin, end); });
  std::vector<Tensor> found;
  give(found, of_p, p_given, [&] { return d_p; });
  give(found, of_l, l_given, [&] { return d_l; });
  return found;
}

Gradients inner_sums_backward(const Backward& call, Tensor p, Tensor l, bool over_positions) {
  if (!call.gradients[0].defined() || p.numel() == 0) return std::nullopt;
  return p.scalar_type() == at::kDouble ? backward<double>(call, p, l, over_positions) : backward<float>(call, p, l, over_positions);
}

}  // namespace

FOVEATE_OP(inner_sums, "_inner_sums(Tensor p, Tensor l, bool over_positions) -> Tensor",
           {.formula = &inner_sums_formula, .meta = &inner_sums_meta, .cpu = &inner_sums_cpu, .cpu_backward = &inner_sums_backward})

Tensor inner_sums(const Tensor& p, const Tensor& l, bool over_positions) {
  TORCH_CHECK_TYPE((p.scalar_type() == at::kFloat || p.scalar_type() == at::kDouble) && l.scalar_type() == p.scalar_type(),
                   "inner_sums: p and l must be float32 or float64, both alike, got ", p.scalar_type(), " and ", l.scalar_type());
  bool alike = p.dim() >= 3 && l.dim() == p.dim();
  for (int64_t d = 0; alike && d < p.dim(); ++d) alike = extent(l, d) == extent(p, d);
  TORCH_CHECK_VALUE(alike, "inner_sums: p and l must be [B,C,*S], both alike, got ", p.sym_sizes(), " and ", l.sym_sizes());
  return primitive<decltype(inner_sums_formula)>("foveate::_inner_sums").call(p, l, over_positions);
}

}  // namespace foveate::ops
