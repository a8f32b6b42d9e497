// The linear engine. A sequence is walked by chunks of C keys and the queries beside them. Sums of all that came before are carried, S = sum
// k v^T and z = sum k. In a chunk
//   p = w * tril(q k^T),   out = (c q S + p v) / d(c q.z + sum_j p_j);   S <- c_C S + (l k)^T v,   z <- c_C z + sum_j l_j k_j
// where c_r is what decay leaves at row r of what came before the chunk, l_j what is left at its end of key j, w_rj = c_r / c_j at row r of
// key j; all 1 without decay. The backward has S and z in one matrix, T_across [Dv+1,F], as if each value had a 1 behind it. It walks forwards for
// d_q, which needs it, and backwards for d_k and d_v, which need the sums of all that comes after; what is kept between the two is 1 / d
// and the gradient of q.z of each query. With the delta rule, linear_delta.h first puts what is written in place of v.
#include "kernels/linear.h"

#include "kernels/capability.h"
#include "kernels/linear_chunk.h"
#include "kernels/linear_delta.h"

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

static_assert(chunk == turned_rows);

/// Calls f(head, first row in [B,H,N]) for each query head of the key head, its queries in desk.q.
template <class scalar, class F> void for_each_head(const Linear<scalar>& a, const Place& at, const Desk<scalar>& desk, const F& f) {
  const long group = a.H / a.Hk;
  for (long h = at.hk * group; at.queries && h < (at.hk + 1) * group; ++h) {
    copy_rows(a.q, at.b, h, at.query, at.queries, a.F, scalar{1}, desk.q, desk.deep_row);
    f(h, (at.b * a.H + h) * a.N + at.query);
  }
}

/// out of the queries of a place.
template <class scalar> void answer(const Linear<scalar>& a, const Place& at, const Desk<scalar>& desk) {
  for_each_head(a, at, desk, [&](long, long first) {
    const long wide = desk.wide, row = desk.wide_row;
    multiply<false>(desk, at.queries, wide, a.F, Left<scalar>{desk.q, desk.deep_row, 1}, Right<scalar>{desk.T, row}, desk.n, row);
    if (at.height > 0) {
      if (at.fades) scale_rows(desk.n, desk.before + at.row, at.queries, wide, row);
      meet(at, desk, desk.q, desk.deep_row, a.F, desk.k_across, desk.p);
      along_keys(at, desk, desk.p, desk.v, row, wide, desk.n);
    }
    for (long r = 0; r < at.queries; ++r) {
      scalar share = 1;
      if (a.divisor != Divisor::none) {
        scalar z = dot(desk.q + r * desk.deep_row, desk.z, desk.deep);
        if (at.fades) z *= desk.before[at.row + r];
        if (at.height > 0) z += sum_of(desk.p + r * chunk, chunk);
        share /= divide(a, z).value;
      }
      store_row(desk.n + r * row, share, a.Dv, a.out + (first + r) * a.Dv);
    }
  });
}

/// Calls f(place) for queries before all keys, 64 at a time.
template <class scalar, class F> void for_each_early(const Linear<scalar>& a, long b, long hk, const F& f) {
  for (long i = 0; i < early_of(a); i += chunk) {
    f(Place{.b = b, .hk = hk, .first = 0, .height = 0, .query = i, .queries = least(chunk, early_of(a) - i), .row = 0});
  }
}

/// Which walk it is: the only one of the forward; of the backward, the one forwards, and the one back.
enum class Walk { only, first, back };

