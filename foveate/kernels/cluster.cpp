// Attention inside clusters: rows are fetched by the tokens that stand in line, scores follow rules on tokens.
#include "kernels/cluster.h"

#include "kernels/capability.h"
#include "kernels/row_sums.h"
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

/// What rules ask of the keys of a tile, side by side, [T] each; beyond the last key nobody stands.
struct Facts {
  int *token, *hidden, *label;
  int* meetings;  // [2,rounds,T]
};

template <class scalar> struct Tile {
  scalar *queries, *across, *s, *values, *sums, *tops, *totals, *factor;
  Facts keys;
};

template <class scalar> bool drops(const Cluster<scalar>& a) { return a.drawn || a.keep; }

/// Where the results of place r of the queries lie: at the place, or, where places of a token are one query, at the token.
template <class scalar> long row_of(const Cluster<scalar>& a, const Queries& q, long r) {
  const long head = q.b * a.H + q.h;
  return a.merged ? head * a.N + q.token[r] : head * a.places + q.first + r;
}

/// What dropout multiplies the probabilities of place r with, of `count` slots from `slot` on.
template <class scalar> void kept(const Cluster<scalar>& a, const Queries& q, long r, const Keys& k, scalar* factor) {
  const long head = q.b * a.H + q.h, width = (a.before + 1 + a.after) * a.k_size;
  if (a.keep) {
    const unsigned char* keep = a.keep + (head * a.places + q.first + r) * width + k.slot;
    for (long c = 0; c < k.count; ++c) factor[c] = keep[c] ? a.kept_share : 0;
    return;
  }
  const unsigned row = mixed(static_cast<unsigned>(head * a.clusters * a.q_size + q.first + r) + a.seed);
  for (long c = 0; c < k.count; ++c) {
    factor[c] = mixed(row + static_cast<unsigned>(k.slot + c) * 0x9e3779b1u) >= a.threshold ? a.kept_share : 0;
  }
}

inline const long* tokens(const Rows& rows, long b, long h) { return rows.index + b * rows.index_batch + h * rows.index_head; }

/// Of the weights at places of keys, or of their gradients, those of a tile.
template <class scalar, class Number> Number* at_keys(const Cluster<scalar>& a, const Queries& q, const Keys& k, Number* weights) {
  return weights + (q.b * a.H + q.h) * a.clusters * a.k_size + k.first;
}

/// Each row of x [height,T], what queries have of keys or of values, times the weights at the places of those.
template <class scalar> void weigh_columns(const Cluster<scalar>& a, const Queries& q, const Keys& k, scalar* x) {
  if (!a.k_weight) return;
  const scalar* weight = at_keys(a, q, k, a.k_weight);
  for (long r = 0; r < q.height; ++r) {
    for (long c = 0; c < k.count; ++c) x[r * T + c] *= weight[c];
  }
}

/// Each row of x [count,width], one for each key, times the weight at its place.
template <class scalar> void weigh_rows(const Cluster<scalar>& a, const Queries& q, const Keys& k, scalar* x, long width) {
  if (!a.k_weight) return;
  const scalar* weight = at_keys(a, q, k, a.k_weight);
  for (long c = 0; c < k.count; ++c) {
    for (long d = 0; d < width; ++d) x[c * width + d] *= weight[c];
  }
}

/// The gradient of the weights, from that of the weighted rows, and the rows without.
template <class scalar> void add_d_weight(const Cluster<scalar>& a, const Queries& q, const Keys& k, const scalar* d_weighted, const scalar* rows,
                                          long width) {
  if (!a.k_weight) return;
  scalar* d_weight = at_keys(a, q, k, a.d_k_weight);
  for (long c = 0; c < k.count; ++c) d_weight[c] += dot(d_weighted + c * width, rows + c * width, width);
}

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

