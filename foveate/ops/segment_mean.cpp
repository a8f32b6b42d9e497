#include <foveate/op.h>
#include <foveate/segment_mean.h>

namespace foveate::ops {
namespace {

Tensor segment_mean_formula(const Tensor& x, int64_t m, bool left_padded) {
  const int64_t N = x.size(-2), shorter = N / m, longer = N % m;
  if (left_padded) {
    const int64_t each = (N + m - 1) / m;
    const Tensor whole = each * m == N ? x : at::constant_pad_nd(x, {0, 0, each * m - N, 0});
    return whole.unflatten(-2, {m, each}).mean(-2);
  }
  if (longer == 0) return x.unflatten(-2, {m, shorter}).mean(-2);
  const int64_t first = (m - longer) * shorter;
  return at::cat({x.narrow(-2, 0, first).unflatten(-2, {m - longer, shorter}).mean(-2),
                  x.narrow(-2, first, N - first).unflatten(-2, {longer, shorter + 1}).mean(-2)},
                 -2);
}

Tensor segment_mean_meta(const Tensor& x, int64_t m, bool) {
  auto shape = x.sym_sizes().vec();
  shape[shape.size() - 2] = m;
  return x.new_empty_symint(shape);
}

Tensor whole_slots_formula(const Tensor& x, int64_t c) {
  const int64_t slots = x.size(1) / c;
  return x.narrow(1, 0, slots * c).unflatten(1, {slots, c}).clone(at::MemoryFormat::Contiguous);
}

Tensor whole_slots_meta(const Tensor& x, int64_t c) {
  auto shape = x.sym_sizes().vec();
  shape[1] = shape[1] / c;
  shape.insert(shape.begin() + 2, c);
  return x.new_empty_symint(shape);
}

}  // namespace

FOVEATE_OP(whole_slots, "_whole_slots(Tensor x, int c) -> Tensor", {.formula = &whole_slots_formula, .meta = &whole_slots_meta})

Tensor whole_slots(const Tensor& x, int64_t c) {
  TORCH_CHECK_VALUE(c > 0, "whole_slots: c must be positive, got ", c);
  return primitive<decltype(whole_slots_formula)>("foveate::_whole_slots").call(x, c);
}

FOVEATE_OP(segment_mean, "_segment_mean(Tensor x, int segments, bool left_padded) -> Tensor",
           {.formula = &segment_mean_formula, .meta = &segment_mean_meta})

Tensor segment_mean(const Tensor& x, int64_t segments, Segments how) {
  TORCH_CHECK_VALUE(segments > 0, "segment_mean: segments must be positive, got ", segments);
  TORCH_CHECK_VALUE(how == Segments::left_padded || extent(x, -2) >= segments, "segment_mean: x must have a token for each of ", segments,
                    " segments, got ", x.sym_sizes());
  return primitive<decltype(segment_mean_formula)>("foveate::_segment_mean").call(x, segments, how == Segments::left_padded);
}

}  // namespace foveate::ops
