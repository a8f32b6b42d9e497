#include <foveate/autonl.h>
#include <foveate/conv_norm_relu.h>
#include <foveate/init.h>

namespace foveate {
namespace {

int64_t compared(const LightNonLocalBlock::Options& o) { return static_cast<int64_t>(o.ratio * static_cast<double>(o.in_channels)); }

/// f [B,C,N] = g (phi^T theta) / divisor, associated as costs less: theta [B,c,N], phi [B,c,M], g [B,C,M]. What is divided is the small matrix.
Tensor product(const Tensor& theta, const Tensor& phi, const Tensor& g, const Tensor& divisor) {
  const auto N = extent(theta, 2).maybe_as_int(), M = extent(g, 2).maybe_as_int();
  const int64_t C = plain_extent(g, 1), c = plain_extent(theta, 1);
  const bool pairs_first = N && M && *N * *M * (C + c) < (*N + *M) * c * C;  // a length that is not known yet counts as long
  if (pairs_first) return at::matmul(g, at::matmul(phi.transpose(1, 2), theta) / divisor);
  return at::matmul(at::matmul(g, phi.transpose(1, 2)) / divisor, theta);
}

}  // namespace

void LightNonLocalBlock::check(const Options& o) {
  TORCH_CHECK_VALUE(o.in_channels > 0 && o.ratio <= 1 && compared(o) > 0,
                    "light_non_local_block: ratio must leave between 1 and all of in_channels, got ", o.ratio, " of ", o.in_channels);
  TORCH_CHECK_VALUE(o.stride > 0, "light_non_local_block: stride must be positive, got ", o.stride);
}

LightNonLocalBlock::Parameters LightNonLocalBlock::init(const Options& o) {
  const int64_t C = o.in_channels;
  // Glorot-uniform of a depthwise filter, as the authors' framework draws it: 9 C values come in, 9 go out.
  return {.depthwise = {.weight = layers::uniform({C, 1, 3, 3}, std::sqrt(6 / static_cast<double>(9 * C + 9))), .bias = {}},
          .norm = layers::BatchNorm::init(C, 0)};
}

Tensor LightNonLocalBlock::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  const Tensor& x = in.x;
  TORCH_CHECK_VALUE(extent(x, 1) == o.in_channels, "light_non_local_block: x must have in_channels = ", o.in_channels, " channels, got ",
                    x.sym_sizes());
  const auto thinned = [&](const Tensor& t, int64_t dim) { return o.stride == 1 ? t : t.slice(dim, 0, std::nullopt, o.stride); };
  const Tensor g = thinned(thinned(x, 2), 3).contiguous().flatten(2);  // [B,C,M]
  const Tensor theta = x.narrow(1, 0, compared(o)).flatten(2);         // [B,c,N]
  const Tensor H = length_of(x, 2), W = length_of(x, 3);
  const Tensor divisor = o.normalize == LightNormalize::hw ? H * W : H / W;
  const Tensor f = product(theta, g.narrow(1, 0, compared(o)), g, divisor).reshape_symint(x.sym_sizes());  // [B,C,H,W]
  return x + layers::normalised(p.depthwise, p.norm, f, training, o.bn_momentum, o.bn_eps, {.padding = 1, .groups = o.in_channels});
}

FOVEATE_MECHANISM(LightNonLocalBlock)

}  // namespace foveate