/// What the walk reads and writes of the chunk that begins at key `first`, and of the queries beside it, is asked for while this one is
/// computed.
template <Walk walk, class scalar> void look_ahead(const Linear<scalar>& a, const Place& at, long first, const Desk<scalar>& desk) {
  const long h = at.hk * (a.H / a.Hk), head = at.b * a.H + h, key_head = at.b * a.Hk + at.hk;  // h is the first of heads that share keys
  const long query = first - a.offset;
  desk.ahead.begin(3 * tiles_in<scalar>(chunk, desk.deep));
  const auto add_keys = [&](const scalar* rows, long width) { desk.ahead.add(rows + key_head * a.M * width, first, chunk, a.M, width); };
  const auto add_queries = [&](const scalar* rows, long width) { desk.ahead.add(rows + head * a.N * width, query, chunk, a.N, width); };
  desk.ahead.add(a.k, at.b, at.hk, first, chunk, a.M, a.F);
  desk.ahead.add(a.v, at.b, at.hk, first, chunk, a.M, a.Dv);
  desk.ahead.add(a.q, at.b, h, query, chunk, a.N, a.F);
  if (walk != Walk::only) desk.ahead.add(a.d_out, at.b, h, query, chunk, a.N, a.Dv);
  if (walk != Walk::back && !(walk == Walk::first && a.beta)) add_queries(a.out, a.Dv);
  if (walk == Walk::first) add_queries(a.d_q, a.F);
  if (walk == Walk::back) {
    add_keys(a.d_k, a.F);
    add_keys(a.d_v, a.Dv);
  }
}

/// The keys of a chunk, as the memory takes them. Gives c_C.
template <Walk walk, class scalar> scalar take_keys(const Linear<scalar>& a, Place& at, long c, const Desk<scalar>& desk) {
  if (at.height == 0) return 1;
  const scalar all = load_keys(a, at, desk);
  if (a.beta && walk != Walk::back) correct(a, at, desk);
  if (a.beta && walk == Walk::first) keep(a, c, desk);
  if (a.beta && walk == Walk::back) recall(a, c, desk);
  if (walk != Walk::only) turn_rows(desk.v, desk.wide_row, chunk, desk.columns, desk.v_across, chunk);
  return all;
}

/// T += k^T v
template <class scalar> void add_keys(const Linear<scalar>& a, const Place& at, const Desk<scalar>& desk) {
  multiply<true>(desk, a.F, desk.wide, at.height, Left<scalar>{desk.k, 1, desk.deep_row}, Right<scalar>{desk.v, desk.wide_row}, desk.T,
                 desk.wide_row);
}

/// z after a chunk, whose keys are scaled by what is left of them.
template <class scalar> void count_keys(const Linear<scalar>& a, const Place& at, const Desk<scalar>& desk, scalar all) {
  if (a.beta) return;
  for (long f = 0; f < desk.deep; f += lanes<scalar>) {
    Vec<scalar> sum = all * vec(desk.z + f);
    for (long r = 0; r < at.height; ++r) sum += vec(desk.k + r * desk.deep_row + f);
    vec(desk.z + f) = sum;
  }
}

/// Tasks [begin, end) of B * Hk.
template <class scalar> void forward(const Linear<scalar>& a, long begin, long end, scalar* scratch) {
  Room<scalar> room(scratch);
  const Desk<scalar> desk(a, room, false);
  for (long head = begin; head < end; ++head) {
    const long b = head / a.Hk, hk = head % a.Hk;
    load_sums<scalar>(a, a.S, nullptr, head, desk.wide_row, desk.T);
    for (long f = 0; !a.beta && f < desk.deep; ++f) desk.z[f] = a.z && f < a.F ? a.z[head * a.F + f] : 0;
    for_each_early(a, b, hk, [&](const Place& at) { answer(a, at, desk); });
    for (long c = 0; c < chunks_of(a); ++c) {
      Place at = place_of(a, b, hk, c * chunk);
      look_ahead<Walk::only>(a, at, at.first + chunk, desk);
      const scalar all = take_keys<Walk::only>(a, at, c, desk);
      answer(a, at, desk);
      if (at.height == 0) continue;
      if (at.fades) {
        for (long i = 0; i < a.F * desk.wide_row; ++i) desk.T[i] *= all;
        scale_rows(desk.k, desk.left, chunk, desk.deep, desk.deep_row);
      }
      add_keys(a, at, desk);
      count_keys(a, at, desk, all);
    }
    store_sums(a, desk.T, head, desk.wide_row, a.S_after);
    for (long f = 0; !a.beta && f < a.F; ++f) a.z_after[head * a.F + f] = desk.z[f];
  }
}

