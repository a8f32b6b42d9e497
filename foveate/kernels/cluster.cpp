// Attention inside clusters: rows are fetched by the tokens that stand in line, scores follow rules on tokens.
#include "kernels/cluster.h"

#include "kernels/capability.h"
#include "kernels/softmax_online.h"
#include "kernels/softmax_score.h"

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

constexpr long T = cluster_rows;
constexpr unsigned whole = (1u << T / chunk_keys) - 1;  // all chunks of a row of scores

/// Places of queries of one head that are computed together, [first, first + height) of the line.
struct Queries {
  long b, h, cluster, first, height;
  const long* token;  // [height]
};

/// Places of keys that they meet; `slot` numbers the first among all that the cluster sees.
struct Keys {
  long first, count, slot;
  const long* token;  // [count]
};

template <class scalar> struct Tile {
  scalar *queries, *across, *s, *values, *sums, *tops, *totals;
  long* meetings;  // [2,rounds,T]: of the keys
};

/// What dropout multiplies the probability of place i and slot j with.
template <class scalar> scalar kept(const Cluster<scalar>& a, const Queries& q, long r, long slot) {
  const unsigned row = mixed(static_cast<unsigned>((q.b * a.H + q.h) * a.clusters * a.q_size + q.first + r) + a.seed);
  return mixed(row + static_cast<unsigned>(slot) * 0x9e3779b1u) >= a.threshold ? a.kept_share : 0;
}

inline const long* tokens(const Rows& rows, long b, long h) { return rows.index + b * rows.index_batch + h * rows.index_head; }

/// Calls f for the keys that a cluster sees, T at most at a time.
template <class scalar, class F> void for_each_keys(const Cluster<scalar>& a, const Queries& q, const F& f) {
  const long* line = tokens(a.k, q.b, q.h);
  long slot = 0;
  for (long shift = -a.before; shift <= a.after; ++shift, slot += a.k_size) {
    long c = q.cluster + shift;
    if (a.circular) c = ((c % a.clusters) + a.clusters) % a.clusters;
    else if (c < 0 || c >= a.clusters) continue;
    for (long j = 0; j < a.k_size; j += T) {
      const long first = c * a.k_size + j, count = least(T, a.k_size - j);
      f(Keys{first, count, slot + j, line + first});
    }
  }
}

/// Where the keys stand in each round, side by side.
template <class scalar> void gather_meetings(const Cluster<scalar>& a, const Queries& q, const Keys& k, long* to) {
  for (long r = 0; r < a.rounds; ++r) {
    const long base = ((q.b * a.H + q.h) * a.rounds + r) * a.N;
    for (long c = 0; c < k.count; ++c) {
      const long u = k.token[c] < 0 ? 0 : k.token[c];
      to[r * T + c] = a.here[base + u];
      to[(a.rounds + r) * T + c] = a.behind[base + u];
    }
  }
}

/// From products of query r to scores.
template <class scalar> void rule(const Cluster<scalar>& a, const Queries& q, const Keys& k, long r, const long* meetings, scalar* s) {
  const scalar hidden = -static_cast<scalar>(infinity);
  const long t = q.token[r];
  const bool takes_part = !a.query_mask || a.query_mask[q.b * a.N + t];
  const unsigned char* mask = a.key_mask ? a.key_mask + q.b * a.M : nullptr;
  const long* label = a.label ? a.label + (q.b * a.H + q.h) * a.clusters * a.q_size : nullptr;
  for (long c = 0; c < k.count; ++c) {
    const long u = k.token[c];
    bool seen = u >= 0 && takes_part && (!mask || mask[u]) && (u <= t || u >= a.causal_keys);
    if (a.has_self && u == t) {
      s[c] = a.self_score;
      seen = seen || a.self_seen;
    }
    if (label) seen = seen && label[q.first + r] == label[k.first + c];
    if (!seen) s[c] = hidden;
  }
  if (a.here) {
    const long base = (q.b * a.H + q.h) * a.rounds * a.N + t;
    long counts[T];
    for (long c = 0; c < k.count; ++c) counts[c] = 0;
    for (long round = 0; round < a.rounds; ++round) {
      const long own = a.here[base + round * a.N];
      for (long c = 0; c < k.count; ++c) counts[c] += (meetings[round * T + c] == own) + (meetings[(a.rounds + round) * T + c] == own);
    }
    for (long c = 0; c < k.count; ++c) s[c] -= a.log_meetings[counts[c]];
  }
  for (long c = k.count; c < T; ++c) s[c] = hidden;
}

