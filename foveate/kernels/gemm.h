// C (+)= A B on tiles that fit the caches: one register tile of C at a time, rows of A broadcast, rows of B loaded.
#pragma once
#include "kernels/vec.h"

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

/// A matrix read one number at a time, so that its transpose costs nothing: element (r, k) lies at data[r * row + k * column].
template <class scalar> struct Left {
  const scalar* data;
  long row, column;
  Left from(long r) const { return {data + r * row, row, column}; }
};
/// A matrix of contiguous rows, read by vectors: its width is a multiple of two vectors.
template <class scalar> struct Right {
  const scalar* data;
  long row;
};

template <int rows, bool add, class scalar> inline void register_tile(Left<scalar> a, Right<scalar> b, scalar* c, long c_row, long depth) {
  constexpr long W = lanes<scalar>;
  Vec<scalar> sum[rows][2];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
    sum[r][0] = add ? vec(c + r * c_row) : Vec<scalar>{};
    sum[r][1] = add ? vec(c + r * c_row + W) : Vec<scalar>{};
  }
  for (long k = 0; k < depth; ++k) {
    const Vec<scalar> b0 = vec(b.data + k * b.row), b1 = vec(b.data + k * b.row + W);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const Vec<scalar> x = splat(a.data[r * a.row + k * a.column]);
      sum[r][0] += x * b0;
      sum[r][1] += x * b1;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
    vec(c + r * c_row) = sum[r][0];
    vec(c + r * c_row + W) = sum[r][1];
  }
}

template <int rows, bool add, class scalar> inline void last_rows(long left, Left<scalar> a, Right<scalar> b, scalar* c, long c_row, long depth) {
  if (left == rows) {
    register_tile<rows, add>(a, b, c, c_row, depth);
  } else if constexpr (rows > 1) {
    last_rows<rows - 1, add>(left, a, b, c, c_row, depth);
  }
}

/// Rows of C in a register tile: two vectors of B, one of A, and 2 * rows of C take 15 of AVX2's 16 registers, 27 of AVX-512's 32.
constexpr long register_rows = vector_bytes == 64 ? 12 : 6;

/// c [height, width] = or += a [height, depth] b [depth, width]; width a multiple of two vectors.
template <bool add, class scalar> inline void gemm(long height, long width, long depth, Left<scalar> a, Right<scalar> b, scalar* c, long c_row) {
  constexpr int rows = static_cast<int>(register_rows);
  for (long j = 0; j < width; j += 2 * lanes<scalar>) {
    const Right<scalar> columns{b.data + j, b.row};
    long i = 0;
    for (; i + rows <= height; i += rows) register_tile<rows, add>(a.from(i), columns, c + i * c_row + j, c_row, depth);
    if (i < height) last_rows<rows - 1, add>(height - i, a.from(i), columns, c + i * c_row + j, c_row, depth);
  }
}

}  // namespace
}  // namespace foveate::kernels::CPU_CAPABILITY
