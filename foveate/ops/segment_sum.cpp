#include <foveate/attention_formula.h>
#include <foveate/op.h>
#include <foveate/segment_sum.h>

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

}  // namespace

FOVEATE_OP(segment_sum, "_segment_sum(Tensor x, Tensor groups, int count) -> Tensor", {.formula = &segment_sum_formula, .meta = &segment_sum_meta})
FOVEATE_OP(take_rows, "_take_rows(Tensor x, Tensor groups) -> Tensor", {.formula = &take_rows_formula, .meta = &take_rows_meta})

Tensor segment_sum(const Tensor& x, const Tensor& groups, int64_t count) {
  return primitive<decltype(segment_sum_formula)>("foveate::_segment_sum").call(x, groups, count);
}

Tensor take_rows(const Tensor& x, const Tensor& groups) { return primitive<decltype(take_rows_formula)>("foveate::_take_rows").call(x, groups); }

}  // namespace foveate::ops
