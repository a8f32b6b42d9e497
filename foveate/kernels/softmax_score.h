// From products to scores, and the gradients of all that is added on the way: biases, tables by distance, masks, the softcap, dropout.
#pragma once
#include "kernels/copy.h"
#include "kernels/hash.h"
#include "kernels/softmax_narrow.h"

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

// --- what the distance of a key is worth ------------------------------------------------------------------------------------------

/// Distances that a tile of queries meets in a run: column c of row r of the scores is at distance number c + height - 1 - r, and
/// number n is entry n + `first` of a table, or its nearest end.
struct Distances {
  long first, count;
};
template <class scalar> Distances distances_of(const Softmax<scalar>& a, const QueryTile& q, const Run& run) {
  return {run.first - (q.first + q.height - 1 + a.offset) + a.origin, run.width + q.height - 1};
}

/// Calls f(n, entry, count) for stretches of distances: those before the table one by one, those inside it together, those behind it.
template <class F> inline void for_each_stretch(const Distances& d, long length, const F& f) {
  const long inside = clamped(-d.first, 0, d.count), behind = clamped(length - d.first, inside, d.count);
  for (long n = 0; n < inside; ++n) f(n, 0, 1);
  if (behind > inside) f(inside, inside + d.first, behind - inside);
  for (long n = behind; n < d.count; ++n) f(n, length - 1, 1);
}

template <class scalar> const scalar* table_of(const ByDistance<scalar>& t, const scalar* data, long h, long size) {
  return data + (t.heads > 1 ? h : 0) * size;
}

/// The part of a table [width,length] that a run needs, [width,distance_row].
template <class scalar> void take_across(const ByDistance<scalar>& t, long h, long width, const Distances& d, scalar* to) {
  const scalar* table = table_of(t, t.across, h, width * t.length);
  for (long k = 0; k < width; ++k) {
    for_each_stretch(d, t.length, [&](long n, long entry, long count) {
      for (long c = 0; c < count; ++c) to[k * distance_row + n + c] = table[k * t.length + entry + c];
    });
    for (long n = d.count; n < distance_row; ++n) to[k * distance_row + n] = 0;
  }
}

/// The same as rows, [count,width].
template <class scalar> void take_along(const ByDistance<scalar>& t, long h, long width, const Distances& d, scalar* to) {
  const scalar* table = table_of(t, t.along, h, width * t.length);
  for_each_stretch(d, t.length, [&](long n, long entry, long count) {
    for (long c = 0; c < count * width; ++c) to[n * width + c] = table[entry * width + c];
  });
}

/// s[r,c] += x_r . table[distance of c]: one product of x [height,depth] with the rows of all distances, read along diagonals.
template <class scalar> void add_by_distance(const Softmax<scalar>& a, const QueryTile& q, const Run& run, const ByDistance<scalar>& t, long depth,
                                             const scalar* x, long x_row, scalar* s, scalar* room) {
  scalar* rows = room;                          // [depth,distance_row]
  scalar* worth = rows + depth * distance_row;  // [height,distance_row]
  take_across(t, q.h, depth, distances_of(a, q, run), rows);
  constexpr long panel = 2 * lanes<scalar>;
  const long last = q.height - 1;
  for (long n = 0; n < run.padded + query_tile; n += panel) {  // all queries meet a panel of the rows while it is near
    for (long r = 0; r < q.height; r += register_rows) {
      const long height = least(register_rows, q.height - r);
      const unsigned chunks = chunks_of(run, r);
      if (chunks == 0) continue;
      const long begin = __builtin_ctz(chunks) * chunk_keys + last - (r + height - 1);  // distances of the group's first and last keys
      const long end = (32 - __builtin_clz(chunks)) * chunk_keys + last - r;
      if (n + panel <= begin || n >= end) continue;
      gemm<false>(height, panel, depth, Left<scalar>{x + r * x_row, x_row, 1}, Right<scalar>{rows + n, distance_row}, worth + r * distance_row + n,
                  distance_row);
    }
  }
  for (long r = 0; r < q.height; ++r) {
    const scalar* diagonal = worth + r * distance_row + last - r;
    for_each_segment(chunks_of(run, r), [&](long begin, long end) {
      for (long c = begin; c < end; ++c) s[r * run_keys + c] += diagonal[c];
    });
  }
}

/// p[r,c] at distances: [height,distance_row], zero where no key is.
template <class scalar> void spread_by_distance(const QueryTile& q, const Run& run, const scalar* p, scalar* by_distance) {
  for (long r = 0; r < q.height; ++r) {
    scalar* row = by_distance + r * distance_row;
    for (long n = 0; n < distance_row; ++n) row[n] = 0;
    for_each_segment(chunks_of(run, r), [&](long begin, long end) {
      for (long c = begin; c < end; ++c) row[c + q.height - 1 - r] = p[r * run_keys + c];
    });
  }
}

