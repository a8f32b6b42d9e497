// The linear engine. A sequence is walked by chunks of C keys and the queries beside them. Sums of all that came before are carried as one
// matrix T [F,Dv+1]: S = sum k v^T, and z = sum k as if each value had a 1 behind it. In a chunk
//   n = c q T + (w * tril(q k^T)) v,   out = n[:Dv] / d(n[Dv]);   T <- c_C T + (l k)^T v
// where c_r is what decay leaves at row r of what came before the chunk, l_j what is left at its end of key j, w_rj = c_r / c_j at row r of
// key j; all 1 without decay. The backward walks forwards for d_q, which needs T, and backwards for d_k and d_v, which need the sums of
// all that comes after; nothing is kept but one matrix.
#include "kernels/linear.h"

#include "kernels/capability.h"
#include "kernels/copy.h"
#include "kernels/gemm.h"
#include "kernels/room.h"

#include <math.h>

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

static_assert(chunk == turned_rows);

/// Keys [first, first + height) of one key head, and the queries that stand at the same places.
struct Place {
  long b, hk, first, height;  // height 0: queries before or behind all keys
  long query, queries, row;   // queries [query, query + queries), of which the first stands at row `row` of the chunk
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

/// What one task works in.
template <class scalar> struct Desk {
  long deep, wide;
  scalar *T, *T_across;          // [F,wide], [Dv+1,deep]
  scalar *q, *k, *k_across;      // [C,deep], [C,deep], [F,C]
  scalar *v, *v_across;          // [C,wide], [Dv+1,C]
  scalar* n;                     // [C,wide]
  scalar *p, *d_p, *weight;      // [C,C]
  scalar *d_q, *d_k, *d_v;       // [C,deep], [C,deep], [C,wide]
  scalar *fade, *before, *left;  // [C]: g_r, c_r, l_r
  scalar *z, *along;             // [F], [M + 1]

  Desk(const Linear<scalar>& a, Room<scalar>& room, bool backward) : deep(round_up<scalar>(a.F)), wide(round_up<scalar>(a.Dv + 1)) {
    const auto take = [&](bool needed, long count) { return room.take(needed ? count : 0); };
    T = room.take(a.F * wide);
    T_across = take(backward, (a.Dv + 1) * deep);
    q = room.take(chunk * deep);
    k = room.take(chunk * deep);
    k_across = room.take(a.F * chunk);
    v = room.take(chunk * wide);
    v_across = take(backward, (a.Dv + 1) * chunk);
    n = room.take(chunk * wide);
    p = room.take(chunk * chunk);
    d_p = take(backward, chunk * chunk);
    weight = take(a.log_decay != nullptr, chunk * chunk);
    d_q = take(backward, chunk * deep);
    d_k = take(backward, chunk * deep);
    d_v = take(backward, chunk * wide);
    fade = room.take(chunk);
    before = room.take(chunk);
    left = room.take(chunk);
    z = take(backward, deep);
    along = take(backward && a.log_decay != nullptr, a.M + 1);
  }
};

/// T [F,wide] from S and z, or zero.
template <class scalar> void load_sums(const Linear<scalar>& a, const scalar* S, const scalar* z, long head, long wide, scalar* T) {
  for (long f = 0; f < a.F; ++f) {
    for (long d = 0; d < wide; ++d) T[f * wide + d] = 0;
    for (long d = 0; S && d < a.Dv; ++d) T[f * wide + d] = S[(head * a.F + f) * a.Dv + d];
    if (z) T[f * wide + a.Dv] = z[head * a.F + f];
  }
}

template <class scalar> void store_sums(const Linear<scalar>& a, const scalar* T, long head, long wide, scalar* S, scalar* z) {
  for (long f = 0; f < a.F; ++f) {
    for (long d = 0; d < a.Dv; ++d) S[(head * a.F + f) * a.Dv + d] = T[f * wide + d];
    z[head * a.F + f] = T[f * wide + a.Dv];
  }
}

/// The keys and values of a chunk, a 1 behind each value, zeros where hidden; and what decay leaves. Gives c_C.
template <class scalar> scalar load_keys(const Linear<scalar>& a, const Place& at, const Desk<scalar>& desk, bool backward) {
  copy_rows(a.k, at.b, at.hk, at.first, at.height, a.F, scalar{1}, desk.k, desk.deep);
  copy_rows(a.v, at.b, at.hk, at.first, at.height, a.Dv, scalar{1}, desk.v, desk.wide);
  for (long r = 0; r < chunk; ++r) {
    const bool seen = r < at.height && (!a.key_mask || a.key_mask[at.b * a.M + at.first + r]);
    for (long f = 0; !seen && f < desk.deep; ++f) desk.k[r * desk.deep + f] = 0;
    for (long d = 0; !seen && d < desk.wide; ++d) desk.v[r * desk.wide + d] = 0;
    if (seen) desk.v[r * desk.wide + a.Dv] = 1;
  }
  const Kind kind = sizeof(scalar) == sizeof(double) ? Kind::float64 : Kind::float32;
  copy_across(Rows{desk.k, kind, 0, 0, desk.deep, nullptr, 0, 0}, 0, 0, 0, chunk, a.F, desk.k_across);
  if (backward) copy_across(Rows{desk.v, kind, 0, 0, desk.wide, nullptr, 0, 0}, 0, 0, 0, chunk, a.Dv + 1, desk.v_across);
  if (!a.log_decay) return 1;
  scalar all = 1;
  const scalar* log_decay = a.log_decay + (at.b * a.Hk + at.hk) * a.M + at.first;
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

/// x_r *= factor_r for rows of `width`.
template <class scalar> void scale_rows(scalar* x, const scalar* factor, long rows, long width) {
  for (long r = 0; r < rows; ++r) {
    for (long d = 0; d < width; ++d) x[r * width + d] *= factor[r];
  }
}

/// s[r,c] = x_r . y_c where key c stands at or before query r, times what decay leaves of it; 0 elsewhere.
template <class scalar> void meet(const Linear<scalar>& a, const Place& at, const Desk<scalar>& desk, const scalar* x, long x_row, long depth,
                                  const scalar* y_across, scalar* s) {
  constexpr long panel = 2 * lanes<scalar>;
  for (long r0 = 0; r0 < at.queries; r0 += register_rows) {
    const long height = least(register_rows, at.queries - r0), seen = least(chunk, tiles_of(at.row + r0 + height, panel) * panel);
    gemm<false>(height, seen, depth, Left<scalar>{x + r0 * x_row, x_row, 1}, Right<scalar>{y_across, chunk}, s + r0 * chunk, chunk);
    for (long r = r0; r < r0 + height; ++r) {
      scalar* row = s + r * chunk;
      const scalar* weight = desk.weight + (at.row + r) * chunk;
      for (long c = 0; a.log_decay && c < seen; ++c) row[c] *= weight[c];
      for (long c = at.row + r + 1; c < chunk; ++c) row[c] = 0;
    }
  }
}

/// sums [queries,width] += s y, with y [C,width], what of it is not zero.
template <class scalar> void along_keys(const Place& at, const scalar* s, const scalar* y, long width, scalar* sums) {
  for (long d = 0; d < width; d += 2 * lanes<scalar>) {
    for (long r = 0; r < at.queries; r += register_rows) {
      const long height = least(register_rows, at.queries - r);
      gemm<true>(height, 2 * lanes<scalar>, least(chunk, at.row + r + height), Left<scalar>{s + r * chunk, chunk, 1}, Right<scalar>{y + d, width},
                 sums + r * width + d, width);
    }
  }
}

/// sums [C,width] += s^T x, with x [queries,width], what of it is not zero.
template <class scalar> void along_queries(const Place& at, const scalar* s, const scalar* x, long width, scalar* sums) {
  for (long c = 0; c < chunk; c += register_rows) {
    const long skipped = clamped(c - at.row, 0, at.queries);  // queries before the first of these keys
    gemm<true>(least(register_rows, chunk - c), width, at.queries - skipped, Left<scalar>{s + skipped * chunk + c, 1, chunk},
               Right<scalar>{x + skipped * width, width}, sums + c * width, width);
  }
}

/// d(z) and its derivative. Where d would be 0 it is 1.
template <class scalar> struct Divided {
  scalar value, slope;
};
template <class scalar> Divided<scalar> divide(const Linear<scalar>& a, scalar z) {
  Divided<scalar> d{z, 1};
  const scalar size = z < 0 ? -z : z;
  switch (a.divisor) {
    case Divisor::none: return {1, 0};
    case Divisor::add: d.value = z + a.eps; break;
    case Divisor::clamp: d = z < a.eps ? Divided<scalar>{a.eps, 0} : d; break;
    case Divisor::clamp_abs: d = size < a.eps ? Divided<scalar>{a.eps, 0} : Divided<scalar>{size, z < 0 ? scalar{-1} : scalar{1}}; break;
    case Divisor::guard: d.value = size <= a.eps ? z + 2 * a.eps : z; break;
  }
  return d.value == 0 ? Divided<scalar>{1, 0} : d;
}

/// Calls f(first row in [B,H,N]) for each query head of the key head, its queries in desk.q.
template <class scalar, class F> void for_each_head(const Linear<scalar>& a, const Place& at, const Desk<scalar>& desk, const F& f) {
  const long group = a.H / a.Hk;
  for (long h = at.hk * group; at.queries && h < (at.hk + 1) * group; ++h) {
    copy_rows(a.q, at.b, h, at.query, at.queries, a.F, scalar{1}, desk.q, desk.deep);
    f((at.b * a.H + h) * a.N + at.query);
  }
}

/// out of the queries of a place.
template <class scalar> void answer(const Linear<scalar>& a, const Place& at, const Desk<scalar>& desk) {
  for_each_head(a, at, desk, [&](long first) {
    gemm<false>(at.queries, desk.wide, a.F, Left<scalar>{desk.q, desk.deep, 1}, Right<scalar>{desk.T, desk.wide}, desk.n, desk.wide);
    if (at.height > 0) {
      if (a.log_decay) scale_rows(desk.n, desk.before + at.row, at.queries, desk.wide);
      meet(a, at, desk, desk.q, desk.deep, a.F, desk.k_across, desk.p);
      along_keys(at, desk.p, desk.v, desk.wide, desk.n);
    }
    for (long r = 0; r < at.queries; ++r) {
      const scalar share = 1 / divide(a, desk.n[r * desk.wide + a.Dv]).value;
      for (long d = 0; d < a.Dv; ++d) a.out[(first + r) * a.Dv + d] = share * desk.n[r * desk.wide + d];
    }
  });
}

/// Calls f(place) for queries before all keys, 64 at a time.
template <class scalar, class F> void for_each_early(const Linear<scalar>& a, long b, long hk, const F& f) {
  for (long i = 0; i < early_of(a); i += chunk) {
    f(Place{.b = b, .hk = hk, .first = 0, .height = 0, .query = i, .queries = least(chunk, early_of(a) - i), .row = 0});
  }
}

/// Tasks [begin, end) of B * Hk.
template <class scalar> void forward(const Linear<scalar>& a, long begin, long end, scalar* scratch) {
  Room<scalar> room(scratch);
  const Desk<scalar> desk(a, room, false);
  for (long head = begin; head < end; ++head) {
    const long b = head / a.Hk, hk = head % a.Hk;
    load_sums(a, a.S, a.z, head, desk.wide, desk.T);
    for_each_early(a, b, hk, [&](const Place& at) { answer(a, at, desk); });
    for (long c = 0; c < chunks_of(a); ++c) {
      const Place at = place_of(a, b, hk, c * chunk);
      const scalar all = at.height > 0 ? load_keys(a, at, desk, false) : 1;
      answer(a, at, desk);
      if (at.height == 0) continue;
      if (a.log_decay) {
        for (long i = 0; i < a.F * desk.wide; ++i) desk.T[i] *= all;
        scale_rows(desk.k, desk.left, chunk, desk.deep);
      }
      gemm<true>(a.F, desk.wide, at.height, Left<scalar>{desk.k, 1, desk.deep}, Right<scalar>{desk.v, desk.wide}, desk.T, desk.wide);
    }
    store_sums(a, desk.T, head, desk.wide, a.S_after, a.z_after);
  }
}

/// Forwards: d_sums of every query, and d_q. T_across holds the sums before the chunk, desk.z the running sum of keys.
template <class scalar> void queries_backward(const Linear<scalar>& a, const Place& at, const Desk<scalar>& desk) {
  const long deep = desk.deep, wide = desk.wide;
  // z grows by one key a row, for all query heads at once.
  const long group = a.H / a.Hk, h0 = at.hk * group;
  const auto products = [&](long r) {  // of query r of the chunk with z as it stands
    for (long g = 0; g < group; ++g) {
      const long row = (at.b * a.H + h0 + g) * a.N + at.query + r;
      scalar z = 0;
      with_row<scalar>(a.q, at.b, h0 + g, at.query + r, [&](const auto* from, auto read) {
        for (long f = 0; f < a.F; ++f) z += static_cast<scalar>(read(from[f])) * desk.z[f];
      });
      const Divided<scalar> d = divide(a, z);
      scalar* to = a.d_sums + row * wide;
      scalar slope = 0;
      with_row<scalar>(a.d_out, at.b, h0 + g, at.query + r, [&](const auto* from, auto read) {
        for (long e = 0; e < a.Dv; ++e) {
          const scalar d_out = static_cast<scalar>(read(from[e]));
          to[e] = d_out / d.value;
          slope -= d_out * a.out[row * a.Dv + e];
        }
      });
      to[a.Dv] = slope * d.slope / d.value;
      for (long e = a.Dv + 1; e < wide; ++e) to[e] = 0;
    }
  };
  for (long r = 0; at.height > 0 && r < chunk; ++r) {
    const scalar g = a.log_decay ? desk.fade[r] : 1;
    for (long f = 0; f < a.F; ++f) desk.z[f] = g * desk.z[f] + desk.k[r * deep + f];
    if (r >= at.row && r < at.row + at.queries) products(r - at.row);
  }
  for (long r = 0; at.height == 0 && r < at.queries; ++r) products(r);

  for_each_head(a, at, desk, [&](long first) {
    const scalar* d_n = a.d_sums + first * wide;
    gemm<false>(at.queries, deep, a.Dv + 1, Left<scalar>{d_n, wide, 1}, Right<scalar>{desk.T_across, deep}, desk.d_q, deep);
    if (at.height > 0) {
      if (a.log_decay) scale_rows(desk.d_q, desk.before + at.row, at.queries, deep);
      meet(a, at, desk, d_n, wide, a.Dv + 1, desk.v_across, desk.d_p);
      along_keys(at, desk.d_p, desk.k, deep, desk.d_q);
    }
    for (long r = 0; r < at.queries; ++r) {
      scalar with_q = 0;
      for (long f = 0; f < a.F; ++f) {
        a.d_q[(first + r) * a.F + f] = desk.d_q[r * deep + f];
        with_q += desk.d_q[r * deep + f] * desk.q[r * deep + f];
      }
      const long place = at.query + r + a.offset;
      if (a.log_decay && place >= 0) desk.along[least(place, a.M)] += with_q;  // what a query takes fades with each decay up to its place
    }
  });
}

/// Backwards: d_k and d_v of a chunk. T holds the gradient of the sums after it, T_across the same across.
template <class scalar> void keys_backward(const Linear<scalar>& a, const Place& at, const Desk<scalar>& desk) {
  const long deep = desk.deep, wide = desk.wide, head = at.b * a.Hk + at.hk;
  gemm<false>(chunk, deep, a.Dv + 1, Left<scalar>{desk.v, wide, 1}, Right<scalar>{desk.T_across, deep}, desk.d_k, deep);
  gemm<false>(chunk, wide, a.F, Left<scalar>{desk.k, deep, 1}, Right<scalar>{desk.T, wide}, desk.d_v, wide);
  if (a.log_decay) {
    scale_rows(desk.d_k, desk.left, chunk, deep);
    scale_rows(desk.d_v, desk.left, chunk, wide);
  }
  for_each_head(a, at, desk, [&](long first) {
    const scalar* d_n = a.d_sums + first * wide;
    meet(a, at, desk, desk.q, deep, a.F, desk.k_across, desk.p);
    meet(a, at, desk, d_n, wide, a.Dv + 1, desk.v_across, desk.d_p);
    along_queries(at, desk.d_p, desk.q, deep, desk.d_k);
    along_queries(at, desk.p, d_n, wide, desk.d_v);
  });
  for (long r = 0; r < at.height; ++r) {
    const bool seen = !a.key_mask || a.key_mask[at.b * a.M + at.first + r];
    const long row = head * a.M + at.first + r;
    scalar with_k = 0;
    for (long f = 0; f < a.F; ++f) {
      a.d_k[row * a.F + f] = seen ? desk.d_k[r * deep + f] : 0;
      with_k += desk.d_k[r * deep + f] * desk.k[r * deep + f];
    }
    for (long d = 0; d < a.Dv; ++d) a.d_v[row * a.Dv + d] = seen ? desk.d_v[r * wide + d] : 0;
    if (a.log_decay) desk.along[at.first + r] -= with_k;
  }
}

/// The queries of a chunk, to the gradient of the sums before it: T <- c_C T + (c q)^T d_sums.
template <class scalar> void sums_backward(const Linear<scalar>& a, const Place& at, const Desk<scalar>& desk, scalar all) {
  const long deep = desk.deep, wide = desk.wide;
  const bool fades = at.height > 0 && a.log_decay;
  if (fades) {
    for (long i = 0; i < a.F * wide; ++i) desk.T[i] *= all;
    for (long i = 0; i < (a.Dv + 1) * deep; ++i) desk.T_across[i] *= all;
  }
  for_each_head(a, at, desk, [&](long first) {
    const scalar* d_n = a.d_sums + first * wide;
    if (fades) scale_rows(desk.q, desk.before + at.row, at.queries, deep);
    gemm<true>(a.F, wide, at.queries, Left<scalar>{desk.q, 1, deep}, Right<scalar>{d_n, wide}, desk.T, wide);
    gemm<true>(a.Dv + 1, deep, at.queries, Left<scalar>{d_n, 1, wide}, Right<scalar>{desk.q, deep}, desk.T_across, deep);
  });
}

template <class scalar> void turn_sums(const Linear<scalar>& a, const Desk<scalar>& desk) {
  for (long d = 0; d <= a.Dv; ++d) {
    for (long f = 0; f < desk.deep; ++f) desk.T_across[d * desk.deep + f] = f < a.F ? desk.T[f * desk.wide + d] : 0;
  }
}

/// Tasks [begin, end) of B * Hk.
template <class scalar> void backward(const Linear<scalar>& a, long begin, long end, scalar* scratch) {
  Room<scalar> room(scratch);
  const Desk<scalar> desk(a, room, true);
  for (long head = begin; head < end; ++head) {
    const long b = head / a.Hk, hk = head % a.Hk;
    for (long j = 0; a.log_decay && j <= a.M; ++j) desk.along[j] = 0;
    load_sums(a, a.S, a.z, head, desk.wide, desk.T);
    turn_sums(a, desk);
    for (long f = 0; f < desk.deep; ++f) desk.z[f] = a.z && f < a.F ? a.z[head * a.F + f] : 0;
    for_each_early(a, b, hk, [&](const Place& at) { queries_backward(a, at, desk); });
    for (long c = 0; c < chunks_of(a); ++c) {
      const Place at = place_of(a, b, hk, c * chunk);
      const scalar all = at.height > 0 ? load_keys(a, at, desk, true) : 1;
      queries_backward(a, at, desk);
      if (at.height == 0) continue;
      if (a.log_decay) {
        for (long i = 0; i < (a.Dv + 1) * desk.deep; ++i) desk.T_across[i] *= all;
        scale_rows(desk.k, desk.left, chunk, desk.deep);
      }
      gemm<true>(a.Dv + 1, desk.deep, at.height, Left<scalar>{desk.v, 1, desk.wide}, Right<scalar>{desk.k, desk.deep}, desk.T_across, desk.deep);
    }

    load_sums(a, a.d_S_after, a.d_z_after, head, desk.wide, desk.T);
    turn_sums(a, desk);
    if (a.log_decay) {  // the sums after all keys have faded, too
      for (long f = 0; f < a.F; ++f) {
        for (long d = 0; d < a.Dv; ++d) desk.along[a.M] += desk.T[f * desk.wide + d] * a.S_after[(head * a.F + f) * a.Dv + d];
        desk.along[a.M] += desk.T[f * desk.wide + a.Dv] * a.z_after[head * a.F + f];
      }
    }
    for (long c = chunks_of(a) - 1; c >= 0; --c) {
      const Place at = place_of(a, b, hk, c * chunk);
      const scalar all = at.height > 0 ? load_keys(a, at, desk, true) : 1;
      if (at.height > 0) keys_backward(a, at, desk);
      sums_backward(a, at, desk, all);
    }
    for_each_early(a, b, hk, [&](const Place& at) { sums_backward(a, at, desk, scalar{1}); });
    store_sums(a, desk.T, head, desk.wide, a.d_S, a.d_z);
    if (!a.d_log_decay) continue;
    scalar behind = desk.along[a.M];
    for (long j = a.M - 1; j >= 0; --j) {
      behind += desk.along[j];
      const bool counts = !a.key_mask || a.key_mask[b * a.M + j];
      a.d_log_decay[head * a.M + j] = counts ? behind : 0;
    }
  }
}

template <class scalar, bool backward> long numbers_for(const Linear<scalar>& a) {
  Room<scalar> room(nullptr);
  const Desk<scalar> desk(a, room, backward);
  return room.taken;
}

template <class scalar> constexpr LinearEngine<scalar> engine{.forward = forward<scalar>,
                                                              .backward = backward<scalar>,
                                                              .forward_room = numbers_for<scalar, false>,
                                                              .backward_room = numbers_for<scalar, true>,
                                                              .vector = 2 * lanes<scalar>};

}  // namespace

const LinearEngine<float> linear_float = engine<float>;
const LinearEngine<double> linear_double = engine<double>;

}  // namespace foveate::kernels::CPU_CAPABILITY