/// s [height,T]: scores of the queries (scaled) and the keys.
template <class scalar> void score(const Cluster<scalar>& a, const Queries& q, const Keys& k, const Tile<scalar>& at) {
  copy_across(a.k, q.b, q.h, k.first, k.count, a.D, at.across);
  gemm<false>(q.height, T, a.D, Left<scalar>{at.queries, round_up<scalar>(a.D), 1}, Right<scalar>{at.across, T}, at.s, T);
  if (a.here) gather_meetings(a, q, k, at.meetings);
  for (long r = 0; r < q.height; ++r) {
    if (q.token[r] >= 0) rule(a, q, k, r, at.meetings, at.s + r * T);
    else
      for (long c = 0; c < T; ++c) at.s[r * T + c] = -static_cast<scalar>(infinity);
  }
}

template <class scalar> Tile<scalar> tile_in(const Cluster<scalar>& a, Room<scalar>& room) {
  const long deep = round_up<scalar>(a.D), wide = round_up<scalar>(a.Dv);
  Tile<scalar> at{};
  at.queries = room.take(T * deep);
  at.across = room.take(T * most(a.D, a.Dv));
  at.s = room.take(T * T);
  at.values = room.take(T * wide);
  at.sums = room.take(T * wide);
  at.tops = room.take(T);
  at.totals = room.take(T);
  at.meetings = reinterpret_cast<long*>(room.take(a.here ? 2 * a.rounds * T * static_cast<long>(sizeof(long) / sizeof(scalar)) : 0));
  return at;
}

template <class scalar> void attend(const Cluster<scalar>& a, const Queries& q, const Tile<scalar>& at) {
  constexpr long W = lanes<scalar>;
  const long deep = round_up<scalar>(a.D), wide = round_up<scalar>(a.Dv);
  copy_rows(a.q, q.b, q.h, q.first, q.height, a.D, a.scale, at.queries, deep);
  start_rows(q.height, wide, at.sums, at.tops, at.totals);
  for_each_keys(a, q, [&](const Keys& k) {
    score(a, q, k, at);
    for (long r = 0; r < q.height; ++r) {
      const scalar fade = meet(whole, at.s + r * T, at.tops[r], at.totals[r]);
      for (long d = 0; fade != 1 && d < wide; d += W) vec(at.sums + r * wide + d) *= splat(fade);
      for (long c = 0; a.drawn && c < k.count; ++c) at.s[r * T + c] *= kept(a, q, r, k.slot + c);
    }
    copy_rows(a.v, q.b, q.h, k.first, k.count, a.Dv, scalar{1}, at.values, wide);
    gemm<true>(q.height, wide, k.count, Left<scalar>{at.s, T, 1}, Right<scalar>{at.values, wide}, at.sums, wide);
  });
  for (long r = 0; r < q.height; ++r) {
    const long row = (q.b * a.H + q.h) * a.places + q.first + r;
    const scalar sum = at.totals[r];
    const bool seen = q.token[r] >= 0 && (sum > 0 || sum != sum);
    for (long d = 0; d < a.Dv; ++d) a.out[row * a.Dv + d] = seen ? at.sums[r * wide + d] / sum : 0;
    a.lse[row] = seen ? at.tops[r] + static_cast<scalar>(log(static_cast<double>(sum))) : -static_cast<scalar>(infinity);
  }
}

/// Calls f for the tiles of a cluster's queries in which somebody stands.
template <class scalar, class F> void for_each_queries(const Cluster<scalar>& a, long b, long h, long cluster, const F& f) {
  const long* line = tokens(a.q, b, h);
  const long end = least((cluster + 1) * a.q_size, a.places);
  for (long first = cluster * a.q_size; first < end; first += T) {
    const Queries q{b, h, cluster, first, least(T, end - first), line + first};
    bool somebody = false;
    for (long r = 0; r < q.height; ++r) somebody = somebody || q.token[r] >= 0;
    f(q, somebody);
  }
}

/// Tasks: clusters of every (b, h).
template <class scalar> void forward(const Cluster<scalar>& a, long begin, long end, scalar* scratch) {
  Room<scalar> room(scratch);
  const Tile<scalar> at = tile_in(a, room);
  for (long task = begin; task < end; ++task) {
    const long cluster = task % a.clusters, head = task / a.clusters;
    for_each_queries(a, head / a.H, head % a.H, cluster, [&](const Queries& q, bool somebody) {
      if (somebody) {
        attend(a, q, at);
        return;
      }
      const long row = head * a.places + q.first;
      for (long x = 0; x < q.height * a.Dv; ++x) a.out[row * a.Dv + x] = 0;
      for (long r = 0; r < q.height; ++r) a.lse[row + r] = -static_cast<scalar>(infinity);
    });
  }
}

/// Adds rows [height,row] times a factor to the rows of `to` [.,width] that tokens name.
template <class scalar> void scatter(const scalar* from, long row, const long* token, long height, long width, scalar factor, scalar* to) {
  for (long r = 0; r < height; ++r) {
    if (token[r] < 0) continue;
    scalar* const sum = to + token[r] * width;
    for (long d = 0; d < width; ++d) sum[d] += factor * from[r * row + d];
  }
}

