#include <foveate/attention_formula.h>
#include <foveate/random_features.h>
#include <torch/library.h>

#include <algorithm>
#include <numbers>

namespace foveate::layers {
namespace {

/// The top of nothing: finite, so that differences are never NaN.
constexpr double lowest = -1e30;

/// D orthonormal rows, uniform over rotations and reflections: the signs of a QR factorisation are chosen by its algorithm, so that
/// those of R's diagonal are given back.
Tensor rotation(int64_t dim, const at::TensorOptions& options, const optional<at::Generator>& generator) {
  const auto [Q, R] = at::linalg_qr(at::randn({dim, dim}, generator, options));
  const Tensor diagonal = R.diagonal();
  return (Q * at::where(diagonal < 0, -at::ones_like(diagonal), at::ones_like(diagonal))).t();
}

/// |x|^2/2 of x [...,D] -> [...,1]
Tensor half_square(const Tensor& x) { return x.square().sum(-1, /*keepdim=*/true) / 2; }

double root_features(const Tensor& W) { return std::sqrt(static_cast<double>(plain_extent(W, 0))); }

Tensor hide(const Tensor& x, const optional<Tensor>& hidden, double value) { return hidden ? x.masked_fill(*hidden, value) : x; }

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

Features sincos_features(const Tensor& x, const Tensor& W) {
  const Tensor u = at::linear(x, W), h = half_square(x);
  return {.body = at::cat({u.cos(), u.sin()}, -1) / root_features(W), .exponent = h, .level = h};
}

Features cos_phase_features(const Tensor& x, const Tensor& W, const Tensor& phase) {
  const Tensor h = half_square(x);
  return {.body = at::linear(x, W, phase).cos() * (std::numbers::sqrt2 / root_features(W)), .exponent = h, .level = h};
}

Features positive_features(const Tensor& x, const Tensor& W, double epsilon) {
  const Tensor u = at::linear(x, W);
  return {.exponent = u - half_square(x), .level = u.amax(-1, /*keepdim=*/true), .epsilon = epsilon};
}

Features hyperbolic_features(const Tensor& x, const Tensor& W, double epsilon) {
  const Tensor u = at::linear(x, W), h = half_square(x);
  return {.exponent = at::cat({u, -u}, -1) - h, .level = 2 * h, .epsilon = epsilon};
}

Tensor below(const Features& x, const Tensor& top, const optional<Tensor>& hidden) {
  Tensor phi = x.body;
  if (x.exponent.defined()) {
    const Tensor growth = hide(top.defined() ? x.exponent - top : x.exponent, hidden, 0).exp();
    phi = phi.defined() ? phi * growth : growth;
  }
  return x.epsilon == 0 ? phi : phi + x.epsilon;
}

Tensor greatest(const Tensor& level, const optional<Tensor>& hidden) {
  // One more position, below all others: there may be none.
  return at::constant_pad_nd(hide(level, hidden, lowest), {0, 0, 1, 0}, lowest).amax(-2, /*keepdim=*/true);
}

std::pair<Tensor, FeatureSums> running_attention(const Tensor& q, const Features& k, const Tensor& v, const FeatureAttention& o,
                                                 const FeatureSums& past) {
  const auto hidden = o.key_mask ? optional(o.key_mask->logical_not().unsqueeze(1).unsqueeze(-1)) : std::nullopt;  // [B,1,M,1]
  const Size M = extent(v, 2);
  FeatureSums next;
  Tensor top;                  // [B,Hk,M or 1,1]
  optional<Tensor> log_decay;  // [B,Hk,M]
  if (k.exponent.defined()) {
    const Tensor level = hide(k.exponent.detach().amax(-1, /*keepdim=*/true), hidden, lowest).squeeze(-1);  // [B,Hk,M]
    const Tensor before = past.top.defined() ? past.top.unsqueeze(-1) : level.new_full_symint({extent(v, 0), extent(v, 1), 1}, lowest);
    const Tensor all = at::cat({before, level}, -1);  // [B,Hk,1+M]
    if (o.causal) {
      const Tensor tops = std::get<0>(all.cummax(-1)), now = tops.narrow_symint(-1, 1, M);
      log_decay = tops.narrow_symint(-1, 0, M) - now;
      top = now.unsqueeze(-1);
      next.top = tops.select(-1, -1);
    } else {
      next.top = all.amax(-1);
      top = next.top.unsqueeze(-1).unsqueeze(-1);
    }
  }
  const Tensor keys = below(k, top, hidden);  // [B,Hk,M,F]
  if (!next.top.defined()) next.top = keys.new_zeros_symint({extent(v, 0), extent(v, 1)});
  auto sums = ops::linear_attention(q, keys, v,
                                    {.causal = o.causal,
                                     .key_mask = o.key_mask,
                                     .log_decay = log_decay,
                                     .state = {.S = past.S, .z = past.z},
                                     .normalizer = o.normalizer,
                                     .eps = o.eps});
  next.S = std::move(sums.state.S);
  next.z = std::move(sums.state.z);
  return {std::move(sums.out), std::move(next)};
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
