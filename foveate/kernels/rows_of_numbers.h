// Single rows of numbers: products and sums.
#pragma once
#include "kernels/vec.h"

#include <math.h>

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

template <class scalar> inline scalar dot(const scalar* x, const scalar* y, long count) {
  Vec<scalar> sums{};
  long d = 0;
  for (; d + lanes<scalar> <= count; d += lanes<scalar>) sums += vec(x + d) * vec(y + d);
  scalar sum = total<scalar>(sums);
  for (; d < count; ++d) sum += x[d] * y[d];
  return sum;
}

/// y += factor x
template <class scalar> inline void add_scaled(scalar factor, const scalar* x, scalar* y, long count) {
  long d = 0;
  for (; d + lanes<scalar> <= count; d += lanes<scalar>) vec(y + d) += factor * vec(x + d);
  for (; d < count; ++d) y[d] += factor * x[d];
}

inline float exponential(float x) { return expf(x); }
inline double exponential(double x) { return ::exp(x); }

}  // namespace
}  // namespace foveate::kernels::CPU_CAPABILITY
