// A chunk of keys and the queries beside it: what the linear engine loads, and the products of the two.
#pragma once
#include "kernels/ahead.h"
#include "kernels/copy.h"
#include "kernels/linear.h"
#include "kernels/linear_rows.h"
#include "kernels/room.h"

#include <math.h>

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

/// Keys [first, first + height) of one key head, and the queries that stand at the same places.
struct Place {
  long b, hk, first, height;  // height 0: queries before or behind all keys
  long query, queries, row;   // queries [query, query + queries), of which the first stands at row `row` of the chunk
  bool fades = false;         // whether decay changes anything here
};

/// The chunk that begins at key `first`, which may lie behind all keys.
template <class scalar> Place place_of(const Linear<scalar>& a, long b, long hk, long first) {
  Place p{.b = b, .hk = hk, .first = first, .height = clamped(a.M - first, 0, chunk), .query = 0, .queries = 0, .row = 0};
  const long from = clamped(first - a.offset, 0, a.N), to = clamped(first + chunk - a.offset, 0, a.N);
  p.query = from;
  p.queries = to - from;
  p.row = from + a.offset - first;
  return p;
}

/// How many chunks hold a key or a query at or behind the first key.
template <class scalar> long chunks_of(const Linear<scalar>& a) { return tiles_of(most(a.M, a.N + a.offset), chunk); }
/// Queries before the first key.
template <class scalar> long early_of(const Linear<scalar>& a) { return clamped(-a.offset, 0, a.N); }

/// What one task works in; V stands for the columns of T: those of S, and in the backward behind them that of z, which the delta rule does
/// without.
template <class scalar> struct Desk {
  long columns, deep, wide;      // V; F and Dv rounded up to what products compute
  long deep_row, wide_row;       // how far rows of F and of V are apart
  scalar *T, *T_across;          // [F,wide_row], [V,deep_row]; in the backward z stands in T_across alone
  scalar *q, *k, *k_across;      // [C,deep_row], [C,deep_row], [F,C]
  scalar *v, *v_across;          // [C,wide_row], [V,C]
  scalar* n;                     // [C,wide_row]
  scalar *p, *d_p, *weight;      // [C,C]
  scalar *d_q, *d_k, *d_v;       // [C,deep_row], [C,deep_row], [C,wide_row]
  scalar *fade, *before, *left;  // [C]: g_r, c_r, l_r
  scalar *z, *z_before, *along;  // [F], [F], [M + 1]
  // The delta rule.
  scalar* strength;                // [C]: beta, 0 where hidden
  scalar *lack, *less;             // [C,wide]: what a value lacks; minus what is written, or minus what flows back to values
  scalar *kept_sums, *kept_lacks;  // of each chunk: T_across before it, lack
  mutable Ahead ahead;             // what is asked for changes no result

  Desk(const Linear<scalar>& a, Room<scalar>& room, bool backward)
      : columns(a.Dv + (backward && !a.beta ? 1 : 0)),
        deep(round_up<scalar>(a.F)),
        wide(round_up<scalar>(a.Dv)),
        deep_row(apart<scalar>(deep)),
        wide_row(round_up<scalar>(columns)) {
    const auto take = [&](bool needed, long count) { return room.take(needed ? count : 0); };
    T = room.take(a.F * wide_row);
    T_across = take(backward, columns * deep_row);
    q = room.take(chunk * deep_row);
    k = room.take(chunk * deep_row);
    k_across = room.take(a.F * chunk);
    v = room.take(chunk * wide_row);
    v_across = take(backward, columns * chunk);
    n = room.take(chunk * wide_row);
    p = room.take(chunk * chunk);
    d_p = take(backward, chunk * chunk);
    weight = take(a.log_decay != nullptr, chunk * chunk);
    d_q = take(backward, chunk * deep_row);
    d_k = take(backward, chunk * deep_row);
    d_v = take(backward, chunk * wide_row);
    fade = room.take(chunk);
    before = room.take(chunk);
    left = room.take(chunk);
    z = take(!a.beta, deep);
    z_before = take(backward, deep);
    along = take(backward && a.d_log_decay != nullptr, a.M + 1);
    const bool delta = a.beta != nullptr;
    strength = take(delta, chunk);
    lack = take(delta, chunk * wide);
    less = take(delta, chunk * wide);
    kept_sums = take(delta && backward, tiles_of(a.M, chunk) * a.Dv * deep_row);
    kept_lacks = take(delta && backward, tiles_of(a.M, chunk) * chunk * wide);
  }
};

