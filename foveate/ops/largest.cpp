#include <foveate/largest.h>
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

Tensor largest_meta(const Tensor& x, int64_t k) {
  auto shape = x.sym_sizes().vec();
  shape.back() = k;
  return x.new_empty_symint(shape, x.options().dtype(at::kLong));
}

}  // namespace

FOVEATE_OP(largest, "_largest(Tensor x, int k) -> Tensor", {.formula = &largest_formula, .meta = &largest_meta})

Tensor largest(const Tensor& x, int64_t k) {
  TORCH_CHECK_VALUE(k > 0, "largest: k must be positive, got ", k);
  return primitive<decltype(largest_formula)>("foveate::_largest").call(x.detach(), k);
}

}  // namespace foveate::ops
