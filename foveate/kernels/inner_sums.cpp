// Inner products of two maps and of their complements, all in one reading, and the gradient of that in another.
#include "kernels/inner_sums.h"

#include "kernels/capability.h"
#include "kernels/vec.h"

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

constexpr long tile = 512;  // positions: sums of so many, or for so many, stay in registers or the nearest cache

/// Complements are formed, not derived: n - sum p - sum l + p.l loses its digits where p and l are near 1.
template <class scalar> void over_positions(const InnerSums<scalar>& a, long begin, long end) {
  constexpr long W = lanes<scalar>;
  for (long r = begin; r < end; ++r) {
    const scalar *p = a.p + r * a.N, *l = a.l + r * a.N;
    double sums[4] = {};
    for (long n0 = 0; n0 < a.N; n0 += tile) {
      const long n1 = least(a.N, n0 + tile);
      Vec<scalar> pl{}, squares{}, npl{}, n_squares{};
      long n = n0;
      for (; n + W <= n1; n += W) {
        const Vec<scalar> x = vec(p + n), y = vec(l + n), nx = 1 - x, ny = 1 - y;
        pl += x * y;
        squares += x * x + y * y;
        npl += nx * ny;
        n_squares += nx * nx + ny * ny;
      }
      double rest[4] = {};
      for (; n < n1; ++n) {
        const double x = p[n], y = l[n], nx = 1 - x, ny = 1 - y;
        rest[0] += x * y;
        rest[1] += x * x + y * y;
        rest[2] += nx * ny;
        rest[3] += nx * nx + ny * ny;
      }
      sums[0] += static_cast<double>(total<scalar>(pl)) + rest[0];
      sums[1] += static_cast<double>(total<scalar>(squares)) + rest[1];
      sums[2] += static_cast<double>(total<scalar>(npl)) + rest[2];
      sums[3] += static_cast<double>(total<scalar>(n_squares)) + rest[3];
    }
    for (long i = 0; i < 4; ++i) a.sums[i * a.B * a.C + r] = static_cast<scalar>(sums[i]);
  }
}

template <class scalar> void over_channels(const InnerSums<scalar>& a, long begin, long end) {
  const long tiles = (a.N + tile - 1) / tile;
  for (long task = begin; task < end; ++task) {
    const long b = task / tiles, n0 = task % tiles * tile, width = least(tile, a.N - n0);
    scalar sums[4][tile] = {};
    for (long c = 0; c < a.C; ++c) {
      const scalar* __restrict__ p = a.p + (b * a.C + c) * a.N + n0;
      const scalar* __restrict__ l = a.l + (b * a.C + c) * a.N + n0;
      for (long n = 0; n < width; ++n) {
        const scalar x = p[n], y = l[n], nx = 1 - x, ny = 1 - y;
        sums[0][n] += x * y;
        sums[1][n] += x * x + y * y;
        sums[2][n] += nx * ny;
        sums[3][n] += nx * nx + ny * ny;
      }
    }
    for (long i = 0; i < 4; ++i) {
      scalar* out = a.sums + (i * a.B + b) * a.N + n0;
      for (long n = 0; n < width; ++n) out[n] = sums[i][n];
    }
  }
}

/// to = own x + by y + one, each number of the first, second and third for itself or one for all.
template <class scalar, class F> inline void gradient(const scalar* __restrict__ x, const scalar* __restrict__ y, scalar* __restrict__ to, long n,
                                                      const F& factors) {
  for (long i = 0; i < n; ++i) {
    const auto [own, by, one] = factors(i);
    to[i] = own * x[i] + by * y[i] + one;
  }
}

template <class scalar> struct Factors {
  scalar own, by, one;
};

template <class scalar> void backward(const InnerSums<scalar>& a, long begin, long end) {
  for (long r = begin; r < end; ++r) {
    const long b = r / a.C;
    const scalar *p = a.p + r * a.N, *l = a.l + r * a.N;
    const auto both = [&](const auto& factors) {
      if (a.d_p) gradient(p, l, a.d_p + r * a.N, a.N, factors);
      if (a.d_l) gradient(l, p, a.d_l + r * a.N, a.N, factors);
    };
    if (a.over_positions) {
      const Factors<scalar> all{a.own[r], a.by[r], a.one[r]};
      both([all](long) { return all; });
    } else {
      const scalar *own = a.own + b * a.N, *by = a.by + b * a.N, *one = a.one + b * a.N;
      both([=](long n) { return Factors<scalar>{own[n], by[n], one[n]}; });
    }
  }
}

}  // namespace

const InnerSumsEngine<float> inner_sums_float{over_positions<float>, over_channels<float>, backward<float>, tile};
const InnerSumsEngine<double> inner_sums_double{over_positions<double>, over_channels<double>, backward<double>, tile};

}  // namespace foveate::kernels::CPU_CAPABILITY