/// T [F,row] from S and z, or zero.
template <class scalar> void load_sums(const Linear<scalar>& a, const scalar* S, const scalar* z, long head, long row, scalar* T) {
  for (long f = 0; f < a.F; ++f) {
    for (long d = 0; d < row; ++d) T[f * row + d] = 0;
    for (long d = 0; S && d < a.Dv; ++d) T[f * row + d] = S[(head * a.F + f) * a.Dv + d];
    if (z) T[f * row + a.Dv] = z[head * a.F + f];
  }
}

template <class scalar> void store_sums(const Linear<scalar>& a, const scalar* T, long head, long row, scalar* S) {
  for (long f = 0; f < a.F; ++f) {
    for (long d = 0; d < a.Dv; ++d) S[(head * a.F + f) * a.Dv + d] = T[f * row + d];
  }
}

/// The first `columns` rows of T_across, from T.
template <class scalar> void turn_sums(const Linear<scalar>& a, const Desk<scalar>& desk, long columns) {
  turn_sums(desk.T, desk.wide_row, a.F, columns, desk.T_across, desk.deep, desk.deep_row);
}

/// A product, while the next chunk is on its way.
template <bool add, class scalar> void multiply(const Desk<scalar>& desk, long height, long width, long depth, Left<scalar> x, Right<scalar> y,
                                                scalar* to, long row) {
  gemm<add>(desk.ahead, height, width, depth, x, y, to, row);
}

/// The keys and values of a chunk, a 1 behind each value where T has a column for it, zeros where hidden; and what decay leaves, if it takes
/// anything: running maxima seldom change. Gives c_C.
template <class scalar> scalar load_keys(const Linear<scalar>& a, Place& at, const Desk<scalar>& desk) {
  copy_rows(a.k, at.b, at.hk, at.first, at.height, a.F, scalar{1}, desk.k, desk.deep_row);
  copy_rows(a.v, at.b, at.hk, at.first, at.height, a.Dv, scalar{1}, desk.v, desk.wide_row);
  for (long r = 0; r < chunk; ++r) {
    const bool seen = r < at.height && (!a.key_mask || a.key_mask[at.b * a.M + at.first + r]);
    for (long f = 0; !seen && f < desk.deep; ++f) desk.k[r * desk.deep_row + f] = 0;
    for (long d = 0; !seen && d < desk.wide_row; ++d) desk.v[r * desk.wide_row + d] = 0;
    if (a.beta) desk.strength[r] = seen ? a.beta[(at.b * a.Hk + at.hk) * a.M + at.first + r] : 0;
    if (seen && desk.columns > a.Dv) desk.v[r * desk.wide_row + a.Dv] = 1;
  }
  turn_rows(desk.k, desk.deep_row, chunk, a.F, desk.k_across, chunk);
  if (!a.log_decay) return 1;
  scalar all = 1;
  const scalar* log_decay = a.log_decay + (at.b * a.Hk + at.hk) * a.M + at.first;
  for (long r = 0; r < at.height; ++r) at.fades = at.fades || log_decay[r] != 0;
  if (!at.fades) return 1;
  scalar* row = desk.weight;  // w of row r: that of the row before times g_r, and 1 for key r itself
  for (long r = 0; r < chunk; ++r, row += chunk) {
    const bool counts = r < at.height && (!a.key_mask || a.key_mask[at.b * a.M + at.first + r]);
    const scalar g = counts ? static_cast<scalar>(::exp(static_cast<double>(log_decay[r]))) : 1;
    for (long c = 0; c < chunk; ++c) row[c] = c < r ? row[c - chunk] * g : c == r ? 1 : 0;
    desk.fade[r] = g;
    desk.before[r] = all = all * g;
  }
  for (long c = 0; c < chunk; ++c) desk.left[c] = desk.weight[(chunk - 1) * chunk + c];
  return all;
}