/// sums_r += sum_c p[r,c] table[distance of c].
template <class scalar> void sum_by_distance(const Softmax<scalar>& a, const QueryTile& q, const Run& run, const ByDistance<scalar>& t, long width,
                                             const scalar* by_distance, scalar* sums, scalar* room) {
  const Distances d = distances_of(a, q, run);
  take_along(t, q.h, width, d, room);
  gemm<true>(q.height, width, d.count, Left<scalar>{by_distance, distance_row, 1}, Right<scalar>{room, width}, sums, width);
}

/// d_table[distance of c] += sum_r p[r,c] x_r, with x [height,width].
template <class scalar> void add_to_table(const Softmax<scalar>& a, const QueryTile& q, const Run& run, const ByDistance<scalar>& t, long width,
                                          const scalar* by_distance, const scalar* x, scalar* d_table, scalar* room) {
  const Distances d = distances_of(a, q, run);
  gemm<false>(d.count, width, q.height, Left<scalar>{by_distance, 1, distance_row}, Right<scalar>{x, width}, room, width);
  for_each_stretch(d, t.length, [&](long n, long entry, long count) {
    for (long c = 0; c < count * width; ++c) d_table[entry * width + c] += room[n * width + c];
  });
}

/// Numbers that the functions above need room for.
inline long room_by_distance(long width) { return width * distance_row + query_tile * distance_row; }

// --- scores -----------------------------------------------------------------------------------------------------------------------

template <class T, class scalar> T* row_of(const Plane<T>& p, const QueryTile& q, long i, long j) {
  return p.data + q.b * p.batch + q.h * p.head + i * p.row + j * p.column;
}

/// Whether scores are products and nothing else.
template <class scalar> bool plain(const Softmax<scalar>& a, const Run& run) {
  return run.whole && run.width == run.padded && !run.cut && !run.masked && !a.softcap && !a.bias.data && !a.mask.data && !a.key_mask && !a.k.index &&
         !a.slopes && !a.table.length;
}

/// tanh(x) by way of exp, for |x| of any size.
template <class scalar> Vec<scalar> tanh_of(Vec<scalar> x) {
  const Vec<scalar> zero{}, size = x < zero ? -x : x, e = exp(size * splat(scalar{-2}));
  const Vec<scalar> t = (splat(scalar{1}) - e) / (splat(scalar{1}) + e);
  return x < zero ? -t : t;
}

/// Products of row r of the tile in columns [begin, end) become softcap tanh(product / softcap); `slope`, where given, the derivative.
template <class scalar> void cap(const Softmax<scalar>& a, long begin, long end, scalar* row, scalar* slope) {
  for (long c = begin; c < end; c += lanes<scalar>) {
    const Vec<scalar> t = tanh_of<scalar>(vec(row + c) / splat(a.softcap));
    vec(row + c) = t * splat(a.softcap);
    if (slope) vec(slope + c) = splat(scalar{1}) - t * t;
  }
}

/// Row r of the tile in columns [begin, end) of the run: from products to scores, -infinity where hidden and beyond the run.
template <class scalar> void finish_row(const Softmax<scalar>& a, const QueryTile& q, const Run& run, long r, long begin, long end, scalar* row) {
  const scalar hidden = -static_cast<scalar>(infinity);
  const long i = q.first + r, here = i + a.offset - run.first, stop = least(end, run.width);
  if (a.bias.data) {
    const scalar* bias = a.bias.data + q.b * a.bias.batch + q.h * a.bias.head + i * a.bias.row + run.first * a.bias.column;
    if (a.bias.column == 1) {
      for (long c = begin; c < stop; ++c) row[c] += bias[c];
    } else {
      for (long c = begin; c < stop; ++c) row[c] += bias[c * a.bias.column];
    }
  }
  if (a.slopes) {
    const scalar slope = a.slopes[q.h];
    for (long c = begin; c < stop; ++c) row[c] -= slope * static_cast<scalar>(c > here ? c - here : here - c);
  }
  if (a.table.length) {
    const scalar* table = table_of(a.table, a.table.along, q.h, a.table.length);
    for_each_stretch({begin - here + a.origin, stop - begin}, a.table.length, [&](long n, long entry, long count) {
      for (long c = 0; c < count; ++c) row[begin + n + c] += table[entry + c];
    });
  }
  if (a.mask.data) {
    const unsigned char* mask = a.mask.data + q.b * a.mask.batch + q.h * a.mask.head + i * a.mask.row + run.first * a.mask.column;
    for (long c = begin; c < stop; ++c) row[c] = mask[c * a.mask.column] ? row[c] : hidden;
  }
  if (a.k.index) {
    for (long c = begin; c < stop; ++c) {
      const long key = a.k.place(q.b, q.hk, run.first + c);
      row[c] = key >= 0 && (!a.key_mask || a.key_mask[q.b * a.key_rows + key]) ? row[c] : hidden;
    }
  } else if (a.key_mask) {
    const unsigned char* mask = a.key_mask + q.b * a.key_rows + run.first;
    for (long c = begin; c < stop; ++c) row[c] = mask[c] ? row[c] : hidden;
  }
  for (long t = begin / key_tile; run.masked && t * key_tile < end; ++t) {
    if (run.masks[t] < 0) continue;
    const unsigned char* mask = a.masks + (run.masks[t] * a.mask_height + r) * key_tile - t * key_tile;
    for (long c = most(begin, t * key_tile); c < least(end, (t + 1) * key_tile); ++c) row[c] = mask[c] ? row[c] : hidden;
  }
  if (run.cut) {
    if (a.window) {
      for (long c = begin; c < clamped(here - a.window + 1, begin, end); ++c) row[c] = hidden;
    }
    if (a.causal) {
      for (long c = clamped(here + 1, begin, end); c < end; ++c) row[c] = hidden;
    }
  }
  for (long c = most(begin, run.width); c < end; ++c) row[c] = hidden;
}

