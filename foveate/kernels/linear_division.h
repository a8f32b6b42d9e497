// What linear attention divides by, and the products of rows that it is found from.
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

}  // namespace
}  // namespace foveate::kernels::CPU_CAPABILITY