/// z after the keys of a chunk; calls f(row) after each.
template <class scalar, class F> void sum_keys(const Place& at, const Desk<scalar>& desk, const F& f) {
  for (long r = 0; r < chunk; ++r) {
    const scalar g = at.fades ? desk.fade[r] : 1;
    for (long d = 0; d < desk.deep; d += lanes<scalar>) vec(desk.z + d) = g * vec(desk.z + d) + vec(desk.k + r * desk.deep_row + d);
    f(r);
  }
}

/// Gradients of q S and of q . z, in place of that of out in desk.n, of the queries in desk.q, the second behind the first; desk.z is the sum
/// of the keys before the chunk. What the walk back needs to find them again is kept.
template <class scalar> void quotients_backward(const Linear<scalar>& a, const Place& at, const Desk<scalar>& desk, long first) {
  const auto divided = [&](long r) {
    scalar* to = desk.n + r * desk.wide_row;
    const Divided<scalar> d = divide(a, dot(desk.q + r * desk.deep_row, desk.z, desk.deep));
    const scalar slope = dot(to, a.out + (first + r) * a.Dv, a.Dv), share = 1 / d.value;
    for (long e = 0; e < a.Dv; ++e) to[e] *= share;
    to[a.Dv] = -slope * d.slope * share;
    a.shares[first + r] = share;
    a.d_z_of[first + r] = to[a.Dv];
  };
  if (at.height == 0) {
    for (long r = 0; r < at.queries; ++r) divided(r);
    return;
  }
  sum_keys(at, desk, [&](long r) {
    if (r >= at.row && r < at.row + at.queries) divided(r - at.row);
  });
}

/// Forwards: d_q. T_across holds the sums before the chunk.
template <class scalar> void queries_backward(const Linear<scalar>& a, const Place& at, const Desk<scalar>& desk) {
  const long deep = desk.deep, row = desk.deep_row, wide_row = desk.wide_row;
  for (long f = 0; f < deep; ++f) desk.z_before[f] = desk.z[f];
  if (!a.beta && at.height > 0 && at.queries == 0) sum_keys(at, desk, [](long) {});
  for_each_head(a, at, desk, [&](long h, long first) {
    copy_rows(a.d_out, at.b, h, at.query, at.queries, a.Dv, scalar{1}, desk.n, wide_row);
    for (long f = 0; f < deep; ++f) desk.z[f] = desk.z_before[f];
    if (!a.beta) quotients_backward(a, at, desk, first);
    multiply<false>(desk, at.queries, deep, desk.columns, Left<scalar>{desk.n, wide_row, 1}, Right<scalar>{desk.T_across, row}, desk.d_q, row);
    if (at.height > 0) {
      if (at.fades) scale_rows(desk.d_q, desk.before + at.row, at.queries, deep, row);
      meet(at, desk, desk.n, wide_row, desk.columns, desk.v_across, desk.d_p);
      along_keys(at, desk, desk.d_p, desk.k, row, deep, desk.d_q);
    }
    for (long r = 0; r < at.queries; ++r) {
      store_row(desk.d_q + r * row, scalar{1}, a.F, a.d_q + (first + r) * a.F);
      const long place = at.query + r + a.offset;
      if (!a.d_log_decay || place < 0) continue;
      desk.along[least(place, a.M)] += dot(desk.d_q + r * row, desk.q + r * row, deep);  // it fades with each decay up to its place
    }
  });
}

/// Backwards, d_k and d_v from what stands behind the chunk. T holds the gradient of the sums after it, T_across the same across.
template <class scalar> void read_sums_backward(const Linear<scalar>& a, const Place& at, const Desk<scalar>& desk) {
  const long deep = desk.deep, row = desk.deep_row, wide = desk.wide, wide_row = desk.wide_row;
  multiply<false>(desk, chunk, deep, desk.columns, Left<scalar>{desk.v, wide_row, 1}, Right<scalar>{desk.T_across, row}, desk.d_k, row);
  multiply<false>(desk, chunk, wide, a.F, Left<scalar>{desk.k, row, 1}, Right<scalar>{desk.T, wide_row}, desk.d_v, wide_row);
  if (!at.fades) return;
  scale_rows(desk.d_k, desk.left, chunk, deep, row);
  scale_rows(desk.d_v, desk.left, chunk, wide, wide_row);
}

