#include <foveate/attention.h>
#include <foveate/axial.h>
#include <foveate/init.h>

namespace foveate {

// --- along one axis ----------------------------------------------------------------------------------------------------------

namespace detail {

Tensor attend_along(int64_t axis, const Tensor& q, const Tensor& k, const Tensor& v, bool causal, const optional<double>& scale,
                    const optional<Tensor>& key_mask) {
  // [B,before...,L,behind...,H,D] -> [B before,behind H,L,D]
  const auto lines = [axis](const Tensor& x) { return x.flatten(0, axis - 1).flatten(2, -2).transpose(1, 2); };
  ops::Attention how{.causal = causal, .scale = scale};
  if (key_mask) {
    const Tensor each = key_mask->unsqueeze(-1).unsqueeze(-1).expand_symint([&] {
      auto shape = k.sym_sizes().vec();
      shape.back() = 1;
      return shape;
    }());
    how.mask = lines(each).transpose(2, 3);  // [B before,behind H,1,L]
  }
  const Tensor out = ops::attention(lines(q), lines(k), lines(v), how).out;
  auto shape = q.sym_sizes().vec();
  shape.back() = extent(v, -1);
  return out.transpose(1, 2).reshape_symint(shape);
}

}  // namespace detail

Tensor AxisAttention::forward(const Options& o, const Parameters&, const Inputs& in) {
  const int64_t d = in.q.dim();
  TORCH_CHECK_VALUE(d >= 4 && d <= 6 && in.k.dim() == d && in.v.dim() == d,
                    "axis_attention: q, k and v must be [B,*S,H,D] with one to three axes S, got ", in.q.sym_sizes(), ", ", in.k.sym_sizes(), " and ",
                    in.v.sym_sizes());
  TORCH_CHECK_VALUE(o.axis >= 1 && o.axis < d - 2, "axis_attention: axis must be 1 to ", d - 3, " for q ", in.q.sym_sizes(), ", got ", o.axis);
  for (int64_t i = 0; i < d; ++i) {
    const bool alike = (i == o.axis || extent(in.k, i) == extent(in.q, i)) && (i == d - 1 || extent(in.v, i) == extent(in.k, i));
    TORCH_CHECK_VALUE(alike, "axis_attention: q, k and v may differ along axis ", o.axis, ", and v in width; got ", in.q.sym_sizes(), ", ",
                      in.k.sym_sizes(), " and ", in.v.sym_sizes());
  }
  TORCH_CHECK_VALUE(!in.key_mask || in.key_mask->dim() == d - 2, "axis_attention: key_mask must be [B,*S] as k, got ",
                    in.key_mask ? in.key_mask->sym_sizes() : in.k.sym_sizes(), " beside ", in.k.sym_sizes());
  return detail::attend_along(o.axis, in.q, in.k, in.v, o.causal, o.scale, in.key_mask);
}

FOVEATE_MECHANISM(AxisAttention)

// --- along every axis --------------------------------------------------------------------------------------------------------

namespace {

layers::Heads projections(const auto& o) {
  const int64_t inner = o.num_heads * o.head_dim.value_or(o.dim / o.num_heads);
  return layers::Heads::init({.width = o.dim, .keys = inner, .values = inner, .bias = false, .out_bias = true});
}

/// x [B,*S,C]
Tensor attend(const layers::Heads& heads, const Tensor& x, int64_t axis, int64_t num_heads, const optional<Tensor>& key_mask = {}) {
  const auto split = [&](const layers::Linear& map) { return map(x).unflatten(-1, {num_heads, -1}); };
  return heads.out(detail::attend_along(axis, split(heads.query), split(heads.key), split(heads.value), false, {}, key_mask).flatten(-2));
}

void check_channels(const char* form, const auto& o) {
  layers::check_heads(form, o.dim, o.num_heads);
  TORCH_CHECK_VALUE(!o.head_dim || *o.head_dim > 0, form, ": head_dim must be positive, got ", o.head_dim.value_or(0));
}

/// Where the channels stand, counted from the front.
int64_t channels_at(const char* form, const Tensor& x, int64_t dim_index, int64_t dim, int64_t axes) {
  const int64_t at = dim_index < 0 ? dim_index + x.dim() : dim_index;
  TORCH_CHECK_VALUE(x.dim() == axes + 2 && at > 0 && at < x.dim() && extent(x, at) == dim, form, ": x must have ", axes,
                    " axes besides batch and dim = ", dim, " channels at dim_index = ", dim_index, ", got ", x.sym_sizes());
  return at;
}

}  // namespace

void AxialAttention::check(const Options& o) {
  check_channels("axial_attention", o);
  TORCH_CHECK_VALUE(o.num_dimensions >= 1 && o.num_dimensions <= 3, "axial_attention: num_dimensions must be 1, 2 or 3, got ", o.num_dimensions);
  TORCH_CHECK_VALUE(o.dim_index != 0, "axial_attention: dim_index must not be 0, which is the batch");
}

AxialAttention::Parameters AxialAttention::shape(const Options& o) {
  Parameters p;
  p.axes.resize(static_cast<std::size_t>(o.num_dimensions));
  return p;
}

AxialAttention::Parameters AxialAttention::init(const Options& o) {
  Parameters p = shape(o);
  for (auto& heads : p.axes) heads = projections(o);
  return p;
}

Tensor AxialAttention::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const int64_t at = channels_at("axial_attention", in.x, o.dim_index, o.dim, o.num_dimensions);
  const Tensor x = in.x.movedim(at, -1);  // [B,*S,C]
  Tensor out = x;
  for (int64_t a = 0; a < o.num_dimensions; ++a) {
    const Tensor read = attend(p.axes[static_cast<std::size_t>(a)], o.sum_axial_out ? x : out, a + 1, o.num_heads, in.key_mask);
    out = o.sum_axial_out && a > 0 ? out + read : read;
  }
  return out.movedim(-1, at);
}