/// s[r,c] for queries of the tile (already scaled) and keys of the run (packed), in the chunks that matter. `slope`, where
/// given, takes the derivatives of the softcap; `row_query` [height,deep] is what scores a.rows.
template <class scalar> void score(const Softmax<scalar>& a, const QueryTile& q, const Run& run, const scalar* keys_across,
                                   const Operand<scalar>& queries, const scalar* row_query, scalar* s, scalar* slope, scalar* room) {
  product_across(a, run, q.height, a.D, queries, keys_across, s);
  if (narrow(a) && a.rest != 1) {
    for (long r = 0; r < q.height; ++r) {
      for_each_segment(chunks_of(run, r), [&](long begin, long end) {
        for (long c = begin; c < end; c += lanes<scalar>) vec(s + r * run_keys + c) *= splat(a.rest);
      });
    }
  }
  if (a.softcap) {
    for (long r = 0; r < q.height; ++r) {
      for_each_segment(chunks_of(run, r),
                       [&](long begin, long end) { cap(a, begin, end, s + r * run_keys, slope ? slope + r * run_keys : nullptr); });
    }
  }
  if (a.rows.length) add_by_distance(a, q, run, a.rows, a.D, row_query, round_up<scalar>(a.D), s, room);
  if (plain(a, run)) return;
  for (long r = 0; r < q.height; ++r) {
    for_each_segment(chunks_of(run, r), [&](long begin, long end) { finish_row(a, q, run, r, begin, end, s + r * run_keys); });
  }
}

// --- gradients of what was added -----------------------------------------------------------------------------------------------------

/// ds[r,c] of row r, to the gradients of the bias, of slopes and of the table.
template <class scalar> void add_gradients(const Softmax<scalar>& a, const QueryTile& q, const Run& run, long part, long r, long begin, long end,
                                           const scalar* ds) {
  const long i = q.first + r, here = i + a.offset - run.first, stop = least(end, run.width), part_head = (part * a.B + q.b) * a.H + q.h;
  if (a.d_bias.data) {
    const auto& d = a.d_bias;
    scalar* to = d.data + part * a.d_bias_part + q.b * d.batch + q.h * d.head + i * d.row + run.first * d.column;
    for (long c = begin; c < stop; ++c) to[c * d.column] += ds[c];
  }
  if (a.d_slopes) {
    scalar sum = 0;
    for (long c = begin; c < stop; ++c) sum -= ds[c] * static_cast<scalar>(c > here ? c - here : here - c);
    a.d_slopes[part_head] += sum;
  }
  if (a.d_table) {
    scalar* table = a.d_table + part_head * a.table.length;
    for_each_stretch({begin - here + a.origin, stop - begin}, a.table.length, [&](long n, long entry, long count) {
      for (long c = 0; c < count; ++c) table[entry + c] += ds[begin + n + c];
    });
  }
}

// --- dropout ---------------------------------------------------------------------------------------------------------------------------

template <class scalar> bool drops(const Softmax<scalar>& a) { return a.keep.data || a.drawn; }

/// What row r's probabilities in columns [begin, end) are multiplied with: 0 where dropped. ops/attention_formula.cpp does the same.
template <class scalar> void kept(const Softmax<scalar>& a, const QueryTile& q, const Run& run, long r, long begin, long end, scalar* factor) {
  const long i = q.first + r;
  if (a.keep.data) {
    const unsigned char* keep = a.keep.data + q.b * a.keep.batch + q.h * a.keep.head + i * a.keep.row + run.first * a.keep.column;
    for (long c = begin; c < end; ++c) factor[c] = c < run.width && keep[c * a.keep.column] ? a.kept_share : 0;
    return;
  }
  const unsigned row = mixed(static_cast<unsigned>((q.b * a.H + q.h) * a.N + i) + a.seed) + static_cast<unsigned>(run.first) * 0x9e3779b1u;
  for (long c = begin; c < end; ++c) factor[c] = mixed(row + static_cast<unsigned>(c) * 0x9e3779b1u) >= a.threshold ? a.kept_share : 0;
}

}  // namespace
}  // namespace foveate::kernels::CPU_CAPABILITY
