// The engine's products: exact ones, or, where q, k and v are bfloat16 and the processor multiplies whole tiles of it (a.multiply), narrow
// ones. A narrow product takes its left matrix as rows of bfloat16 and its right one as pairs of rows: number (k, n) beside (k + 1, n).
#pragma once
#include "kernels/copy.h"
#include "kernels/room.h"
#include "kernels/softmax_tiles.h"

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

template <class scalar> bool narrow([[maybe_unused]] const Softmax<scalar>& a) {
  if constexpr (sizeof(scalar) == sizeof(float)) return a.multiply != nullptr;
  else return false;
}

// --- bfloat16 ------------------------------------------------------------------------------------------------------------------------

typedef unsigned Bits __attribute__((vector_size(vector_bytes), aligned(4), may_alias));
typedef unsigned short NarrowBits __attribute__((vector_size(vector_bytes / 2), aligned(2), may_alias));

/// Numbers as the sum of two of bfloat16, to 16 bits: the upper halves of `high` and of `low`. A product with exact numbers takes both, so
/// that results are rounded once, when they are stored.
struct TwoParts {
  Bits high, low;
  explicit TwoParts(const float* p) : high((*reinterpret_cast<const Bits*>(p) + 0x8000) & 0xffff0000u) {
    low = reinterpret_cast<Bits>(vec(p) - reinterpret_cast<const Vec<float>&>(high));
  }
};
inline NarrowBits upper_halves(Bits x) { return __builtin_convertvector(x >> 16, NarrowBits); }
inline NarrowBits& narrow_at(unsigned short* p) { return *reinterpret_cast<NarrowBits*>(p); }
inline Bits& pairs_at(unsigned short* p) { return *reinterpret_cast<Bits*>(p); }

/// Numbers that are bfloat16 already.
inline void narrow_exact(const float* from, long count, unsigned short* to) {
  for (long c = 0; c < count; c += lanes<float>) narrow_at(to + c) = upper_halves(*reinterpret_cast<const Bits*>(from + c));
}

inline constexpr long narrow_room = query_tile * run_keys;  // narrow numbers of a part

/// `count` numbers in two parts, narrow_room apart.
inline void narrow_row(const float* from, long count, unsigned short* to) {
  for (long c = 0; c < count; c += lanes<float>) {
    const TwoParts x(from + c);
    narrow_at(to + c) = upper_halves(x.high);
    narrow_at(to + narrow_room + c) = upper_halves(x.low);
  }
}

/// Rows of numbers, `run_keys` apart, as pairs of rows, [query_tile / 2,run_keys], in two parts; rows from `height` on are zero.
inline void narrow_pairs(const float* from, long height, long width, unsigned short* to) {
  for (long r = 0; r < query_tile; r += 2) {
    for (long c = 0; c < width; c += lanes<float>) {
      unsigned short* at = to + r * run_keys + 2 * c;
      if (r + 1 < height) {
        const TwoParts even(from + r * run_keys + c), odd(from + (r + 1) * run_keys + c);
        pairs_at(at) = even.high >> 16 | odd.high;
        pairs_at(at + narrow_room) = even.low >> 16 | (odd.low & 0xffff0000u);
      } else if (r < height) {
        const TwoParts even(from + r * run_keys + c);
        pairs_at(at) = even.high >> 16;
        pairs_at(at + narrow_room) = even.low >> 16;
      } else {
        pairs_at(at) = pairs_at(at + narrow_room) = Bits{};
      }
    }
  }
}

/// The bfloat16 row n of (b, h).
inline const unsigned short* stored_row(const Rows& rows, long b, long h, long n) {
  return static_cast<const unsigned short*>(rows.data) + b * rows.batch + h * rows.head + rows.place(b, h, n) * rows.row;
}

/// Stored rows [first, first + height) as columns of pairs, [padded / 2,key_tile]: numbers 2 d and 2 d + 1 of row r lie at d * key_tile + r.
inline void pair_across(const Rows& rows, long b, long h, long first, long height, long width, long padded, float* to) {
  const unsigned short* whole = stored_row(rows, b, h, first);
  const bool as_pairs = !rows.index && rows.row % 2 == 0 && width % 2 == 0;
  for (long i = 0; (!as_pairs || height < key_tile || width < padded) && i < padded / 2 * key_tile; ++i) to[i] = 0;
  if (as_pairs) {
    turn_rows(reinterpret_cast<const float*>(whole), rows.row / 2, height, width / 2, to, key_tile);
    return;
  }
  auto* narrow_to = reinterpret_cast<unsigned short*>(to);
  for (long r = 0; r < height; ++r) {
    if (rows.place(b, h, first + r) < 0) continue;
    const unsigned short* row = stored_row(rows, b, h, first + r);
    for (long d = 0; d < width; ++d) narrow_to[(d / 2 * key_tile + r) * 2 + d % 2] = row[d];
  }
}

