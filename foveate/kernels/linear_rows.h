// What linear attention divides by, the products of rows that it is found from, and rows of results.
#pragma once
#include "kernels/linear.h"
#include "kernels/vec.h"

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

/// x . y of `count` numbers.
template <class scalar> scalar product(const scalar* x, const scalar* y, long count) {
  Vec<scalar> some[2] = {};
  long i = 0;
  for (; i + 2 * lanes<scalar> <= count; i += 2 * lanes<scalar>) {
    some[0] += vec(x + i) * vec(y + i);
    some[1] += vec(x + i + lanes<scalar>) * vec(y + i + lanes<scalar>);
  }
  scalar sum = total<scalar>(some[0] + some[1]);
  for (; i < count; ++i) sum += x[i] * y[i];
  return sum;
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
