#include <foveate/largest.h>

#include "kernels/dispatch.h"

#include <ATen/Parallel.h>
#include <foveate/attention_formula.h>
#include <foveate/op.h>

#include <limits>

namespace foveate::ops {
namespace {

Tensor largest_formula(const Tensor& x_given, int64_t k) {
  const Tensor x = x_given.detach();
  const int64_t taken = std::min(k, x.size(-1));
  const auto [values, order] = x.sort(/*stable=*/true, /*dim=*/-1, /*descending=*/true);
  const Tensor none = values.narrow(-1, 0, taken) == -std::numeric_limits<double>::infinity();
  return at::constant_pad_nd(order.narrow(-1, 0, taken).masked_fill(none, -1), {0, k - taken}, -1);
}

template <class scalar> void run(const kernels::SelectionEngine<scalar>& engine, const Tensor& x, Tensor& places) {
  const int64_t width = x.size(-1), k = places.size(-1);
  const auto* from = x.const_data_ptr<scalar>();
  auto* to = places.mutable_data_ptr<int64_t>();
  constexpr int64_t rows_a_thread = 8;
  at::parallel_for(0, places.numel() / k, rows_a_thread, [&](int64_t begin, int64_t end) { engine.largest(from, width, k, to, begin, end); });
}

Tensor largest_cpu(const Tensor& x_given, int64_t k) {
  const Tensor x = x_given.detach().to(accumulation_type(x_given.scalar_type())).contiguous();
  auto shape = x.sizes().vec();
  shape.back() = k;
  Tensor places = at::empty(shape, x.options().dtype(at::kLong));
  if (x.scalar_type() == at::kDouble) run(*cpu_kernels().selection_double, x, places);
  else run(*cpu_kernels().selection_float, x, places);
  return places;
}

Tensor largest_meta(const Tensor& x, int64_t k) {
  auto shape = x.sym_sizes().vec();
  shape.back() = k;
  return x.new_empty_symint(shape, x.options().dtype(at::kLong));
}

}  // namespace

FOVEATE_OP(largest, "_largest(Tensor x, int k) -> Tensor", {.formula = &largest_formula, .meta = &largest_meta, .cpu = &largest_cpu})

Tensor largest(const Tensor& x, int64_t k) {
  TORCH_CHECK_VALUE(k > 0, "largest: k must be positive, got ", k);
  return primitive<decltype(largest_formula)>("foveate::_largest").call(x.detach(), k);
}

}  // namespace foveate::ops
