#include <foveate/ccnet.h>
#include <foveate/init.h>
#include <foveate/merge_attention.h>
#include <foveate/sparse_attention.h>

namespace foveate {
namespace {

/// The lines of a map [B,C,*S] along an axis: [B rest,1,S_axis,C].
Tensor lines(const Tensor& map, int64_t axis) {
  const Tensor last = map.movedim(axis, -1).movedim(1, -1);  // [B,*rest,S_axis,C]
  return (last.dim() == 3 ? last : last.flatten(0, last.dim() - 3)).unsqueeze(1);
}

/// Back: [B rest,1,S_axis,C] -> [B,C,*S], like `map` but for C.
Tensor unlines(const Tensor& x, const Tensor& map, int64_t axis) {
  auto shape = map.sym_sizes().vec();  // [B,*rest,S_axis,C]
  shape.erase(shape.begin() + axis);
  shape.erase(shape.begin() + 1);
  shape.push_back(extent(map, axis));
  shape.push_back(extent(x, 3));
  return x.reshape_symint(shape).movedim(-1, 1).movedim(-1, axis);
}

/// The softmax over all lines of a position, joined by log-sum-exp; the first axis has the position itself, the others leave it out.
Tensor criss_cross(const Tensor& q, const Tensor& k, const Tensor& v, const optional<Tensor>& mask, double scale) {
  std::vector<Tensor> outs, lses;
  const patterns::Pattern others = ~patterns::sliding_window(0, 0);
  for (int64_t axis = q.dim() - 1; axis >= 2; --axis) {
    ops::Attention how{.scale = scale};
    if (mask) how.key_mask = lines(mask->unsqueeze(1), axis).squeeze(3).squeeze(1);
    const Tensor a = lines(q, axis), b = lines(k, axis), c = lines(v, axis);
    const auto [out, lse] = axis == q.dim() - 1 ? ops::attention(a, b, c, how) : ops::sparse_attention(a, b, c, others, how);
    outs.push_back(unlines(out, q, axis).movedim(1, -1));            // [B,*S,Cv]
    lses.push_back(unlines(lse.unsqueeze(-1), q, axis).squeeze(1));  // [B,*S]
  }
  if (outs.size() == 1) return outs.front().movedim(-1, 1);
  return ops::merge_attention(at::stack(outs), at::stack(lses)).out.movedim(-1, 1);
}

void check_grid(const char* form, const char* name, const Tensor& t, const Tensor& q, bool channels) {
  bool fits = t.dim() == q.dim() - (channels ? 0 : 1) && extent(t, 0) == extent(q, 0);
  for (int64_t d = 2; fits && d < q.dim(); ++d) fits = extent(t, channels ? d : d - 1) == extent(q, d);
  TORCH_CHECK_VALUE(fits, form, ": ", name, " must be ", channels ? "[B,C,*S]" : "[B,*S]", " on the grid of the queries, got ", t.sym_sizes(),
                    " beside ", q.sym_sizes());
}

}  // namespace

Tensor CrissCross::forward(const Options& o, const Parameters&, const Inputs& in) {
  TORCH_CHECK_VALUE(in.q.dim() >= 3 && in.q.dim() <= 5, "criss_cross: q must be [B,C,*S] with one to three dimensions S, got ", in.q.sym_sizes());
  check_grid("criss_cross", "k", in.k, in.q, true);
  check_grid("criss_cross", "v", in.v, in.q, true);
  TORCH_CHECK_VALUE(extent(in.k, 1) == extent(in.q, 1), "criss_cross: k must have the channels of q, got ", in.k.sym_sizes(), " beside ",
                    in.q.sym_sizes());
  if (in.mask) check_grid("criss_cross", "mask", *in.mask, in.q, false);
  return criss_cross(in.q, in.k, in.v, in.mask, o.scale);
}

FOVEATE_MECHANISM(CrissCross)

void CrissCrossAttention::check(const Options& o) {
  TORCH_CHECK_VALUE(o.channels > 0 && o.qk_channels.value_or(o.channels / 8) > 0,
                    "criss_cross_attention: channels must be 8 or more where qk_channels is not given, got ", o.channels);
  TORCH_CHECK_VALUE(o.recurrence > 0, "criss_cross_attention: recurrence must be positive, got ", o.recurrence);
  TORCH_CHECK_VALUE(o.dimension == 2 || o.dimension == 3, "criss_cross_attention: dimension must be 2 or 3, got ", o.dimension);
}

CrissCrossAttention::Parameters CrissCrossAttention::init(const Options& o) {
  const std::vector<int64_t> one(static_cast<std::size_t>(o.dimension), 1);
  const int64_t width = o.qk_channels.value_or(o.channels / 8);
  const auto pointwise = [&](int64_t out) { return layers::Convolution::init(o.channels, out, one); };
  return {.query = pointwise(width), .key = pointwise(width), .value = pointwise(o.channels), .gamma = layers::zeros({1})};
}

Tensor CrissCrossAttention::forward(const Options& o, const Parameters& p, const Inputs& in) {
  TORCH_CHECK_VALUE(in.x.dim() == o.dimension + 2 && extent(in.x, 1) == o.channels, "criss_cross_attention: x must be [B,C,*S] with C = ", o.channels,
                    " and ", o.dimension, " dimensions S, got ", in.x.sym_sizes());
  if (in.mask) check_grid("criss_cross_attention", "mask", *in.mask, in.x, false);
  Tensor x = in.x;
  for (int64_t r = 0; r < o.recurrence; ++r) x = at::addcmul(x, criss_cross(p.query(x), p.key(x), p.value(x), in.mask, 1), p.gamma);
  return x;
}

FOVEATE_MECHANISM(CrissCrossAttention)

}  // namespace foveate
