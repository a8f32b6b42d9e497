// Linear attention without an order: every query reads the sums over all keys,
//   S = sum k v^T,  z = sum k;   out = q S / d(q.z)
// and with d_n = d_out / d, d_r = -(d_n . out) d' of each query,
//   d_q = d_n S^T + d_r z,  d_S = sum q^T d_n,  d_z = sum d_r q;   d_k = v d_S^T + d_z,  d_v = k d_S
// Keys, and in the backward queries, are summed part by part; the parts are joined in order, whoever summed them.
#include "kernels/ahead.h"
#include "kernels/capability.h"
#include "kernels/copy.h"
#include "kernels/linear.h"
#include "kernels/linear_rows.h"
#include "kernels/room.h"

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

constexpr long tile = 64;  // rows that are taken at a time

/// What one task works in.
template <class scalar> struct WholeDesk {
  long deep, wide, deep_row;
  scalar *x, *y;             // [C,deep_row], [C,wide]: queries or keys, and what stands beside them
  scalar *d_x, *d_y;         // like x and y
  scalar *T, *T_across, *z;  // [F,wide], [Dv,deep_row], [deep]
  mutable Ahead ahead;       // what is asked for changes no result

  WholeDesk(const Linear<scalar>& a, Room<scalar>& room) : deep(round_up<scalar>(a.F)), wide(round_up<scalar>(a.Dv)), deep_row(apart<scalar>(deep)) {
    x = room.take(tile * deep_row);
    y = room.take(tile * wide);
    d_x = room.take(tile * deep_row);
    d_y = room.take(tile * wide);
    T = room.take(a.F * wide);
    T_across = room.take(a.Dv * deep_row);
    z = room.take(deep);
  }
};

/// The sums of a part, S [F,wide] and z [deep].
template <class scalar> long numbers_of_sums(const Linear<scalar>& a) { return a.F * round_up<scalar>(a.Dv) + round_up<scalar>(a.F); }

/// Rows [first, first + height) of (b, hk).
struct Part {
  long b, hk, first, height;
};

/// Part `task` of rows of which each head has `length`.
template <class scalar> Part part_of(const Linear<scalar>& a, long length, long task) {
  const long parts = tiles_of(length, part_rows), head = task / parts, first = task % parts * part_rows;
  return {head / a.Hk, head % a.Hk, first, least(part_rows, length - first)};
}

/// Calls f(task, part, desk) for the tasks [begin, end), parts of rows of which each head has `length`.
template <class scalar, class F> void for_each_part(const Linear<scalar>& a, long length, long begin, long end, scalar* scratch, const F& f) {
  Room<scalar> room(scratch);
  const WholeDesk<scalar> desk(a, room);
  for (long task = begin; task < end; ++task) f(task, part_of(a, length, task), desk);
}

/// Calls f(its first row, its height) for each tile of a part.
template <class F> void for_each_tile(const Part& part, const F& f) {
  for (long r = 0; r < part.height; r += tile) f(part.first + r, least(tile, part.height - r));
}

/// The keys and values of a tile, zeros where hidden; the next tile, and what is written to it, are asked for during the products.
template <bool backward, class scalar> void load_keys(const Linear<scalar>& a, const Part& part, long first, long height,
                                                      const WholeDesk<scalar>& desk) {
  const long next = first + tile, head = part.b * a.Hk + part.hk;
  desk.ahead.begin(tiles_in<scalar>(tile, desk.deep));
  desk.ahead.add(a.k, part.b, part.hk, next, tile, a.M, a.F);
  desk.ahead.add(a.v, part.b, part.hk, next, tile, a.M, a.Dv);
  if (backward) {
    desk.ahead.add(a.d_k + head * a.M * a.F, next, tile, a.M, a.F);
    desk.ahead.add(a.d_v + head * a.M * a.Dv, next, tile, a.M, a.Dv);
  }
  copy_rows(a.k, part.b, part.hk, first, height, a.F, scalar{1}, desk.x, desk.deep_row);
  copy_rows(a.v, part.b, part.hk, first, height, a.Dv, scalar{1}, desk.y, desk.wide);
  for (long r = 0; a.key_mask && r < height; ++r) {
    if (a.key_mask[part.b * a.M + first + r]) continue;
    for (long f = 0; f < desk.deep; ++f) desk.x[r * desk.deep_row + f] = 0;
    for (long d = 0; d < desk.wide; ++d) desk.y[r * desk.wide + d] = 0;
  }
}

/// T += x^T y of a tile.
template <class scalar> void add_tile(const Linear<scalar>& a, long height, const WholeDesk<scalar>& desk, scalar* T) {
  gemm<true>(desk.ahead, a.F, desk.wide, height, Left<scalar>{desk.x, 1, desk.deep_row}, Right<scalar>{desk.y, desk.wide}, T, desk.wide);
}

