// What linear attention divides by, its sums turned, and rows of results.
#pragma once
#include "kernels/copy.h"
#include "kernels/linear.h"
#include "kernels/row_sums.h"

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

/// d(z) and its derivative. Where d would be 0 it is 1.
template <class scalar> struct Divided {
  scalar value, slope;
};
template <class scalar> Divided<scalar> divide(const Linear<scalar>& a, scalar z) {
  Divided<scalar> d{z, 1};
  const scalar size = z < 0 ? -z : z;
  switch (a.divisor) {
    case Divisor::none: return {1, 0};
    case Divisor::add: d.value = z + a.eps; break;
    case Divisor::clamp: d = z < a.eps ? Divided<scalar>{a.eps, 0} : d; break;
    case Divisor::clamp_abs: d = size < a.eps ? Divided<scalar>{a.eps, 0} : Divided<scalar>{size, z < 0 ? scalar{-1} : scalar{1}}; break;
    case Divisor::guard: d.value = size <= a.eps ? z + 2 * a.eps : z; break;
  }
  return d.value == 0 ? Divided<scalar>{1, 0} : d;
}

/// Sums [F,row] turned to rows of `deep` numbers, `across_row` apart, as many as there are `columns`.
template <class scalar> void turn_sums(const scalar* sums, long row, long F, long columns, scalar* across, long deep, long across_row) {
  turn_rows(sums, row, F, columns, across, across_row);
  for (long d = 0; d < columns; ++d) {
    for (long f = F; f < deep; ++f) across[d * across_row + f] = 0;
  }
}

/// to = s x
template <class scalar> void store_row(const scalar* x, scalar s, long width, scalar* to) {
  long i = 0;
  for (; i + lanes<scalar> <= width; i += lanes<scalar>) vec(to + i) = s * vec(x + i);
  for (; i < width; ++i) to[i] = s * x[i];
}

/// to = x + s y
template <class scalar> void store_row(const scalar* x, scalar s, const scalar* y, long width, scalar* to) {
  long i = 0;
  for (; i + lanes<scalar> <= width; i += lanes<scalar>) vec(to + i) = vec(x + i) + s * vec(y + i);
  for (; i < width; ++i) to[i] = x[i] + s * y[i];
}

template <class scalar> void clear_row(long width, scalar* to) {
  for (long i = 0; i < width; ++i) to[i] = 0;
}

}  // namespace
}  // namespace foveate::kernels::CPU_CAPABILITY
