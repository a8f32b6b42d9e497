// From numbers as they are stored to numbers to compute with: rows in order, or turned.
#pragma once
#include "kernels/rows.h"
#include "kernels/vec.h"

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

inline float widened(unsigned short bits) {  // bfloat16
  const unsigned wide = static_cast<unsigned>(bits) << 16;
  float x;
  __builtin_memcpy(&x, &wide, sizeof x);
  return x;
}

/// Calls f with the stored row n of (b, h), as a pointer to its type, and with how to read one number of it.
template <class scalar, class F> inline void with_row(const Rows& rows, long b, long h, long n, const F& f) {
  const long at = b * rows.batch + h * rows.head + rows.place(b, h, n) * rows.row;
  if constexpr (sizeof(scalar) == sizeof(double)) {
    f(static_cast<const double*>(rows.data) + at, [](double x) { return x; });
  } else if (rows.kind == Kind::float32) {
    f(static_cast<const float*>(rows.data) + at, [](float x) { return x; });
  } else if (rows.kind == Kind::bfloat16) {
    f(static_cast<const unsigned short*>(rows.data) + at, [](unsigned short x) { return widened(x); });
  } else {
    f(static_cast<const _Float16*>(rows.data) + at, [](_Float16 x) { return static_cast<float>(x); });
  }
}

/// Copies rows [first, first + height) of (b, h) to rows of `padded` numbers, times `factor`; the rest of each row is zero.
template <class scalar> void copy_rows(const Rows& rows, long b, long h, long first, long height, long width, scalar factor, scalar* to,
                                       long padded) {
  for (long r = 0; r < height; ++r) {
    scalar* row = to + r * padded;
    if (rows.place(b, h, first + r) < 0) {
      for (long d = 0; d < padded; ++d) row[d] = 0;
      continue;
    }
    with_row<scalar>(rows, b, h, first + r, [&](const auto* from, auto read) {
      for (long d = 0; d < width; ++d) row[d] = factor * static_cast<scalar>(read(from[d]));
    });
    for (long d = width; d < padded; ++d) row[d] = 0;
  }
}

inline constexpr long turned_rows = 64;  // rows that lie side by side once they are turned

/// Four numbers of each of four rows, to four columns `column` apart.
template <class scalar> inline void turn(const scalar* row0, const scalar* row1, const scalar* row2, const scalar* row3, scalar* to, long column) {
  typedef scalar Four __attribute__((vector_size(4 * sizeof(scalar)), aligned(sizeof(scalar)), may_alias));
  const auto read = [](const scalar* p) -> const Four& { return *reinterpret_cast<const Four*>(p); };
  const auto at = [](scalar* p) -> Four& { return *reinterpret_cast<Four*>(p); };
  const Four a = read(row0), b = read(row1), c = read(row2), d = read(row3);
  const Four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Four AB = __builtin_shufflevector(a, b, 2, 6, 3, 7), CD = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  at(to) = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
  at(to + column) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
  at(to + 2 * column) = __builtin_shufflevector(AB, CD, 0, 1, 4, 5);
  at(to + 3 * column) = __builtin_shufflevector(AB, CD, 2, 3, 6, 7);
}

/// Copies `height` rows to columns `column` apart.
template <class scalar> void turn_rows(const scalar* from, long row, long height, long width, scalar* to, long column) {
  const long by_four = height / 4 * 4, wide_by_four = width / 4 * 4;
  for (long r = 0; r < by_four; r += 4) {
    const scalar* x = from + r * row;
    for (long d = 0; d < wide_by_four; d += 4) turn(x + d, x + row + d, x + 2 * row + d, x + 3 * row + d, to + d * column + r, column);
  }
  for (long r = 0; r < height; ++r) {
    for (long d = r < by_four ? wide_by_four : 0; d < width; ++d) to[d * column + r] = from[r * row + d];
  }
}

/// Copies the same rows as copy_rows to a transposed tile [width,turned_rows]; rows beyond them are zero.
template <class scalar> void copy_across(const Rows& rows, long b, long h, long first, long height, long width, scalar* to) {
  const bool as_they_are = rows.kind == Kind::float32 || rows.kind == Kind::float64;
  const long wide_by_four = width / 4 * 4;
  const auto is_row = [&](long r) { return rows.place(b, h, first + r) >= 0; };
  const auto row = [&](long r) {
    return static_cast<const scalar*>(rows.data) + b * rows.batch + h * rows.head + rows.place(b, h, first + r) * rows.row;
  };
  for (long r = 0; r < height;) {
    const bool four = as_they_are && r + 4 <= height && is_row(r) && is_row(r + 1) && is_row(r + 2) && is_row(r + 3);
    if (four) {
      const scalar *x0 = row(r), *x1 = row(r + 1), *x2 = row(r + 2), *x3 = row(r + 3);
      for (long d = 0; d < wide_by_four; d += 4) turn(x0 + d, x1 + d, x2 + d, x3 + d, to + d * turned_rows + r, turned_rows);
    }
    for (const long begin = four ? wide_by_four : 0, end = r + (four ? 4 : 1); r < end; ++r) {
      if (!is_row(r)) {
        for (long d = 0; d < width; ++d) to[d * turned_rows + r] = 0;
        continue;
      }
      with_row<scalar>(rows, b, h, first + r, [&](const auto* from, auto read) {
        for (long d = begin; d < width; ++d) to[d * turned_rows + r] = static_cast<scalar>(read(from[d]));
      });
    }
  }
  for (long d = 0; height < turned_rows && d < width; ++d) {
    for (long r = height; r < turned_rows; ++r) to[d * turned_rows + r] = 0;
  }
}

}  // namespace
}  // namespace foveate::kernels::CPU_CAPABILITY