/// The sums of a part, in its place among the parts, at 0.
template <class scalar> scalar* cleared(const Linear<scalar>& a, long task) {
  scalar* T = a.parts + task * numbers_of_sums(a);
  clear_row(numbers_of_sums(a), T);
  return T;
}

template <class scalar> void sum_keys(const Linear<scalar>& a, long begin, long end, scalar* scratch) {
  for_each_part(a, a.M, begin, end, scratch, [&](long task, const Part& part, const WholeDesk<scalar>& desk) {
    scalar *T = cleared(a, task), *z = T + a.F * desk.wide;
    for_each_tile(part, [&](long first, long height) {
      load_keys<false>(a, part, first, height, desk);
      add_tile(a, height, desk, T);
      for (long r = 0; r < height; ++r) add_row(scalar{1}, desk.x + r * desk.deep_row, z, desk.deep);
    });
  });
}

/// S_to, z_to [head] = S, z [head], where they are, and all parts.
template <class scalar> void join(const Linear<scalar>& a, long head, long parts, const scalar* S, const scalar* z, scalar* S_to, scalar* z_to) {
  const long sums = numbers_of_sums(a), wide = round_up<scalar>(a.Dv);
  const scalar* T = a.parts + head * parts * sums;
  for (long f = 0; f < a.F; ++f) {
    for (long d = 0; d < a.Dv; ++d) {
      const long at = (head * a.F + f) * a.Dv + d;
      scalar sum = S ? S[at] : 0;
      for (long part = 0; part < parts; ++part) sum += T[part * sums + f * wide + d];
      S_to[at] = sum;
    }
    scalar sum = z ? z[head * a.F + f] : 0;
    for (long part = 0; part < parts; ++part) sum += T[part * sums + a.F * wide + f];
    z_to[head * a.F + f] = sum;
  }
}

template <class scalar> void join_keys(const Linear<scalar>& a, long begin, long end) {
  for (long head = begin; head < end; ++head) join(a, head, tiles_of(a.M, part_rows), a.S, a.z, a.S_after, a.z_after);
}

template <class scalar> void join_queries(const Linear<scalar>& a, long begin, long end) {
  for (long head = begin; head < end; ++head) join(a, head, tiles_of(a.N, part_rows), a.d_S_after, a.d_z_after, a.d_S, a.d_z);
}

/// T, z, and T_across where wanted, from the sums of a head.
template <bool across, class scalar> void load_sums(const Linear<scalar>& a, const Part& part, const scalar* S, const scalar* z,
                                                    const WholeDesk<scalar>& desk) {
  const long head = part.b * a.Hk + part.hk;
  for (long f = 0; f < a.F; ++f) {
    for (long d = 0; d < desk.wide; ++d) desk.T[f * desk.wide + d] = d < a.Dv ? S[(head * a.F + f) * a.Dv + d] : 0;
  }
  for (long f = 0; f < desk.deep; ++f) desk.z[f] = f < a.F ? z[head * a.F + f] : 0;
  if (across) turn_sums(desk.T, desk.wide, a.F, a.Dv, desk.T_across, desk.deep, desk.deep_row);
}

/// Calls f(h, first, height) for each tile of queries of a part, of all heads that share its keys; they are in desk.x, and the next tile is
/// asked for.
template <bool backward, class scalar, class F> void for_each_query_tile(const Linear<scalar>& a, const Part& part, const WholeDesk<scalar>& desk,
                                                                         const F& f) {
  const long group = a.H / a.Hk;
  for (long h = part.hk * group; h < (part.hk + 1) * group; ++h) {
    for_each_tile(part, [&](long first, long height) {
      const long next = first + tile, head = part.b * a.H + h;
      desk.ahead.begin(tiles_in<scalar>(tile, backward ? desk.deep : desk.wide));
      desk.ahead.add(a.q, part.b, h, next, tile, a.N, a.F);
      desk.ahead.add(a.out + head * a.N * a.Dv, next, tile, a.N, a.Dv);
      if (backward) {
        desk.ahead.add(a.d_out, part.b, h, next, tile, a.N, a.Dv);
        desk.ahead.add(a.d_q + head * a.N * a.F, next, tile, a.N, a.F);
      }
      copy_rows(a.q, part.b, h, first, height, a.F, scalar{1}, desk.x, desk.deep_row);
      f(h, first, height);
    });
  }
}

