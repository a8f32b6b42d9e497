// Sums over two rows of numbers.
#pragma once
#include "kernels/vec.h"

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

template <class scalar> inline scalar dot(const scalar* x, const scalar* y, long n) {
  constexpr long W = lanes<scalar>;
  Vec<scalar> sums{};
  long i = 0;
  for (; i + W <= n; i += W) sums += vec(x + i) * vec(y + i);
  scalar sum = total<scalar>(sums);
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
