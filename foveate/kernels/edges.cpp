// Attention along edges: lists are sorted by query, each query scores its keys where they lie; gradients of keys follow by key.
#include "kernels/edges.h"

#include "kernels/capability.h"
#include "kernels/hash.h"
#include "kernels/rows_of_numbers.h"

#include <math.h>

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

/// The list of head bh of all.
template <class scalar> inline long list_of(const Edges<scalar>& a, long bh) { return bh / a.H * a.G + (a.G > 1 ? bh % a.H : 0); }

template <class scalar> void list(const Edges<scalar>& a, long begin, long end, long* last) {
  for (long bg = begin; bg < end; ++bg) {
    const long b = bg / a.G, g = bg % a.G, each = a.N > 0 ? a.L / a.N : 0;
    const long* to = a.to + b * a.to_batch + g * a.to_list;
    const long* from = a.from ? a.from + b * a.from_batch + g * a.from_list : nullptr;
    const unsigned char* mask = a.key_mask ? a.key_mask + b * a.M : nullptr;
    long *row = a.row + bg * (a.N + 1), *key = a.key + bg * a.L, *degree = a.degree + bg * a.N;
    const auto query_of = [&](long e) -> long {  // -1 where the edge does not count
      const long i = from ? from[e] : e / each, j = to[e];
      return i >= 0 && i < a.N && j >= 0 && j < a.M && (!mask || mask[j]) ? i : -1;
    };
    for (long n = 0; n <= a.N; ++n) row[n] = 0;
    for (long e = 0; e < a.L; ++e) {
      const long i = query_of(e);
      if (i >= 0) ++row[i + 1];
    }
    for (long n = 0; n < a.N; ++n) row[n + 1] += row[n];
    for (long n = 0; n < a.N; ++n) degree[n] = row[n];  // where the next edge of n goes
    for (long e = 0; e < a.L; ++e) {
      const long i = query_of(e);
      if (i >= 0) key[degree[i]++] = to[e];
    }
    for (long j = 0; j < a.M; ++j) last[j] = -1;  // the last query that has this key
    long kept = 0;
    for (long n = 0; n < a.N; ++n) {
      const long first = row[n], stop = row[n + 1];  // as counted: rows before this one have moved, not these
      row[n] = kept;
      for (long e = first; e < stop; ++e) {
        if (last[key[e]] == n) continue;
        last[key[e]] = n;
        key[kept++] = key[e];
      }
      degree[n] = kept - row[n];
    }
    row[a.N] = kept;
  }
}

/// What dropout multiplies the weight of key j of query row `bhn` with.
template <class scalar> inline scalar kept(const Edges<scalar>& a, long bhn, long j) {
  if (!a.drops) return 1;
  const unsigned row = mixed(static_cast<unsigned>(bhn) + a.seed);
  return mixed(row + static_cast<unsigned>(j) * 0x9e3779b1u) >= a.threshold ? a.kept_share : 0;
}

template <class scalar> void forward(const Edges<scalar>& a, long begin, long end, scalar* s) {
  for (long bhn = begin; bhn < end; ++bhn) {
    const long bh = bhn / a.N, n = bhn % a.N, of = list_of(a, bh);
    const long *row = a.row + of * (a.N + 1), *key = a.key + of * a.L + row[n], count = row[n + 1] - row[n];
    const scalar *q = a.q + bhn * a.D, *k = a.k + bh * a.M * a.D, *v = a.v + bh * a.M * a.Dv;
    scalar* out = a.out + bhn * a.Dv;
    for (long d = 0; d < a.Dv; ++d) out[d] = 0;
    scalar top = -static_cast<scalar>(infinity);
    for (long e = 0; e < count; ++e) {
      s[e] = a.scale * dot(q, k + key[e] * a.D, a.D);
      top = s[e] > top ? s[e] : top;
    }
    if (top == -static_cast<scalar>(infinity)) {
      a.lse[bhn] = top;
      continue;
    }
    scalar total = 0;
    for (long e = 0; e < count; ++e) total += s[e] = exponential(s[e] - top);
    for (long e = 0; e < count; ++e) add_scaled(s[e] * kept(a, bhn, key[e]), v + key[e] * a.Dv, out, a.Dv);
    for (long d = 0; d < a.Dv; ++d) out[d] /= total;
    a.lse[bhn] = top + static_cast<scalar>(log(static_cast<double>(total)));
  }
}

template <class scalar> void backward_rows(const Edges<scalar>& a, long begin, long end) {
  for (long bhn = begin; bhn < end; ++bhn) {
    const long bh = bhn / a.N, n = bhn % a.N, of = list_of(a, bh);
    const long *row = a.row + of * (a.N + 1), *key = a.key + of * a.L + row[n], count = row[n + 1] - row[n];
    const scalar *q = a.q + bhn * a.D, *k = a.k + bh * a.M * a.D, *v = a.v + bh * a.M * a.Dv, *d_out = a.d_out + bhn * a.Dv;
    scalar *weight = a.weight + bh * a.L + row[n], *d_score = a.d_score + bh * a.L + row[n], *d_q = a.d_q + bhn * a.D;
    for (long d = 0; d < a.D; ++d) d_q[d] = 0;
    if (a.lse[bhn] == -static_cast<scalar>(infinity)) {
      for (long e = 0; e < count; ++e) weight[e] = d_score[e] = 0;
      continue;
    }
    const scalar base = dot(d_out, a.out + bhn * a.Dv, a.Dv) - (a.d_lse ? a.d_lse[bhn] : 0);
    for (long e = 0; e < count; ++e) {
      const scalar p = exponential(a.scale * dot(q, k + key[e] * a.D, a.D) - a.lse[bhn]), share = kept(a, bhn, key[e]);
      weight[e] = p * share;
      d_score[e] = a.scale * p * (share * dot(d_out, v + key[e] * a.Dv, a.Dv) - base);
      add_scaled(d_score[e], k + key[e] * a.D, d_q, a.D);
    }
  }
}

template <class scalar> void backward_columns(const Edges<scalar>& a, long begin, long end) {
  for (long bh = begin; bh < end; ++bh) {  // query by query: each key of a head is added to in one order, whatever the number of threads
    const long of = list_of(a, bh);
    const long *row = a.row + of * (a.N + 1), *key = a.key + of * a.L;
    scalar *d_k = a.d_k + bh * a.M * a.D, *d_v = a.d_v + bh * a.M * a.Dv;
    for (long d = 0; d < a.M * a.D; ++d) d_k[d] = 0;
    for (long d = 0; d < a.M * a.Dv; ++d) d_v[d] = 0;
    for (long n = 0; n < a.N; ++n) {
      const scalar *q = a.q + (bh * a.N + n) * a.D, *d_out = a.d_out + (bh * a.N + n) * a.Dv;
      for (long e = row[n]; e < row[n + 1]; ++e) {
        add_scaled(a.d_score[bh * a.L + e], q, d_k + key[e] * a.D, a.D);
        add_scaled(a.weight[bh * a.L + e], d_out, d_v + key[e] * a.Dv, a.Dv);
      }
    }
  }
}

template <class scalar> constexpr EdgeEngine<scalar> engine{list<scalar>, forward<scalar>, backward_rows<scalar>, backward_columns<scalar>};

}  // namespace

const EdgeEngine<float> edges_float = engine<float>;
const EdgeEngine<double> edges_double = engine<double>;

}  // namespace foveate::kernels::CPU_CAPABILITY