/// The sum of `count` numbers, a multiple of two vectors.
template <class scalar> scalar sum_of(const scalar* x, long count) {
  Vec<scalar> some[2] = {};
  for (long i = 0; i < count; i += 2 * lanes<scalar>) {
    some[0] += vec(x + i);
    some[1] += vec(x + i + lanes<scalar>);
  }
  return total<scalar>(some[0] + some[1]);
}

/// x_r *= factor_r for rows of `width`, `row` apart.
template <class scalar> void scale_rows(scalar* x, const scalar* factor, long rows, long width, long row) {
  for (long r = 0; r < rows; ++r) {
    for (long d = 0; d < width; ++d) x[r * row + d] *= factor[r];
  }
}

/// s[r,c] = x_r . y_c where key c stands at or before query r, times what decay leaves of it; 0 elsewhere.
template <class scalar> void meet(const Place& at, const Desk<scalar>& desk, const scalar* x, long x_row, long depth, const scalar* y_across,
                                  scalar* s) {
  constexpr long panel = 2 * lanes<scalar>;
  for (long r0 = 0; r0 < at.queries; r0 += register_rows) {
    const long height = least(register_rows, at.queries - r0), seen = least(chunk, tiles_of(at.row + r0 + height, panel) * panel);
    multiply<false>(desk, height, seen, depth, Left<scalar>{x + r0 * x_row, x_row, 1}, Right<scalar>{y_across, chunk}, s + r0 * chunk, chunk);
    for (long r = r0; r < r0 + height; ++r) {
      scalar* row = s + r * chunk;
      const scalar* weight = desk.weight + (at.row + r) * chunk;
      for (long c = 0; at.fades && c < seen; ++c) row[c] *= weight[c];
      for (long c = at.row + r + 1; c < chunk; ++c) row[c] = 0;
    }
  }
}

/// sums [queries,width] += s y, with y [C,width], what of it is not zero; rows of both are `row` apart.
template <class scalar> void along_keys(const Place& at, const Desk<scalar>& desk, const scalar* s, const scalar* y, long row, long width,
                                        scalar* sums) {
  for (long d = 0; d < width; d += 2 * lanes<scalar>) {
    for (long r = 0; r < at.queries; r += register_rows) {
      const long height = least(register_rows, at.queries - r);
      multiply<true>(desk, height, 2 * lanes<scalar>, least(chunk, at.row + r + height), Left<scalar>{s + r * chunk, chunk, 1},
                     Right<scalar>{y + d, row}, sums + r * row + d, row);
    }
  }
}

/// sums [C,width] += s^T x, with x [queries,width], what of it is not zero; rows of both are `row` apart.
template <class scalar> void along_queries(const Place& at, const Desk<scalar>& desk, const scalar* s, const scalar* x, long row, long width,
                                           scalar* sums) {
  for (long c = 0; c < chunk; c += register_rows) {
    const long skipped = clamped(c - at.row, 0, at.queries);  // queries before the first of these keys
    multiply<true>(desk, least(register_rows, chunk - c), width, at.queries - skipped, Left<scalar>{s + skipped * chunk + c, 1, chunk},
                   Right<scalar>{x + skipped * row, row}, sums + c * row, row);
  }
}

}  // namespace
}  // namespace foveate::kernels::CPU_CAPABILITY
