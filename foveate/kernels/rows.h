// Rows of numbers where they lie, however they are stored: what kernels are given of q, k and v.
#pragma once

namespace foveate::kernels {

/// How numbers are stored. The engine computes in double where they are double, in float elsewhere.
enum class Kind { float32, float64, bfloat16, float16 };

inline long number_size(Kind kind) { return kind == Kind::float64 ? 8 : kind == Kind::float32 ? 4 : 2; }

/// Rows of contiguous numbers: element (b, h, n, d) is number b * batch + h * head + n * row + d. Where there is an index, row n of (b, h)
/// is row index[b * index_batch + h * index_head + n], or none where that is negative.
struct Rows {
  const void* data;
  Kind kind;
  long batch, head, row;
  const long* index;  // may be null
  long index_batch, index_head;

  long place(long b, long h, long n) const { return index ? index[b * index_batch + h * index_head + n] : n; }
};

inline long tiles_of(long n, long tile) { return (n + tile - 1) / tile; }

}  // namespace foveate::kernels