template <class scalar> void gather_facts(const Cluster<scalar>& a, const Queries& q, const Keys& k, const Facts& to) {
  const unsigned char* mask = a.key_mask ? a.key_mask + q.b * a.M : nullptr;
  const int* label = a.label ? a.label + (q.b * a.H + q.h) * a.clusters * a.q_size + k.first : nullptr;
  for (long c = 0; c < T; ++c) {
    const long u = c < k.count ? k.token[c] : -1;
    to.token[c] = static_cast<int>(u);
    to.hidden[c] = u < 0 || (mask && !mask[u]);
    to.label[c] = label && c < k.count ? label[c] : 0;
  }
  for (long r = 0; a.here && r < a.rounds; ++r) {
    const long base = ((q.b * a.H + q.h) * a.rounds + r) * a.N;
    for (long c = 0; c < T; ++c) {
      const long u = to.token[c] < 0 ? 0 : to.token[c];
      to.meetings[r * T + c] = a.here[base + u];
      to.meetings[(a.rounds + r) * T + c] = a.behind[base + u];
    }
  }
}

/// From products of query r to scores. Conditions are numbers, so that many keys are judged at once.
template <class scalar> void rule(const Cluster<scalar>& a, const Queries& q, long r, const Facts& keys, scalar* s) {
  const scalar hidden = -static_cast<scalar>(infinity), self_score = a.self_score;
  const int t = static_cast<int>(q.token[r]), causal_keys = static_cast<int>(a.causal_keys);
  const int left_out = a.query_mask && !a.query_mask[q.b * a.N + t], has_self = a.has_self, self_seen = a.self_seen;
  const int label = a.label ? a.label[(q.b * a.H + q.h) * a.clusters * a.q_size + q.first + r] : 0;
  for (long c = 0; c < T; ++c) {
    const int u = keys.token[c], same = has_self & (u == t);
    const int hide = ((keys.hidden[c] | left_out | ((u > t) & (u < causal_keys))) & ~(same & self_seen)) | (label != keys.label[c]) | (u < 0);
    const scalar score = same ? self_score : s[c];
    s[c] = hide ? hidden : score;
  }
  if (!a.here) return;
  const long base = (q.b * a.H + q.h) * a.rounds * a.N + t;
  int counts[T] = {};
  for (long round = 0; round < a.rounds; ++round) {
    const int own = a.here[base + round * a.N];
    const int *here = keys.meetings + round * T, *behind = keys.meetings + (a.rounds + round) * T;
    for (long c = 0; c < T; ++c) counts[c] += (here[c] == own) + (behind[c] == own);
  }
  for (long c = 0; c < T; ++c) s[c] -= a.log_meetings[counts[c]];
}

/// Whether scores of these keys are products and nothing else.
template <class scalar> bool plain(const Cluster<scalar>& a, const Keys& k, const Facts& keys) {
  if (k.count < T || a.query_mask || a.causal_keys != 0 || a.has_self || a.label || a.here) return false;
  int some = 0;
  for (long c = 0; c < T; ++c) some |= keys.hidden[c];
  return some == 0;
}

