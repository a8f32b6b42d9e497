// Memory that is needed next, asked for while products are computed: what is read once, from far away, and what is written without having
// been read, would else be waited for.
#pragma once
#include "kernels/gemm.h"
#include "kernels/rows.h"

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

/// Lines of memory, of which each step asks for a share.
class Ahead {
 public:
  /// Starts a list that is to be worked off in so many steps.
  void begin(long steps) {
    count_ = at_ = lines_ = 0;
    steps_ = steps;
  }
  /// Rows [first, first + height) of (b, h), as far as there are any; a head has `length`.
  void add(const Rows& rows, long b, long h, long first, long height, long length, long width) {
    if (rows.index) return;
    const long size = number_size(rows.kind);
    add(static_cast<const char*>(rows.data) + (b * rows.batch + h * rows.head) * size, rows.row * size, first, height, length, width * size);
  }
  /// The same of contiguous rows of a head.
  template <class scalar> void add(const scalar* head, long first, long height, long length, long width) {
    constexpr long size = sizeof(scalar);
    add(reinterpret_cast<const char*>(head), width * size, first, height, length, width * size);
  }
  void step() {
    for (long wanted = lines_ / steps_ + 1; wanted > 0 && at_ < count_;) {
      Range& range = ranges_[at_];
      for (long i = 0; i < range.lines; ++i) __builtin_prefetch(range.row + i * line, 0, 2);
      wanted -= range.lines;
      range.row += range.stride;
      if (--range.rows == 0) ++at_;
    }
  }

 private:
  static constexpr long line = 64, most_ranges = 8;
  struct Range {
    const char* row;
    long stride, lines, rows;
  };
  Range ranges_[most_ranges];
  long count_ = 0, at_ = 0, lines_ = 0, steps_ = 1;

  void add(const char* head, long stride, long first, long height, long length, long bytes) {
    const long from = clamped(first, 0, length), to = clamped(first + height, 0, length);
    if (from >= to || count_ == most_ranges) return;
    ranges_[count_++] = {head + from * stride, stride, tiles_of(bytes, line), to - from};
    lines_ += (to - from) * tiles_of(bytes, line);
  }
};

/// How many tiles a product of these sizes is computed in.
template <class scalar> long tiles_in(long height, long width) { return tiles_of(height, register_rows) * tiles_of(width, 2 * lanes<scalar>); }

/// A product of matrices, with a step before each of its tiles.
template <bool add, class scalar> void gemm(Ahead& ahead, long height, long width, long depth, Left<scalar> a, Right<scalar> b, scalar* c,
                                            long c_row) {
  for (long j = 0; j < width; j += 2 * lanes<scalar>) {
    for (long i = 0; i < height; i += register_rows) {
      ahead.step();
      gemm<add>(least(register_rows, height - i), 2 * lanes<scalar>, depth, a.from(i), Right<scalar>{b.data + j, b.row}, c + i * c_row + j, c_row);
    }
  }
}

/// Rows a multiple of 1024 bytes apart would push each other out of the first cache.
template <class scalar> long apart(long width) {
  constexpr long size = sizeof(scalar);
  return width * size % 1024 == 0 ? width + 64 / size : width;
}

}  // namespace
}  // namespace foveate::kernels::CPU_CAPABILITY