/// The same rows as pairs of rows, [key_tile / 2,padded].
inline void pair_along(const Rows& rows, long b, long h, long first, long height, long width, long padded, float* to) {
  auto* pairs = reinterpret_cast<unsigned*>(to);
  const auto present = [&](long r) { return r < height && rows.place(b, h, first + r) >= 0; };
  for (long r = 0; r < key_tile; r += 2) {
    unsigned* pair = pairs + r / 2 * padded;
    for (long d = 0; d < padded; ++d) pair[d] = 0;
    if (present(r)) {
      const unsigned short* even = stored_row(rows, b, h, first + r);
      for (long d = 0; d < width; ++d) pair[d] = even[d];
    }
    if (present(r + 1)) {
      const unsigned short* odd = stored_row(rows, b, h, first + r + 1);
      for (long d = 0; d < width; ++d) pair[d] |= static_cast<unsigned>(odd[d]) << 16;
    }
  }
}

// --- products -------------------------------------------------------------------------------------------------------------------------

/// Rows of a tile of queries, [query_tile,width]; for narrow products also as bfloat16, and, for the backward, turned: [width,query_tile].
template <class scalar> struct Operand {
  scalar* rows;
  unsigned short *narrow, *turned;
  scalar* turning;
};

template <class scalar> Operand<scalar> room_for_operand(const Softmax<scalar>& a, long width, bool backward, Room<scalar>& room) {
  const auto take = [&](bool wanted) { return wanted ? room.template take_as<unsigned short>(query_tile * width) : nullptr; };
  const bool turned = narrow(a) && backward;
  return {.rows = room.take(query_tile * width),
          .narrow = take(narrow(a)),
          .turned = take(turned),
          .turning = room.take(turned ? query_tile * width : 0)};
}

/// Once its rows are there.
template <class scalar> void fill(const Operand<scalar>& x, long height, long width) {
  if constexpr (sizeof(scalar) == sizeof(float)) {
    if (!x.narrow) return;
    for (long i = height * width; i < query_tile * width; ++i) x.rows[i] = 0;
    narrow_exact(x.rows, query_tile * width, x.narrow);
    if (!x.turned) return;
    turn_rows(x.rows, width, query_tile, width, x.turning, query_tile);
    narrow_exact(x.turning, query_tile * width, x.turned);
  }
}

/// s [height,padded] = x [height,depth] times the packed tiles of the run, transposed: what matters of it.
template <class scalar> void product_across(const Softmax<scalar>& a, const Run& run, long height, long depth, const Operand<scalar>& x,
                                            const scalar* tiles, scalar* s) {
  const long padded = round_up<scalar>(depth);
  if constexpr (sizeof(scalar) == sizeof(float)) {
    if (a.multiply) {
      for (long t = 0; t < run.padded / key_tile; ++t) {
        a.multiply(query_tile, key_tile, padded, padded, key_tile, run_keys, false, x.narrow, tiles + t * padded / 2 * key_tile, s + t * key_tile);
      }
      return;
    }
  }
  product_across(run, height, depth, Left<scalar>{x.rows, padded, 1}, tiles, s);
}

/// sums [height,width] += p [height,padded] times rows [padded,width]: what matters of it. `room`: 2 * narrow_room narrow numbers.
template <class scalar> void product_along(const Softmax<scalar>& a, const Run& run, long height, long width, const scalar* p, const scalar* rows,
                                           scalar* sums, unsigned short* room) {
  if constexpr (sizeof(scalar) == sizeof(float)) {
    if (a.multiply) {
      const unsigned all = (1u << run.padded / chunk_keys) - 1;
      for (long r = 0; r < height; ++r) {
        const scalar* row = p + r * run_keys;
        unsigned short* to = room + r * run_keys;
        for_each_segment(chunks_of(run, r), [&](long begin, long end) { narrow_row(row + begin, end - begin, to + begin); });
        for_each_segment(~chunks_of(run, r) & all, [&](long begin, long end) {
          for (long c = begin; c < end; ++c) to[c] = to[narrow_room + c] = 0;
        });
      }
      for (long part = 0; part < 2; ++part) {
        a.multiply(query_tile, width, run.padded, run_keys, width, width, true, room + part * narrow_room, rows, sums);
      }
      return;
    }
  }
  product_along(run, height, width, p, rows, sums);
}

/// sums [padded,width] += p^T [padded,height] times x [height,width], p being 0 where it does not matter. Narrow sums are turned, tile by
/// tile: [width,key_tile].
template <class scalar> void product_down(const Softmax<scalar>& a, const Run& run, long height, long width, const scalar* p,
                                          const Operand<scalar>& x, scalar* sums, unsigned short* room) {
  if constexpr (sizeof(scalar) == sizeof(float)) {
    if (a.multiply) {
      narrow_pairs(p, height, run.padded, room);
      for (long t = 0; t < run.padded / key_tile; ++t) {
        for (long part = 0; part < 2; ++part) {
          a.multiply(width, key_tile, query_tile, query_tile, run_keys, key_tile, true, x.turned, room + part * narrow_room + 2 * t * key_tile,
                     sums + t * key_tile * width);
        }
      }
      return;
    }
  }
  product_down(run, height, width, p, x.rows, sums);
}

}  // namespace
}  // namespace foveate::kernels::CPU_CAPABILITY
