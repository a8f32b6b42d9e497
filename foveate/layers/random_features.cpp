#include <foveate/attention_formula.h>
#include <foveate/random_features.h>
#include <torch/library.h>

#include <algorithm>
#include <numbers>

namespace foveate::layers {
namespace {

/// D orthonormal rows, uniform over rotations and reflections: the signs of a QR factorisation are chosen by its algorithm, so that
/// those of R's diagonal are given back.
Tensor rotation(int64_t dim, const at::TensorOptions& options, const optional<at::Generator>& generator) {
  const auto [Q, R] = at::linalg_qr(at::randn({dim, dim}, generator, options));
  const Tensor diagonal = R.diagonal();
  return (Q * at::where(diagonal < 0, -at::ones_like(diagonal), at::ones_like(diagonal))).t();
}

/// W y, and |y|^2/2 [...,1], of y = sqrt(scale) x
std::pair<Tensor, Tensor> project(const Tensor& x, const Tensor& W, double scale) {
  return {at::matmul(x, W.transpose(-1, -2) * std::sqrt(scale)), x.square().sum(-1, /*keepdim=*/true) * (scale / 2)};
}

double per_row(const Tensor& W) { return 1 / static_cast<double>(plain_extent(W, -2)); }

}  // namespace

Tensor draw_projection(const Draw& draw, const at::TensorOptions& options, const optional<at::Generator>& generator) {
  TORCH_CHECK_VALUE(draw.features > 0 && draw.dim > 0, "a projection needs features and a width, got ", draw.features, " and ", draw.dim);
  const auto type = ops::accumulation_type(c10::typeMetaToScalarType(options.dtype()));  // there is no QR in half precision
  const auto wide = options.dtype(type);
  const auto normal = [&] { return at::randn({draw.features, draw.dim}, generator, wide); };
  if (!draw.orthogonal) return normal().to(options.dtype());
  std::vector<Tensor> blocks;
  for (int64_t rows = 0; rows < draw.features; rows += draw.dim) {
    blocks.push_back(rotation(draw.dim, wide, generator).narrow(0, 0, std::min(draw.dim, draw.features - rows)));
  }
  const Tensor directions = at::cat(blocks);
  const Tensor W = draw.row_norm == RowNorm::sqrt_dim ? directions * std::sqrt(static_cast<double>(draw.dim))
                                                      : directions * normal().square().sum(-1, /*keepdim=*/true).sqrt();
  return W.to(options.dtype());
}

Tensor draw_phase(int64_t features, const at::TensorOptions& options, const optional<at::Generator>& generator) {
  return at::rand({features}, generator, options) * (2 * std::numbers::pi);
}

Features generalized_features(const Tensor& x, const optional<Tensor>& W, FeatureMap f, double epsilon) {
  return {.body = feature_map(W ? at::linear(x, *W) : x, f), .epsilon = epsilon};
}

Features sincos_features(const Tensor& x, const Tensor& W, double scale) {
  const auto [u, h] = project(x, W, scale);
  return {.body = at::cat({u.cos(), u.sin()}, -1), .shift = h, .level = h, .weight = per_row(W)};
}

Features cos_phase_features(const Tensor& x, const Tensor& W, const Tensor& phase, double scale) {
  const auto [u, h] = project(x, W, scale);
  return {.body = (u + phase).cos(), .shift = h, .level = h, .weight = 2 * per_row(W)};
}

Features positive_features(const Tensor& x, const Tensor& W, double scale, double epsilon) {
  const auto [u, h] = project(x, W, scale);
  return {.u = u, .shift = -h, .level = u.amax(-1, /*keepdim=*/true), .own = true, .epsilon = epsilon, .weight = per_row(W)};
}

Features hyperbolic_features(const Tensor& x, const Tensor& W, double scale, double epsilon) {
  const auto [u, h] = project(x, W, scale);
  return {.u = at::cat({u, -u}, -1), .shift = -h, .level = 2 * h, .epsilon = epsilon, .weight = per_row(W) / 2};
}

namespace {

Tensor public_random_projection(int64_t features, int64_t dim, bool orthogonal, std::string_view row_norm, optional<at::Generator> generator,
                                optional<at::ScalarType> dtype, optional<at::Device> device) {
  const auto norm = registry::find_choice("random_projection: row_norm", row_norm, names<RowNorm>.data(), names<RowNorm>.size());
  return draw_projection({.features = features, .dim = dim, .orthogonal = orthogonal, .row_norm = static_cast<RowNorm>(norm)},
                         at::TensorOptions(device.value_or(at::kCPU)).dtype(dtype.value_or(at::get_default_dtype_as_scalartype())), generator);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(foveate, m) {
  m.def(
      "random_projection(int features, int dim, *, bool orthogonal=True, str row_norm=\"gaussian\", Generator? generator=None, "
      "ScalarType? dtype=None, Device? device=None) -> Tensor",
      {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
  m.impl("random_projection", torch::dispatch(c10::DispatchKey::CompositeImplicitAutograd, TORCH_FN(public_random_projection)));
}

}  // namespace foveate::layers
