// The delta rule in the linear engine: a key writes beta times what its value lacks in what the memory gives for the key. In a chunk
// before which the memory is T,
//   x_i = v_i - k_i T - sum_{j<i} (k_i . k_j) u_j,   u_i = beta_i x_i
// a triangular system, solved from the first row to the last; with u in place of v the chunk is that of linear attention. The gradient g of
// u goes the other way, from the last row to the first:
//   y_j = g_j - sum_{i>j} (k_i . k_j) e_i,   e_i = beta_i y_i;   d_v = e,   d_beta_i = x_i . y_i
// and the rest is as if each key had been a query, which sees the keys before it, and whose output has the gradient -e.
#pragma once
#include "kernels/linear_chunk.h"

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

/// The keys of a place as queries that see the keys before them, not themselves.
inline Place among_keys(const Place& at) {
  return {.b = at.b, .hk = at.hk, .first = at.first, .height = at.height, .query = 0, .queries = at.height, .row = -1};
}

/// less_r = -beta_r x_r
template <class scalar> inline void weaken(const Desk<scalar>& desk, long r, const scalar* x) {
  for (long d = 0; d < desk.wide; d += lanes<scalar>) vec(desk.less + r * desk.wide + d) = -desk.strength[r] * vec(x + r * desk.wide + d);
}

/// v becomes u, where T is the memory before the chunk; lack is x.
template <class scalar> void correct(const Linear<scalar>& a, const Place& at, const Desk<scalar>& desk) {
  const long wide = desk.wide;
  multiply<false>(desk, at.height, wide, a.F, Left<scalar>{desk.k, desk.deep_row, 1}, Right<scalar>{desk.T, wide}, desk.lack, wide);
  for (long i = 0; i < chunk * wide; ++i) desk.lack[i] = i < at.height * wide ? desk.v[i] - desk.lack[i] : 0;
  meet(among_keys(at), desk, desk.k, desk.deep_row, a.F, desk.k_across, desk.p);
  for (long first = 0; first < at.height; first += register_rows) {
    const long end = least(at.height, first + register_rows);
    multiply<true>(desk, end - first, wide, first, Left<scalar>{desk.p + first * chunk, chunk, 1}, Right<scalar>{desk.less, wide},
                   desk.lack + first * wide, wide);
    for (long r = first; r < end; ++r) {
      for (long c = first; c < r; ++c) add_row(desk.p[r * chunk + c], desk.less + c * wide, desk.lack + r * wide, wide);
      weaken(desk, r, desk.lack);
    }
  }
  for (long i = 0; i < at.height * wide; ++i) desk.v[i] = -desk.less[i];
}

/// What the walk back needs of chunk c.
template <class scalar> void keep(const Linear<scalar>& a, long c, const Desk<scalar>& desk) {
  const long sums = a.Dv * desk.deep_row, lacks = chunk * desk.wide;
  for (long i = 0; i < sums; ++i) desk.kept_sums[c * sums + i] = desk.T_across[i];
  for (long i = 0; i < lacks; ++i) desk.kept_lacks[c * lacks + i] = desk.lack[i];
}

/// v becomes u, from what was kept.
template <class scalar> void recall(const Linear<scalar>&, long c, const Desk<scalar>& desk) {
  const scalar* lack = desk.kept_lacks + c * chunk * desk.wide;
  for (long i = 0; i < chunk * desk.wide; ++i) desk.v[i] = lack[i];
  scale_rows(desk.v, desk.strength, chunk, desk.wide, desk.wide);
}

/// From the gradient of u in d_v to that of v, of beta, and what k still lacks; less is -e.
template <class scalar> void correct_backward(const Linear<scalar>& a, const Place& at, long c, const Desk<scalar>& desk) {
  const long wide = desk.wide, deep = desk.deep, row = desk.deep_row;
  const Place keys = among_keys(at);
  meet(keys, desk, desk.k, row, a.F, desk.k_across, desk.p);
  for (long end = at.height, first; end > 0; end = first) {
    first = (end - 1) / register_rows * register_rows;
    multiply<true>(desk, end - first, wide, at.height - end, Left<scalar>{desk.p + end * chunk + first, 1, chunk},
                   Right<scalar>{desk.less + end * wide, wide}, desk.d_v + first * wide, wide);
    for (long r = end - 1; r >= first; --r) {
      for (long i = r + 1; i < end; ++i) add_row(desk.p[i * chunk + r], desk.less + i * wide, desk.d_v + r * wide, wide);
      weaken(desk, r, desk.d_v);
    }
  }
  const scalar* lack = desk.kept_lacks + c * chunk * wide;
  for (long r = 0; r < at.height; ++r) {
    scalar strength = 0;
    for (long d = 0; d < a.Dv; ++d) strength += desk.d_v[r * wide + d] * lack[r * wide + d];
    a.d_beta[(at.b * a.Hk + at.hk) * a.M + at.first + r] = strength;
    for (long d = 0; d < wide; ++d) desk.d_v[r * wide + d] = -desk.less[r * wide + d];
  }
  multiply<true>(desk, at.height, deep, a.Dv, Left<scalar>{desk.less, wide, 1}, Right<scalar>{desk.kept_sums + c * a.Dv * row, row}, desk.d_k, row);
  meet(keys, desk, desk.less, wide, a.Dv, desk.v_across, desk.d_p);
  along_keys(keys, desk, desk.d_p, desk.k, row, deep, desk.d_k);
  along_queries(keys, desk, desk.d_p, desk.k, row, deep, desk.d_k);
}

}  // namespace
}  // namespace foveate::kernels::CPU_CAPABILITY
