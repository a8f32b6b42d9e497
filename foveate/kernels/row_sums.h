// Sums over rows of numbers.
#pragma once
#include "kernels/vec.h"

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

/// x . y of n numbers
template <class scalar> inline scalar dot(const scalar* x, const scalar* y, long n) {
  constexpr long W = lanes<scalar>;
  Vec<scalar> sums[2] = {};
  long i = 0;
  for (; i + 2 * W <= n; i += 2 * W) {
    sums[0] += vec(x + i) * vec(y + i);
    sums[1] += vec(x + i + W) * vec(y + i + W);
  }
  if (i + W <= n) {
    sums[0] += vec(x + i) * vec(y + i);
    i += W;
  }
  scalar sum = total<scalar>(sums[0] + sums[1]);
  for (; i < n; ++i) sum += x[i] * y[i];
  return sum;
}

/// to += factor x
template <class scalar> inline void add_row(scalar factor, const scalar* __restrict__ x, scalar* __restrict__ to, long n) {
  for (long i = 0; i < n; ++i) to[i] += factor * x[i];
}

/// Adds rows x [count,row] times a factor to the rows of `to` [.,width] that `place` names; a negative place is nobody's.
template <class scalar> inline void scatter_rows(const scalar* x, long row, const long* place, long count, long width, scalar factor, scalar* to) {
  for (long r = 0; r < count; ++r) {
    if (place[r] >= 0) add_row(factor, x + r * row, to + place[r] * width, width);
  }
}

}  // namespace
}  // namespace foveate::kernels::CPU_CAPABILITY