/// d_k and d_v from the queries of the chunk, and the queries to the gradient of the sums before it: T <- c_C T + (c q)^T [d_n, d_z].
template <class scalar> void meet_queries_backward(const Linear<scalar>& a, const Place& at, const Desk<scalar>& desk, scalar all) {
  const long deep = desk.deep, row = desk.deep_row, wide = desk.wide, wide_row = desk.wide_row;
  scalar* d_z = desk.T_across + a.Dv * row;
  for (long i = 0; at.fades && i < a.F * wide_row; ++i) desk.T[i] *= all;
  for (long f = 0; at.fades && !a.beta && f < deep; ++f) d_z[f] *= all;
  for_each_head(a, at, desk, [&](long h, long first) {
    copy_rows(a.d_out, at.b, h, at.query, at.queries, a.Dv, scalar{1}, desk.n, wide_row);
    for (long r = 0; !a.beta && r < at.queries; ++r) {
      for (long d = 0; d < a.Dv; ++d) desk.n[r * wide_row + d] *= a.shares[first + r];
      desk.n[r * wide_row + a.Dv] = a.d_z_of[first + r];
    }
    if (at.height > 0) {
      meet(at, desk, desk.q, row, a.F, desk.k_across, desk.p);
      meet(at, desk, desk.n, wide_row, desk.columns, desk.v_across, desk.d_p);
      along_queries(at, desk, desk.d_p, desk.q, row, deep, desk.d_k);
      along_queries(at, desk, desk.p, desk.n, wide_row, wide, desk.d_v);
    }
    if (at.fades) scale_rows(desk.q, desk.before + at.row, at.queries, deep, row);
    multiply<true>(desk, a.F, wide, at.queries, Left<scalar>{desk.q, 1, row}, Right<scalar>{desk.n, wide_row}, desk.T, wide_row);
    for (long r = 0; !a.beta && r < at.queries; ++r) {
      const scalar d = desk.n[r * wide_row + a.Dv];
      for (long f = 0; f < deep; f += lanes<scalar>) vec(d_z + f) += d * vec(desk.q + r * row + f);
    }
  });
}

/// d_k and d_v of a chunk.
template <class scalar> void store_keys(const Linear<scalar>& a, const Place& at, const Desk<scalar>& desk) {
  for (long r = 0; r < at.height; ++r) {
    const bool seen = !a.key_mask || a.key_mask[at.b * a.M + at.first + r];
    const long to = (at.b * a.Hk + at.hk) * a.M + at.first + r;
    if (seen) {
      store_row(desk.d_k + r * desk.deep_row, scalar{1}, a.F, a.d_k + to * a.F);
      store_row(desk.d_v + r * desk.wide_row, scalar{1}, a.Dv, a.d_v + to * a.Dv);
    } else {
      clear_row(a.F, a.d_k + to * a.F);
      clear_row(a.Dv, a.d_v + to * a.Dv);
    }
    if (a.d_log_decay) desk.along[at.first + r] -= dot(desk.d_k + r * desk.deep_row, desk.k + r * desk.deep_row, desk.deep);
  }
}

/// One step back: a chunk, or queries without keys.
template <class scalar> void keys_backward(const Linear<scalar>& a, const Place& at, long c, const Desk<scalar>& desk, scalar all) {
  if (at.height > 0) read_sums_backward(a, at, desk);
  meet_queries_backward(a, at, desk, all);
  if (at.height > 0) {
    if (a.beta) {
      correct_backward(a, at, c, desk);
      // keys, too, have read the memory
      multiply<true>(desk, a.F, desk.wide, at.height, Left<scalar>{desk.k, 1, desk.deep_row}, Right<scalar>{desk.less, desk.wide}, desk.T,
                     desk.wide_row);
    }
    store_keys(a, at, desk);
  }
  turn_sums(a, desk, a.Dv);
}