/// s [height,T]: scores of the queries (scaled) and the keys.
template <class scalar> void score(const Cluster<scalar>& a, const Queries& q, const Keys& k, const Tile<scalar>& at) {
  copy_across(a.k, q.b, q.h, k.first, k.count, a.D, at.across);
  gemm<false>(q.height, T, a.D, Left<scalar>{at.queries, round_up<scalar>(a.D), 1}, Right<scalar>{at.across, T}, at.s, T);
  weigh_columns(a, q, k, at.s);
  gather_facts(a, q, k, at.keys);
  const bool is_plain = plain(a, k, at.keys);
  for (long r = 0; r < q.height; ++r) {
    if (q.token[r] < 0) {
      for (long c = 0; c < T; ++c) at.s[r * T + c] = -static_cast<scalar>(infinity);
    } else if (!is_plain) {
      rule(a, q, r, at.keys, at.s + r * T);
    }
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
  at.factor = room.take(T);
  at.keys.token = room.template take_as<int>(T);
  at.keys.hidden = room.template take_as<int>(T);
  at.keys.label = room.template take_as<int>(T);
  at.keys.meetings = room.template take_as<int>(a.here ? 2 * a.rounds * T : 0);
  return at;
}

/// A query's row of out and lse, from its sums.
template <class scalar> void finish(const scalar* sums, scalar top, scalar total, long width, scalar* out, scalar* lse) {
  const bool seen = total > 0 || total != total;
  for (long d = 0; d < width; ++d) out[d] = seen ? sums[d] / total : 0;
  *lse = seen ? top + static_cast<scalar>(log(static_cast<double>(total))) : -static_cast<scalar>(infinity);
}

/// Adds what a query saw at one of its places to what it saw before.
template <class scalar> void join(const scalar* sums, scalar top, scalar total, long width, scalar* all_sums, scalar* all_top, scalar* all_total) {
  if (!(total > 0 || total != total)) return;
  const scalar best = top > *all_top ? top : *all_top;
  const scalar fade = exp(splat(*all_top - best))[0], share = exp(splat(top - best))[0];
  for (long d = 0; d < width; ++d) all_sums[d] = fade * all_sums[d] + share * sums[d];
  *all_total = fade * *all_total + share * total;
  *all_top = best;
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
      if (!drops(a)) continue;
      kept(a, q, r, k, at.factor);
      for (long c = 0; c < k.count; ++c) at.s[r * T + c] *= at.factor[c];
    }
    copy_rows(a.v, q.b, q.h, k.first, k.count, a.Dv, scalar{1}, at.values, wide);
    weigh_rows(a, q, k, at.values, wide);
    gemm<true>(q.height, wide, k.count, Left<scalar>{at.s, T, 1}, Right<scalar>{at.values, wide}, at.sums, wide);
  });
  for (long r = 0; r < q.height; ++r) {
    if (a.merged && q.token[r] < 0) continue;
    const long row = row_of(a, q, r);
    if (a.merged) join(at.sums + r * wide, at.tops[r], at.totals[r], a.Dv, a.out + row * a.Dv, a.lse + row, a.totals + row);
    else finish(at.sums + r * wide, at.tops[r], q.token[r] < 0 ? 0 : at.totals[r], a.Dv, a.out + row * a.Dv, a.lse + row);
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

template <class scalar> void forward_of(const Cluster<scalar>& a, long head, long cluster, const Tile<scalar>& at) {
  for_each_queries(a, head / a.H, head % a.H, cluster, [&](const Queries& q, bool somebody) {
    if (somebody) {
      attend(a, q, at);
      return;
    }
    const long row = head * a.places + q.first;
    for (long x = 0; !a.merged && x < q.height * a.Dv; ++x) a.out[row * a.Dv + x] = 0;
    for (long r = 0; !a.merged && r < q.height; ++r) a.lse[row + r] = -static_cast<scalar>(infinity);
  });
}

/// Tasks: clusters of every (b, h); where tokens' places are one query, every (b, h), whose clusters come one after another.
template <class scalar> void forward(const Cluster<scalar>& a, long begin, long end, scalar* scratch) {
  Room<scalar> room(scratch);
  const Tile<scalar> at = tile_in(a, room);
  if (!a.merged) {
    for (long task = begin; task < end; ++task) forward_of(a, task / a.clusters, task % a.clusters, at);
    return;
  }
  for (long head = begin; head < end; ++head) {
    for (long row = head * a.N; row < (head + 1) * a.N; ++row) {
      a.lse[row] = -static_cast<scalar>(infinity);
      a.totals[row] = 0;
      for (long d = 0; d < a.Dv; ++d) a.out[row * a.Dv + d] = 0;
    }
    for (long cluster = 0; cluster < a.clusters; ++cluster) forward_of(a, head, cluster, at);
    for (long row = head * a.N; row < (head + 1) * a.N; ++row) {
      scalar* out = a.out + row * a.Dv;
      finish(out, a.lse[row], a.totals[row], a.Dv, out, a.lse + row);
    }
  }
}

/// From scores in p and d_out . v in ds [T]: what weighs the values, and the gradients of the scores.
template <class scalar> void differentiate(const Cluster<scalar>& a, const Queries& q, const Keys& k, long r, scalar delta, const Tile<scalar>& at,
                                           scalar* p, scalar* ds) {
  const scalar lse = q.token[r] < 0 ? -static_cast<scalar>(infinity) : a.lse[row_of(a, q, r)];
  if (lse == -static_cast<scalar>(infinity)) {
    for (long c = 0; c < T; ++c) p[c] = ds[c] = 0;
    return;
  }
  for (long c = 0; c < T; c += lanes<scalar>) vec(p + c) = exp(vec(p + c) - splat(lse));
  if (drops(a)) {
    kept(a, q, r, k, at.factor);
    for (long c = 0; c < k.count; ++c) {
      ds[c] = p[c] * (at.factor[c] * ds[c] - delta);
      p[c] *= at.factor[c];
    }
  } else {
    for (long c = 0; c < T; ++c) ds[c] = p[c] * (ds[c] - delta);
  }
  if (a.has_self) {
    const int t = static_cast<int>(q.token[r]);
    for (long c = 0; c < T; ++c) ds[c] = at.keys.token[c] == t ? 0 : ds[c];
  }
  for (long c = k.count; c < T; ++c) ds[c] = 0;
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
      copy_rows(a.q, q.b, q.h, q.first, q.height, a.D, a.scale, at.queries, deep);
      copy_rows(a.d_out, q.b, q.h, q.first, q.height, a.Dv, scalar{1}, d_out, wide);
      for (long r = 0; r < q.height; ++r) {
        if (q.token[r] < 0) continue;
        const long row = row_of(a, q, r);
        delta[r] = dot(d_out + r * wide, a.out + row * a.Dv, a.Dv) - (a.d_lse ? a.d_lse[row] : 0);
      }
      for (long x = 0; x < q.height * deep; ++x) d_queries[x] = 0;
      for_each_keys(a, q, [&](const Keys& k) {
        score(a, q, k, at);
        copy_across(a.v, q.b, q.h, k.first, k.count, a.Dv, at.across);
        gemm<false>(q.height, T, a.Dv, Left<scalar>{d_out, wide, 1}, Right<scalar>{at.across, T}, d_s, T);  // dp
        weigh_columns(a, q, k, d_s);
        for (long r = 0; r < q.height; ++r) differentiate(a, q, k, r, delta[r], at, at.s + r * T, d_s + r * T);
        copy_rows(a.k, q.b, q.h, k.first, k.count, a.D, scalar{1}, keys, deep);
        gemm<false>(k.count, deep, q.height, Left<scalar>{d_s, 1, T}, Right<scalar>{at.queries, deep}, sums, deep);
        add_d_weight(a, q, k, sums, keys, deep);
        weigh_rows(a, q, k, sums, deep);
        weigh_rows(a, q, k, keys, deep);
        gemm<true>(q.height, deep, k.count, Left<scalar>{d_s, T, 1}, Right<scalar>{keys, deep}, d_queries, deep);
        scatter_rows(sums, deep, k.token, k.count, a.D, scalar{1}, a.d_k + head * a.M * a.D);
        gemm<false>(k.count, wide, q.height, Left<scalar>{at.s, 1, T}, Right<scalar>{d_out, wide}, sums, wide);
        if (a.k_weight) copy_rows(a.v, q.b, q.h, k.first, k.count, a.Dv, scalar{1}, at.values, wide);
        add_d_weight(a, q, k, sums, at.values, wide);
        weigh_rows(a, q, k, sums, wide);
        scatter_rows(sums, wide, k.token, k.count, a.Dv, scalar{1}, a.d_v + head * a.M * a.Dv);
      });
      scatter_rows(d_queries, deep, q.token, q.height, a.D, a.scale, a.d_q + head * a.N * a.D);
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
