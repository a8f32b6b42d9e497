#include <foveate/ccnet.h>
#include <foveate/dropout.h>
#include <foveate/init.h>
#include <foveate/merge_attention.h>
#include <foveate/sparse_attention.h>

namespace foveate {
namespace {

/// The lines of a map [B,*S,C] along an axis: [B,rest,S_axis,C]. Rows and columns are views.
Tensor lines(const Tensor& map, int64_t axis) {
  const Tensor last = map.movedim(axis, -2);
  return last.dim() == 3 ? last.unsqueeze(1) : last.flatten(1, -3);
}

/// Back: [B,rest,S_axis,C] -> [B,*S,C], like `map` but for C.
Tensor unlines(const Tensor& x, const Tensor& map, int64_t axis) {
  auto shape = map.sym_sizes().vec();
  shape.erase(shape.begin() + axis);
  shape.insert(shape.end() - 1, extent(map, axis));
  shape.back() = extent(x, -1);
  return x.reshape_symint(shape).movedim(-2, axis);
}

/// The softmax over all lines of a position, joined by log-sum-exp; the last axis has the position itself, the others leave it out.
Tensor criss_cross(const Tensor& q_given, const Tensor& k_given, const Tensor& v_given, const optional<Tensor>& mask, double scale) {
  const auto channels_last = [](const Tensor& map) { return map.movedim(1, -1).contiguous(); };  // both axes read it in place
  const Tensor q = channels_last(q_given), k = channels_last(k_given), v = channels_last(v_given);
  const patterns::Pattern others = ~patterns::sliding_window(0, 0);
  const int64_t last = q.dim() - 2;
  std::vector<ops::Attended> parts;
  for (int64_t axis = last; axis >= 1; --axis) {
    ops::Attention how{.scale = scale};
    if (mask) how.mask = lines(mask->unsqueeze(-1), axis).transpose(2, 3);  // [B,rest,1,S_axis]
    const Tensor a = lines(q, axis), b = lines(k, axis), c = lines(v, axis);
    const auto [out, lse] = axis == last ? ops::attention(a, b, c, how) : ops::sparse_attention(a, b, c, others, how);
    parts.push_back({.out = unlines(out, q, axis), .lse = unlines(lse.unsqueeze(-1), q, axis).squeeze(-1)});
  }
  return (parts.size() == 1 ? parts.front() : ops::merge_attention(parts)).out.movedim(-1, 1);
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

namespace {

Tensor recurrent(const CrissCrossAttention::Parameters& p, Tensor x, int64_t recurrence, const optional<Tensor>& mask) {
  for (int64_t r = 0; r < recurrence; ++r) x = at::addcmul(x, criss_cross(p.query(x), p.key(x), p.value(x), mask, 1), p.gamma);
  return x;
}

CrissCrossAttention::Options attention_of(const RCCA::Options& o) {
  return {.channels = o.inter_channels.value_or(o.in_channels / 4), .recurrence = o.recurrence};
}

}  // namespace

Tensor CrissCrossAttention::forward(const Options& o, const Parameters& p, const Inputs& in) {
  TORCH_CHECK_VALUE(in.x.dim() == o.dimension + 2 && extent(in.x, 1) == o.channels, "criss_cross_attention: x must be [B,C,*S] with C = ", o.channels,
                    " and ", o.dimension, " dimensions S, got ", in.x.sym_sizes());
  if (in.mask) check_grid("criss_cross_attention", "mask", *in.mask, in.x, false);
  return recurrent(p, in.x, o.recurrence, in.mask);
}

FOVEATE_MECHANISM(CrissCrossAttention)

void RCCA::check(const Options& o) {
  const auto inner = attention_of(o);
  TORCH_CHECK_VALUE(inner.channels >= 8, "rcca: inter_channels must be 8 or more, got ", inner.channels);
  TORCH_CHECK_VALUE(o.in_channels > 0 && o.out_channels > 0 && o.num_classes > 0 && o.recurrence > 0,
                    "rcca: in_channels, out_channels, num_classes and recurrence must be positive, got ", o.in_channels, ", ", o.out_channels, ", ",
                    o.num_classes, " and ", o.recurrence);
  layers::check_dropout("rcca", "dropout", o.dropout);
}

RCCA::Parameters RCCA::init(const Options& o) {
  using layers::ConvNormRelu;
  const auto inner = attention_of(o);
  const std::vector<int64_t> one{1, 1};
  return {.narrow = ConvNormRelu::init(o.in_channels, inner.channels, 3),
          .attention = CrissCrossAttention::init(inner),
          .attended = ConvNormRelu::init(inner.channels, inner.channels, 3),
          .joined = ConvNormRelu::init(o.in_channels + inner.channels, o.out_channels, 3),
          .classifier = layers::Convolution::init(o.out_channels, o.num_classes, one)};
}

Tensor RCCA::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  TORCH_CHECK_VALUE(extent(in.x, 1) == o.in_channels, "rcca: x must have in_channels = ", o.in_channels, " channels, got ", in.x.sym_sizes());
  const auto steps = layers::steps_of(o, training);
  const Tensor attended = p.attended(recurrent(p.attention, p.narrow(in.x, steps), o.recurrence, in.mask), steps);
  const Tensor joined = p.joined(at::cat({in.x, attended}, 1), steps);
  return p.classifier(training && o.dropout > 0 ? at::feature_dropout(joined, o.dropout, true) : joined);
}

FOVEATE_MECHANISM(RCCA)

}  // namespace foveate