/// Tasks [begin, end) of B * Hk.
template <class scalar> void backward(const Linear<scalar>& a, long begin, long end, scalar* scratch) {
  Room<scalar> room(scratch);
  const Desk<scalar> desk(a, room, true);
  for (long head = begin; head < end; ++head) {
    const long b = head / a.Hk, hk = head % a.Hk;
    for (long j = 0; a.d_log_decay && j <= a.M; ++j) desk.along[j] = 0;
    load_sums(a, a.S, a.z, head, desk.wide_row, desk.T);
    turn_sums(a, desk, desk.columns);
    for (long f = 0; f < desk.deep; ++f) desk.z[f] = a.z && f < a.F ? a.z[head * a.F + f] : 0;
    for_each_early(a, b, hk, [&](const Place& at) { queries_backward(a, at, desk); });
    for (long c = 0; c < chunks_of(a); ++c) {
      Place at = place_of(a, b, hk, c * chunk);
      look_ahead<Walk::first>(a, at, at.first + chunk, desk);
      const scalar all = take_keys<Walk::first>(a, at, c, desk);
      queries_backward(a, at, desk);
      if (at.height == 0) continue;
      if (at.fades) {
        for (long i = 0; i < desk.columns * desk.deep_row; ++i) desk.T_across[i] *= all;
        scale_rows(desk.k, desk.left, chunk, desk.deep, desk.deep_row);
      }
      if (a.beta) {  // the next chunk is corrected by T
        add_keys(a, at, desk);
        turn_sums(a, desk, a.Dv);
      } else {
        multiply<true>(desk, desk.columns, desk.deep, at.height, Left<scalar>{desk.v, 1, desk.wide_row}, Right<scalar>{desk.k, desk.deep_row},
                       desk.T_across, desk.deep_row);
      }
    }

    load_sums(a, a.d_S_after, a.d_z_after, head, desk.wide_row, desk.T);
    turn_sums(a, desk, desk.columns);
    if (a.d_log_decay) {  // the sums after all keys have faded, too
      for (long f = 0; f < a.F; ++f) {
        for (long d = 0; d < a.Dv; ++d) desk.along[a.M] += desk.T[f * desk.wide_row + d] * a.S_after[(head * a.F + f) * a.Dv + d];
        desk.along[a.M] += desk.T_across[a.Dv * desk.deep_row + f] * a.z_after[head * a.F + f];
      }
    }
    for (long c = chunks_of(a) - 1; c >= 0; --c) {
      Place at = place_of(a, b, hk, c * chunk);
      look_ahead<Walk::back>(a, at, at.first - chunk, desk);
      const scalar all = take_keys<Walk::back>(a, at, c, desk);
      keys_backward(a, at, c, desk, all);
    }
    for_each_early(a, b, hk, [&](const Place& at) { keys_backward(a, at, 0, desk, scalar{1}); });
    store_sums(a, desk.T, head, desk.wide_row, a.d_S);
    for (long f = 0; !a.beta && f < a.F; ++f) a.d_z[head * a.F + f] = desk.T_across[a.Dv * desk.deep_row + f];
    if (!a.d_log_decay) continue;
    scalar behind = desk.along[a.M];
    for (long j = a.M - 1; j >= 0; --j) {
      behind += desk.along[j];
      const bool counts = !a.key_mask || a.key_mask[b * a.M + j];
      a.d_log_decay[head * a.M + j] = counts ? behind : 0;
    }
  }
}

template <class scalar, bool backward> long numbers_for(const Linear<scalar>& a) { return numbers_of<Desk<scalar>, scalar>(a, backward); }

template <class scalar> constexpr LinearEngine<scalar> engine{
    .forward = forward<scalar>, .backward = backward<scalar>, .forward_room = numbers_for<scalar, false>, .backward_room = numbers_for<scalar, true>};

}  // namespace

const LinearEngine<float> linear_float = engine<float>;
const LinearEngine<double> linear_double = engine<double>;

}  // namespace foveate::kernels::CPU_CAPABILITY