FOVEATE_MECHANISM(AxialAttention)

// --- the stack ---------------------------------------------------------------------------------------------------------------

namespace {

AxialStep step(const AxialImageTransformer::Options& o) { return {.norm = layers::LayerNorm::init(o.dim), .heads = projections(o)}; }

AxialConvolutions convolutions(int64_t C) {
  const std::vector<int64_t> taps{3, 3};
  return {.gain = layers::ones({1, C, 1, 1}),
          .shift = layers::zeros({1, C, 1, 1}),
          .up = layers::Convolution::init(C, 4 * C, taps),
          .down = layers::Convolution::init(4 * C, C, taps)};
}

/// x [B,C,H,W]; here the deviation, not the variance, is kept from zero.
Tensor through(const AxialConvolutions& p, const Tensor& x) {
  const Tensor centred = x - x.mean(1, true);
  const Tensor deviation = centred.square().mean(1, true).sqrt();
  const Tensor normed = centred / (deviation + 1e-5) * p.gain + p.shift;
  return p.down(at::leaky_relu(p.up(normed, {.padding = 1}), 0.01), {.padding = 1});
}

Tensor through(const AxialStep& p, const Tensor& x, int64_t axis, int64_t num_heads) {
  return attend(p.heads, p.norm(x.movedim(1, -1)), axis, num_heads).movedim(-1, 1);
}

}  // namespace

void AxialImageTransformer::check(const Options& o) {
  check_channels("axial_image_transformer", o);
  TORCH_CHECK_VALUE(o.depth > 0, "axial_image_transformer: depth must be positive, got ", o.depth);
  TORCH_CHECK_VALUE(o.dim_index != 0, "axial_image_transformer: dim_index must not be 0, which is the batch");
  TORCH_CHECK_VALUE(o.axial_pos_emb_shape.empty() || o.axial_pos_emb_shape.size() == 2,
                    "axial_image_transformer: axial_pos_emb_shape must be height and width, got ", o.axial_pos_emb_shape.size(), " numbers");
}

AxialImageTransformer::Parameters AxialImageTransformer::shape(const Options& o) {
  Parameters p;
  p.pairs.resize(2 * static_cast<std::size_t>(o.depth));
  for (std::size_t i = 0; i < p.pairs.size(); ++i) {
    if (i % 2 == 0) p.pairs[i] = {.down = AxialStep{}, .across = AxialStep{}, .first = {}, .second = {}};
    else p.pairs[i] = {.down = {}, .across = {}, .first = AxialConvolutions{}, .second = AxialConvolutions{}};
  }
  return p;
}

AxialImageTransformer::Parameters AxialImageTransformer::init(const Options& o) {
  Parameters p = shape(o);
  if (!o.axial_pos_emb_shape.empty()) {
    p.rows = layers::normal({1, o.dim, o.axial_pos_emb_shape[0], 1}, 1);
    p.columns = layers::normal({1, o.dim, 1, o.axial_pos_emb_shape[1]}, 1);
  }
  for (auto& pair : p.pairs) {
    for (auto* attention : {&pair.down, &pair.across}) {
      if (*attention) *attention = step(o);
    }
    for (auto* network : {&pair.first, &pair.second}) {
      if (*network) *network = convolutions(o.dim);
    }
  }
  return p;
}

Tensor AxialImageTransformer::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const int64_t at = channels_at("axial_image_transformer", in.x, o.dim_index, o.dim, 2);
  Tensor x = in.x.movedim(at, 1);  // [B,C,H,W]
  if (p.rows && p.columns) {
    TORCH_CHECK_VALUE(extent(x, 2) == extent(*p.rows, 2) && extent(x, 3) == extent(*p.columns, 3), "axial_image_transformer: x must be ",
                      extent(*p.rows, 2), " by ", extent(*p.columns, 3), " as axial_pos_emb_shape says, got ", in.x.sym_sizes());
    x = x + *p.rows + *p.columns;
  }
  Tensor a = x, b = x;
  for (const auto& pair : p.pairs) {
    const auto f = [&](const Tensor& y) { return pair.down ? through(*pair.down, y, 1, o.num_heads) : through(*pair.first, y); };
    const auto g = [&](const Tensor& y) { return pair.across ? through(*pair.across, y, 2, o.num_heads) : through(*pair.second, y); };
    if (o.reversible) {
      a = a + f(b);
      b = b + g(a);
    } else {
      a = a + f(a);
      a = a + g(a);
    }
  }
  return (o.reversible ? (a + b) / 2 : a).movedim(1, at);
}

FOVEATE_MECHANISM(AxialImageTransformer)

}  // namespace foveate
