// Few queries before many keys, as in decoding: nothing is packed, keys and values are read where they lie, once for all the query heads
// that share them. The work is bound by memory.
#pragma once
#include "kernels/softmax_online.h"
#include "kernels/softmax_score.h"

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

/// Rows [first, first + count) of (b, h) as numbers to compute with: where they lie, or converted.
template <class scalar> Right<scalar> rows_at(const Rows& rows, long b, long h, long first, long count, long width, long padded, scalar* room) {
  const bool as_they_lie = (rows.kind == Kind::float32 || rows.kind == Kind::float64) && width == padded && !rows.index;
  if (as_they_lie) return {static_cast<const scalar*>(rows.data) + b * rows.batch + h * rows.head + first * rows.row, rows.row};
  copy_rows(rows, b, h, first, count, width, scalar{1}, room, padded);
  return {room, padded};
}

/// s[r,c] = x_r . k_c for `rows` rows of x [rows,deep] and `count` keys of `deep` numbers; the values, needed next, are fetched on the way.
template <int rows, class scalar> void dots(const scalar* x, Right<scalar> keys, long count, long deep, scalar* s, const Right<char>& values) {
  constexpr long W = lanes<scalar>, line = 64;
  for (long c = 0; c < count; ++c) {
    const scalar* key = keys.data + c * keys.row;
    for (long byte = 0; byte < values.row; byte += line) __builtin_prefetch(values.data + c * values.row + byte);
    Vec<scalar> sum[rows]{};
    for (long d = 0; d < deep; d += W) {
      const Vec<scalar> k = vec(key + d);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) sum[r] += vec(x + r * deep + d) * k;
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) s[r * run_keys + c] = total<scalar>(sum[r]);
  }
}

/// Where the values of keys from `first` on lie, if close together: with the bytes of a row.
template <class scalar> Right<char> values_ahead(const Softmax<scalar>& a, const QueryTile& q, long first) {
  const long bytes = number_size(a.v.kind);
  const char* data = static_cast<const char*>(a.v.data) + bytes * (q.b * a.v.batch + q.hk * a.v.head + first * a.v.row);
  return {data, a.v.row <= 2 * a.Dv && !a.v.index ? bytes * a.v.row : 0};
}

template <class scalar> struct FewRoom {
  scalar *queries, *s, *sums, *tops, *totals, *factor, *keys;
  FewRoom(const Softmax<scalar>& a, Room<scalar>& room) {
    const long deep = round_up<scalar>(a.D), wide = round_up<scalar>(a.Dv);
    queries = room.take(few_rows * deep);
    s = room.take(few_rows * run_keys);
    sums = room.take(few_rows * wide);
    tops = room.take(few_rows);
    totals = room.take(few_rows);
    factor = room.take(run_keys);
    keys = room.take(run_keys * most(deep, wide));
  }
};

/// The query heads [h0, h1), which share the key head of `q` and meet the same runs: `N` rows each.
template <class scalar> void few_of(const Softmax<scalar>& a, QueryTile q, long h0, long h1, long split, scalar* scratch) {
  constexpr long W = lanes<scalar>;
  const long deep = round_up<scalar>(a.D), wide = round_up<scalar>(a.Dv), height = (h1 - h0) * a.N;
  Room<scalar> room(scratch);
  const FewRoom<scalar> at(a, room);
  for (long h = h0; h < h1; ++h) copy_rows(a.q, q.b, h, 0, a.N, a.D, a.scale, at.queries + (h - h0) * a.N * deep, deep);
  start_rows(height, wide, at.sums, at.tops, at.totals);
  for_each_run(a, q, [&](const Run& run) {
    unsigned chunks = 0;  // that matter to any query
    for (const unsigned short bits : run.chunks) chunks |= bits;
    for_each_segment(chunks, [&](long begin, long padded_end) {
      const long count = least(padded_end, run.width) - begin, first = run.first + begin;
      const Right<scalar> keys = rows_at(a.k, q.b, q.hk, first, count, a.D, deep, at.keys);
      scalar* s = at.s + begin;
      Right<char> ahead = values_ahead(a, q, first);
      long r = 0;
      for (; r + 4 <= height; r += 4, ahead.row = 0) dots<4>(at.queries + r * deep, keys, count, deep, s + r * run_keys, ahead);
      for (; r < height; ++r, ahead.row = 0) dots<1>(at.queries + r * deep, keys, count, deep, s + r * run_keys, ahead);
    });
    for (long x = 0; x < height; ++x) {
      scalar* row = at.s + x * run_keys;
      QueryTile own = q;
      own.h = h0 + x / a.N;
      for_each_segment(chunks, [&](long begin, long end) {
        for (long c = most(begin, run.width); c < end; ++c) row[c] = 0;
        if (a.softcap) cap(a, begin, end, row, static_cast<scalar*>(nullptr));
        finish_row(a, own, run, x % a.N, begin, end, row);
      });
      const scalar fade = meet(chunks, row, at.tops[x], at.totals[x]);
      for (long d = 0; fade != 1 && d < wide; d += W) vec(at.sums + x * wide + d) *= splat(fade);
      if (!drops(a)) continue;
      for_each_segment(chunks, [&](long begin, long end) {
        kept(a, own, run, x % a.N, begin, end, at.factor);
        for (long c = begin; c < end; ++c) row[c] *= at.factor[c];
      });
    }
    for_each_segment(chunks, [&](long begin, long end) {
      const long count = least(end, run.width) - begin;
      const Right<scalar> values = rows_at(a.v, q.b, q.hk, run.first + begin, count, a.Dv, wide, at.keys);
      gemm<true>(height, wide, count, Left<scalar>{at.s + begin, run_keys, 1}, values, at.sums, wide);
    });
  });
  for (long x = 0; x < height; ++x) finish(a, split, q.b, h0 + x / a.N, x % a.N, at.sums + x * wide, at.tops[x], at.totals[x]);
}

/// Tasks [begin, end) of B * Hk * splits.
template <class scalar> void few(const Softmax<scalar>& a, long begin, long end, scalar* scratch) {
  const long group = a.H / a.Hk;
  for (long task = begin; task < end; ++task) {
    const long split = task % a.splits, head = task / a.splits, b = head / a.Hk, hk = head % a.Hk;
    const long together = a.pattern_heads > 1 ? 1 : few_rows / a.N;  // heads with patterns of their own meet runs of their own
    for (long h = hk * group; h < (hk + 1) * group; h += together) {
      few_of(a, share_of(a, query_tile_at(a, b, h, 0), split), h, least(h + together, (hk + 1) * group), split, scratch);
    }
  }
}

}  // namespace
}  // namespace foveate::kernels::CPU_CAPABILITY
