#include <foveate/attention_formula.h>
#include <foveate/random_features.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <numbers>

namespace foveate::layers {
namespace {

/// D orthonormal rows, uniform over rotations and reflections: the signs of a QR factorisation are chosen by its algorithm, so that
/// those of R's diagonal are given back.
Tensor uniform_rotation(int64_t dim, const at::TensorOptions& options, const optional<at::Generator>& generator) {
  const auto [Q, R] = at::linalg_qr(at::randn({dim, dim}, generator, options));
  const Tensor diagonal = R.diagonal();
  return (Q * at::where(diagonal < 0, -at::ones_like(diagonal), at::ones_like(diagonal))).t();
}

/// H S_1 H S_2 H S_3, H [D,D] with orthonormal rows, S random signs on a diagonal.
Tensor hadamard_rotation(int64_t dim, const at::TensorOptions& options, const optional<at::Generator>& generator) {
  TORCH_CHECK_VALUE(std::has_single_bit(static_cast<uint64_t>(dim)), "rotation hadamard needs a width that is a power of two, got ", dim);
  Tensor H = at::ones({1, 1}, options);
  for (int64_t rows = 1; rows < dim; rows *= 2) H = at::cat({at::cat({H, H}, 1), at::cat({H, -H}, 1)});
  H = H / std::sqrt(static_cast<double>(dim));
  Tensor product = at::eye(dim, options);
  for (int factor = 0; factor < 3; ++factor) {
    const Tensor one = at::ones({dim}, options);
    product = at::matmul(product, H * at::where(at::rand({dim}, generator, options) < 0.5, -one, one));
  }
  return product;
}

/// Coordinates are paired at random, and each pair is rotated: 2 log2 D times, so that about D log2 D pairs were.
Tensor givens_rotation(int64_t dim, const at::TensorOptions& options, const optional<at::Generator>& generator) {
  Tensor rows = at::eye(dim, options);
  const int64_t pairs = dim / 2;
  for (int64_t reach = 1; reach < dim * dim; reach *= 2) {
    const Tensor shuffled = rows.index_select(0, at::rand({dim}, generator, options).argsort());
    const Tensor angles = at::rand({pairs, 1}, generator, options) * (2 * std::numbers::pi), c = angles.cos(), s = angles.sin();
    const Tensor a = shuffled.narrow(0, 0, pairs), b = shuffled.narrow(0, pairs, pairs);
    rows = at::cat({c * a - s * b, s * a + c * b, shuffled.narrow(0, 2 * pairs, dim - 2 * pairs)});
  }
  return rows;
}

Tensor rotation(Rotation how, int64_t dim, const at::TensorOptions& options, const optional<at::Generator>& generator) {
  switch (how) {
    case Rotation::uniform: return uniform_rotation(dim, options, generator);
    case Rotation::hadamard: return hadamard_rotation(dim, options, generator);
    case Rotation::givens: return givens_rotation(dim, options, generator);
  }
  TORCH_CHECK(false, "rotation: unknown");
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
    blocks.push_back(rotation(draw.rotation, draw.dim, wide, generator).narrow(0, 0, std::min(draw.dim, draw.features - rows)));
  }
  const Tensor directions = at::cat(blocks);
  const Tensor W = draw.row_norm == RowNorm::sqrt_dim ? directions * std::sqrt(static_cast<double>(draw.dim))
                                                      : directions * normal().square().sum(-1, /*keepdim=*/true).sqrt();
  return W.to(options.dtype());
}

Tensor draw_phase(int64_t features, const at::TensorOptions& options, const optional<at::Generator>& generator) {
  return at::rand({features}, generator, options) * (2 * std::numbers::pi);
}

int64_t width_of(const Features& features) { return plain_extent(features.W, -2) * (ops::doubled(features.map.map) ? 2 : 1); }

Features generalized_features(const Tensor& x, const optional<Tensor>& W, FeatureMap f, double epsilon) {
  if (W && (f == FeatureMap::relu || f == FeatureMap::elu_plus_one)) {
    return {.x = x, .W = *W, .map = {.map = f == FeatureMap::relu ? ops::Projected::relu : ops::Projected::elu_plus_one, .eps = epsilon}};
  }
  const Tensor phi = feature_map(W ? at::linear(x, *W) : x, f);
  return {.plain = epsilon == 0 ? phi : phi + epsilon};
}

Features sincos_features(const Tensor& x, const Tensor& W, double scale) {
  return {.x = x, .W = W, .map = {.map = ops::Projected::cos_sin, .scale = scale}, .weight = per_row(W)};
}

Features cos_phase_features(const Tensor& x, const Tensor& W, const Tensor& phase, double scale) {
  return {.x = x, .W = W, .map = {.map = ops::Projected::cos_phase, .phase = phase, .scale = scale}, .weight = 2 * per_row(W)};
}

Features positive_features(const Tensor& x, const Tensor& W, double scale, double epsilon) {
  return {.x = x, .W = W, .map = {.map = ops::Projected::positive, .scale = scale, .eps = epsilon}, .own = true, .weight = per_row(W)};
}

Features hyperbolic_features(const Tensor& x, const Tensor& W, double scale, double epsilon) {
  return {.x = x, .W = W, .map = {.map = ops::Projected::hyperbolic, .scale = scale, .eps = epsilon}, .weight = per_row(W) / 2};
}

namespace {

Tensor public_random_projection(int64_t features, int64_t dim, bool orthogonal, std::string_view row_norm, std::string_view rotation,
                                optional<at::Generator> generator, optional<at::ScalarType> dtype, optional<at::Device> device) {
  const auto norm = registry::find_choice("random_projection: row_norm", row_norm, names<RowNorm>.data(), names<RowNorm>.size());
  const auto how = registry::find_choice("random_projection: rotation", rotation, names<Rotation>.data(), names<Rotation>.size());
  return draw_projection(
      {.features = features, .dim = dim, .orthogonal = orthogonal, .row_norm = static_cast<RowNorm>(norm), .rotation = static_cast<Rotation>(how)},
      at::TensorOptions(device.value_or(at::kCPU)).dtype(dtype.value_or(at::get_default_dtype_as_scalartype())), generator);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(foveate, m) {
  m.def(
      "random_projection(int features, int dim, *, bool orthogonal=True, str row_norm=\"gaussian\", str rotation=\"uniform\", Generator? "
      "generator=None, "
      "ScalarType? dtype=None, Device? device=None) -> Tensor",
      {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
  m.impl("random_projection", torch::dispatch(c10::DispatchKey::CompositeImplicitAutograd, TORCH_FN(public_random_projection)));
}

}  // namespace foveate::layers
