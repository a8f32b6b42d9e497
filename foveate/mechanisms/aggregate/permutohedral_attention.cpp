#include <foveate/init.h>
#include <foveate/lattice_filter.h>
#include <foveate/permutohedral_attention.h>

namespace foveate {

Tensor LatticeFilter::forward(const Options& o, const Parameters&, const Inputs& in) {
  const auto filter = [&](const Tensor& values) { return ops::lattice_filter(in.features, values, in.key_mask, o.share_lattice); };
  if (o.normalize == LatticeNormalize::none) return filter(in.values);
  const Tensor ones = at::ones_like(in.values.narrow(-1, 0, 1));                    // [B,H,N,1]
  const auto divisible = [](const Tensor& n) { return n.masked_fill(n == 0, 1); };  // a point that is masked has none
  if (o.normalize == LatticeNormalize::row) {
    const int64_t width = plain_extent(in.values, 3);
    const Tensor sums = filter(at::cat({in.values, ones}, -1));
    return sums.narrow(-1, 0, width) / divisible(sums.narrow(-1, width, 1));
  }
  const Tensor weight = divisible(filter(ones)).rsqrt();
  return weight * filter(weight * in.values);
}

FOVEATE_MECHANISM(LatticeFilter)

PermutohedralSimplex::Outputs PermutohedralSimplex::forward(const Options&, const Parameters&, const Inputs& in) {
  const auto simplex = ops::lattice_simplex(in.features);
  return {.barycentric = simplex.weights, .vertices = ops::lattice_vertices(simplex), .rank = simplex.rank};
}

FOVEATE_MECHANISM(PermutohedralSimplex)

namespace {

using Block = PermutohedralAttention;

int64_t filter_features(const Block::Options& o) {
  return o.filter_features.value_or(std::clamp<int64_t>(o.in_features / 2, 1, ops::lattice_widest));
}
int64_t out_features(const Block::Options& o) { return o.out_features.value_or(std::max<int64_t>(o.in_features / 2, 1)); }

/// Coordinates of x [B,C,*S], the middle being 0, times `scale`: [B,dimensions,*S]
Tensor coordinates(const Tensor& x, const Tensor& scale) {
  std::vector<Tensor> axes;
  auto shape = x.sym_sizes().vec();
  shape[1] = 1;
  for (int64_t axis = 2; axis < x.dim(); ++axis) {
    const Size length = extent(x, axis);
    std::vector<Size> along(shape.size(), 1);
    along[static_cast<std::size_t>(axis)] = length;
    const Tensor place = at::arange(length, x.options()) - length / 2;
    axes.push_back((place * scale.select(0, axis - 2)).view_symint(along).expand_symint(shape));
  }
  return at::cat(axes, 1);
}

/// [B,n D,*S] -> [B,n,N,D], positions in order
Tensor points(const Tensor& map, int64_t splits) { return map.flatten(2).unflatten(1, {splits, -1}).transpose(2, 3); }

}  // namespace

void Block::check(const Options& o) {
  constexpr auto name = "permutohedral_attention";
  TORCH_CHECK_VALUE(o.in_features > 0, name, ": in_features must be positive, got ", o.in_features);
  TORCH_CHECK_VALUE(filter_features(o) > 0 && filter_features(o) <= ops::lattice_widest, name, ": filter_features must lie between 1 and ",
                    ops::lattice_widest, ", got ", filter_features(o));
  TORCH_CHECK_VALUE(out_features(o) > 0, name, ": out_features must be positive, got ", out_features(o));
  TORCH_CHECK_VALUE(o.n_split > 0, name, ": n_split must be positive, got ", o.n_split);
  TORCH_CHECK_VALUE(o.dimension >= 1 && o.dimension <= 3, name, ": dimension must be 1, 2 or 3, got ", o.dimension);
}

Block::Parameters Block::init(const Options& o) {
  const std::vector<int64_t> taps(static_cast<std::size_t>(o.dimension), 1);
  return {.features = layers::Convolution::init(o.in_features + o.dimension, o.n_split * filter_features(o), taps),
          .values = layers::Convolution::init(o.in_features, o.n_split * out_features(o), taps),
          .spatial_scale = layers::normal({o.dimension}, 1)};
}

Tensor Block::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const Tensor& x = in.x;
  TORCH_CHECK_VALUE(x.dim() == o.dimension + 2 && extent(x, 1) == o.in_features,
                    "permutohedral_attention: x must be [B,C,*S] with C = ", o.in_features, " and ", o.dimension, " dimensions S, got ",
                    x.sym_sizes());
  const Tensor features = at::leaky_relu(p.features(at::cat({x, coordinates(x, p.spatial_scale)}, 1)), 0.01);
  const Tensor out = LatticeFilter::forward({.normalize = o.normalize, .share_lattice = o.share_lattice}, {},
                                            {.features = points(features, o.n_split), .values = points(p.values(x), o.n_split)});
  auto shape = x.sym_sizes().vec();
  shape[1] = o.n_split * out_features(o);
  return out.transpose(2, 3).reshape_symint(shape);
}

FOVEATE_MECHANISM(PermutohedralAttention)

}  // namespace foveate
