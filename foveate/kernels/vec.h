// Vectors of the instruction set that a file is compiled for, with the compiler's vector extension: no intrinsics, every architecture.
#pragma once

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

#if defined(CPU_CAPABILITY_AVX512)
inline constexpr int vector_bytes = 64;
#elif defined(CPU_CAPABILITY_AVX2)
inline constexpr int vector_bytes = 32;
#else
inline constexpr int vector_bytes = 16;
#endif

template <class scalar> struct Vectors;
template <> struct Vectors<float> {
  typedef float type __attribute__((vector_size(vector_bytes), aligned(4), may_alias));
  typedef int integers __attribute__((vector_size(vector_bytes)));
};
template <> struct Vectors<double> {
  typedef double type __attribute__((vector_size(vector_bytes), aligned(8), may_alias));
  typedef long integers __attribute__((vector_size(vector_bytes)));
};
template <class scalar> using Vec = typename Vectors<scalar>::type;
template <class scalar> inline constexpr long lanes = vector_bytes / static_cast<long>(sizeof(scalar));

template <class scalar> inline Vec<scalar>& vec(scalar* p) { return *reinterpret_cast<Vec<scalar>*>(p); }
template <class scalar> inline const Vec<scalar>& vec(const scalar* p) { return *reinterpret_cast<const Vec<scalar>*>(p); }
template <class scalar> inline Vec<scalar> splat(scalar x) { return x - Vec<scalar>{}; }
template <class scalar> inline long round_up(long n) { return (n + 2 * lanes<scalar> - 1) / (2 * lanes<scalar>)*(2 * lanes<scalar>); }

inline long least(long a, long b) { return a < b ? a : b; }
inline long most(long a, long b) { return a > b ? a : b; }
inline long clamped(long x, long low, long high) { return most(low, least(high, x)); }

inline constexpr float infinity = __builtin_inff();

/// exp(x) for x <= 0 or so, 0 below the smallest normal number (and for -infinity); relative error 3e-7 in float, 1e-15 in double.
/// 2^n 2^r with n = round(x log2 e): adding a large number rounds, and leaves n in the low bits.
inline Vec<float> exp(Vec<float> x) {
  const Vec<float> shift = splat(12582912.f);  // 1.5 * 2^23
  const Vec<float> shifted = x * 1.44269504f + shift, n = shifted - shift;
  const Vec<float> r = x * 1.925963e-8f + (x * 1.44269504f - n);  // log2 e in two parts
  Vec<float> p = splat(1.3264729e-3f);
  p = p * r + 9.6715132e-3f;
  p = p * r + 5.5507337e-2f;
  p = p * r + 2.4022242e-1f;
  p = p * r + 6.9314698e-1f;
  p = p * r + 1.f;  // 2^r, exact at 0
  typedef Vectors<float>::integers Int;
  const Int power = (reinterpret_cast<Int>(shifted) + 127) << 23;  // 2^n
  const Vec<float> value = p * reinterpret_cast<Vec<float>>(power);
  return x < splat(-87.f) ? Vec<float>{} : value;  // a NaN stays one
}

inline Vec<double> exp(Vec<double> x) {
  const Vec<double> least = splat(-708.0), clamped = x < least ? least : x;
  const Vec<double> shift = splat(6755399441055744.0);  // 1.5 * 2^52
  const Vec<double> shifted = clamped * 1.4426950408889634 + shift, n = shifted - shift;
  const Vec<double> r = (clamped - n * 0.693145751953125) - n * 1.42860682030941723212e-6;
  Vec<double> p = splat(1.0 / 6227020800.0);  // Taylor to r^13; |r| <= 0.35
  constexpr double terms[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
                              1.0 / 120,       1.0 / 24,       1.0 / 6,       0.5,          1.0,         1.0};
  for (const double term : terms) p = p * r + term;
  typedef Vectors<double>::integers Int;
  const Int power = (reinterpret_cast<Int>(shifted) - 0x4338000000000000L + 1023) << 52;
  const Vec<double> value = p * reinterpret_cast<Vec<double>>(power);
  return x < least ? Vec<double>{} : value;
}

/// The sum of a vector's numbers: of its halves, and of theirs.
template <class T> inline auto total_of(T v) {
  constexpr long count = sizeof(T) / sizeof(v[0]);
  if constexpr (count == 16)
    return total_of(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
  else if constexpr (count == 8) return total_of(__builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7));
  else if constexpr (count == 4) return (v[0] + v[2]) + (v[1] + v[3]);
  else return v[0] + v[1];
}
template <class scalar> inline scalar total(Vec<scalar> v) { return total_of(v); }

/// The highest of a vector's numbers, none of them NaN.
template <class T> inline auto highest_of(T v) {
  const auto higher = [](auto a, auto b) { return a > b ? a : b; };
  constexpr long count = sizeof(T) / sizeof(v[0]);
  if constexpr (count == 16)
    return highest_of(higher(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7), __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15)));
  else if constexpr (count == 8) return highest_of(higher(__builtin_shufflevector(v, v, 0, 1, 2, 3), __builtin_shufflevector(v, v, 4, 5, 6, 7)));
  else if constexpr (count == 4) return highest_of(higher(__builtin_shufflevector(v, v, 0, 1), __builtin_shufflevector(v, v, 2, 3)));
  else return higher(v[0], v[1]);
}

}  // namespace
}  // namespace foveate::kernels::CPU_CAPABILITY