/// Tasks: every (b, h), whose clusters come one after another, since tokens may stand in several.
template <class scalar> void backward(const Cluster<scalar>& a, long begin, long end, scalar* scratch) {
  const long deep = round_up<scalar>(a.D), wide = round_up<scalar>(a.Dv);
  Room<scalar> room(scratch);
  const Tile<scalar> at = tile_in(a, room);
  scalar* const keys = room.take(T * deep);
  scalar* const d_out = room.take(T * wide);
  scalar* const d_s = room.take(T * T);
  scalar* const d_queries = room.take(T * deep);
  scalar* const sums = room.take(T * most(deep, wide));
  scalar* const delta = room.take(T);
  for (long head = begin; head < end; ++head) {
    const auto visit = [&](const Queries& q, bool somebody) {
      if (!somebody) return;
      const long row = head * a.places + q.first;
      copy_rows(a.q, q.b, q.h, q.first, q.height, a.D, a.scale, at.queries, deep);
      copy_rows(a.d_out, q.b, q.h, q.first, q.height, a.Dv, scalar{1}, d_out, wide);
      for (long r = 0; r < q.height; ++r) {
        delta[r] = a.d_lse ? -a.d_lse[row + r] : 0;
        for (long d = 0; d < a.Dv; ++d) delta[r] += d_out[r * wide + d] * a.out[(row + r) * a.Dv + d];
      }
      for (long x = 0; x < q.height * deep; ++x) d_queries[x] = 0;
      for_each_keys(a, q, [&](const Keys& k) {
        score(a, q, k, at);
        copy_across(a.v, q.b, q.h, k.first, k.count, a.Dv, at.across);
        gemm<false>(q.height, T, a.Dv, Left<scalar>{d_out, wide, 1}, Right<scalar>{at.across, T}, d_s, T);  // dp
        for (long r = 0; r < q.height; ++r) {
          const scalar lse = a.lse[row + r];
          const bool nothing = q.token[r] < 0 || lse == -static_cast<scalar>(infinity);
          scalar* const p = at.s + r * T;
          scalar* const ds = d_s + r * T;
          for (long c = 0; c < T; c += lanes<scalar>) vec(p + c) = nothing ? Vec<scalar>{} : exp(vec(p + c) - splat(lse));
          for (long c = 0; c < k.count; ++c) {
            const scalar factor = a.drawn ? kept(a, q, r, k.slot + c) : 1;
            ds[c] = a.has_self && k.token[c] == q.token[r] ? 0 : p[c] * (factor * ds[c] - delta[r]);
            p[c] *= factor;
          }
          for (long c = k.count; c < T; ++c) ds[c] = 0;
          for (long c = 0; nothing && c < T; ++c) ds[c] = 0;
        }
        copy_rows(a.k, q.b, q.h, k.first, k.count, a.D, scalar{1}, keys, deep);
        gemm<true>(q.height, deep, k.count, Left<scalar>{d_s, T, 1}, Right<scalar>{keys, deep}, d_queries, deep);
        gemm<false>(k.count, deep, q.height, Left<scalar>{d_s, 1, T}, Right<scalar>{at.queries, deep}, sums, deep);
        scatter(sums, deep, k.token, k.count, a.D, scalar{1}, a.d_k + head * a.M * a.D);
        gemm<false>(k.count, wide, q.height, Left<scalar>{at.s, 1, T}, Right<scalar>{d_out, wide}, sums, wide);
        scatter(sums, wide, k.token, k.count, a.Dv, scalar{1}, a.d_v + head * a.M * a.Dv);
      });
      scatter(d_queries, deep, q.token, q.height, a.D, a.scale, a.d_q + head * a.N * a.D);
    };
    for (long cluster = 0; cluster < a.clusters; ++cluster) for_each_queries(a, head / a.H, head % a.H, cluster, visit);
  }
}

template <class scalar> long forward_room(const Cluster<scalar>& a) {
  Room<scalar> room(nullptr);
  tile_in(a, room);
  return room.taken;
}

template <class scalar> long backward_room(const Cluster<scalar>& a) {
  const long deep = round_up<scalar>(a.D), wide = round_up<scalar>(a.Dv);
  Room<scalar> room(nullptr);
  tile_in(a, room);
  const long more[] = {T * deep, T * wide, T * T, T * deep, T * most(deep, wide), T};
  for (const long count : more) room.take(count);
  return room.taken;
}

template <class scalar> constexpr ClusterEngine<scalar> engine{
    .forward = &forward<scalar>, .backward = &backward<scalar>, .forward_room = &forward_room<scalar>, .backward_room = &backward_room<scalar>};

}  // namespace

const ClusterEngine<float> cluster_float = engine<float>;
const ClusterEngine<double> cluster_double = engine<double>;

}  // namespace foveate::kernels::CPU_CAPABILITY