template <class scalar> void read(const Linear<scalar>& a, long begin, long end, scalar* scratch) {
  for_each_part(a, a.N, begin, end, scratch, [&](long, const Part& part, const WholeDesk<scalar>& desk) {
    load_sums<false>(a, part, a.S_after, a.z_after, desk);
    for_each_query_tile<false>(a, part, desk, [&](long h, long first, long height) {
      gemm<false>(desk.ahead, height, desk.wide, a.F, Left<scalar>{desk.x, desk.deep_row, 1}, Right<scalar>{desk.T, desk.wide}, desk.y, desk.wide);
      scalar* out = a.out + ((part.b * a.H + h) * a.N + first) * a.Dv;
      for (long r = 0; r < height; ++r) {
        const scalar share = 1 / divide(a, dot(desk.x + r * desk.deep_row, desk.z, desk.deep)).value;
        store_row(desk.y + r * desk.wide, share, a.Dv, out + r * a.Dv);
      }
    });
  });
}

/// d_q, and a part of d_S and d_z.
template <class scalar> void sum_queries(const Linear<scalar>& a, long begin, long end, scalar* scratch) {
  for_each_part(a, a.N, begin, end, scratch, [&](long task, const Part& part, const WholeDesk<scalar>& desk) {
    load_sums<true>(a, part, a.S_after, a.z_after, desk);
    scalar *d_T = cleared(a, task), *d_z = d_T + a.F * desk.wide;
    for_each_query_tile<true>(a, part, desk, [&](long h, long first, long height) {
      const long row = (part.b * a.H + h) * a.N + first;
      scalar d_r[tile];
      copy_rows(a.d_out, part.b, h, first, height, a.Dv, scalar{1}, desk.y, desk.wide);
      for (long r = 0; r < height; ++r) {
        const Divided<scalar> d = divide(a, dot(desk.x + r * desk.deep_row, desk.z, desk.deep));
        scalar* d_n = desk.y + r * desk.wide;
        const scalar share = 1 / d.value;
        d_r[r] = d.slope == 0 ? 0 : -dot(d_n, a.out + (row + r) * a.Dv, a.Dv) * d.slope * share;
        for (long e = 0; e < desk.wide; ++e) d_n[e] *= share;
        add_row(d_r[r], desk.x + r * desk.deep_row, d_z, desk.deep);
      }
      add_tile(a, height, desk, d_T);
      gemm<false>(desk.ahead, height, desk.deep, a.Dv, Left<scalar>{desk.y, desk.wide, 1}, Right<scalar>{desk.T_across, desk.deep_row}, desk.d_x,
                  desk.deep_row);
      for (long r = 0; r < height; ++r) {
        store_row(desk.d_x + r * desk.deep_row, d_r[r], desk.z, a.F, a.d_q + (row + r) * a.F);
      }
    });
  });
}

/// d_k and d_v, from d_S and d_z.
template <class scalar> void give_to_keys(const Linear<scalar>& a, long begin, long end, scalar* scratch) {
  for_each_part(a, a.M, begin, end, scratch, [&](long, const Part& part, const WholeDesk<scalar>& desk) {
    load_sums<true>(a, part, a.d_S, a.d_z, desk);
    for_each_tile(part, [&](long first, long height) {
      load_keys<true>(a, part, first, height, desk);
      gemm<false>(desk.ahead, height, desk.deep, a.Dv, Left<scalar>{desk.y, desk.wide, 1}, Right<scalar>{desk.T_across, desk.deep_row}, desk.d_x,
                  desk.deep_row);
      gemm<false>(desk.ahead, height, desk.wide, a.F, Left<scalar>{desk.x, desk.deep_row, 1}, Right<scalar>{desk.T, desk.wide}, desk.d_y, desk.wide);
      for (long r = 0; r < height; ++r) {
        const bool seen = !a.key_mask || a.key_mask[part.b * a.M + first + r];
        const long row = (part.b * a.Hk + part.hk) * a.M + first + r;
        if (seen) {
          store_row(desk.d_x + r * desk.deep_row, scalar{1}, desk.z, a.F, a.d_k + row * a.F);
          store_row(desk.d_y + r * desk.wide, scalar{1}, a.Dv, a.d_v + row * a.Dv);
        } else {
          clear_row(a.F, a.d_k + row * a.F);
          clear_row(a.Dv, a.d_v + row * a.Dv);
        }
      }
    });
  });
}

template <class scalar> long numbers_for(const Linear<scalar>& a) { return numbers_of<WholeDesk<scalar>, scalar>(a); }

template <class scalar> constexpr WholeEngine<scalar> engine{.sum_keys = sum_keys<scalar>,
                                                             .join_keys = join_keys<scalar>,
                                                             .read = read<scalar>,
                                                             .sum_queries = sum_queries<scalar>,
                                                             .join_queries = join_queries<scalar>,
                                                             .give_to_keys = give_to_keys<scalar>,
                                                             .sums = numbers_of_sums<scalar>,
                                                             .room = numbers_for<scalar>};

}  // namespace

const WholeEngine<float> linear_whole_float = engine<float>;
const WholeEngine<double> linear_whole_double = engine<double>;

}  // namespace foveate::kernels::CPU_CAPABILITY
