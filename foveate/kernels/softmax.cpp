// The softmax engine. A tile of queries meets the keys it may see, a run of key tiles at a time: scores by one product, biases and
// hidden keys, then the online softmax of the forward or the recomputed probabilities of the backward. Nothing of size N x M exists.
//   softmax_tiles.h   which scores are computed        softmax_score.h   from products to scores, and back
//   softmax_pack.h    keys and values as products want them
//   softmax_few.h     few queries: keys read where they lie, once for all query heads that share them
#include "kernels/softmax.h"

#include "kernels/capability.h"
#include "kernels/row_sums.h"
#include "kernels/softmax_few.h"
#include "kernels/softmax_online.h"
#include "kernels/softmax_pack.h"
#include "kernels/softmax_score.h"

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

/// Scratch of a forward tile.
template <class scalar> struct ForwardRoom {
  Operand<scalar> queries;
  scalar *row_query, *s, *sums, *tops, *totals, *factor, *by_distance, *distances;
  unsigned short* narrowed;
  Packed<scalar> packed;
  ForwardRoom(const Softmax<scalar>& a, Room<scalar>& room) {
    const long deep = round_up<scalar>(a.D), wide = round_up<scalar>(a.Dv);
    queries = room_for_operand(a, deep, false, room);
    row_query = room.take(a.rows.length ? query_tile * deep : 0);
    s = room.take(query_tile * run_keys);
    sums = room.take(query_tile * wide);
    tops = room.take(query_tile);
    totals = room.take(query_tile);
    factor = room.take(drops(a) ? run_keys : 0);
    by_distance = room.take(a.value_rows.length ? query_tile * distance_row : 0);
    distances = room.take(a.rows.length || a.value_rows.length ? room_by_distance(most(deep, wide)) : 0);
    narrowed = narrow(a) ? room.template take_as<unsigned short>(2 * narrow_room) : nullptr;
    packed = room_for_run(a, false, room);
  }
};

/// Scaled queries. Narrow ones are scaled by a power of two, which is exact, and scores by the rest.
template <class scalar> void copy_queries(const Softmax<scalar>& a, const QueryTile& q, const Operand<scalar>& to) {
  const long deep = round_up<scalar>(a.D);
  copy_rows(a.q, q.b, q.h, q.first, q.height, a.D, narrow(a) ? a.scale / a.rest : a.scale, to.rows, deep);
  fill(to, q.height, deep);
}

/// Forward of one tile: out and lse of its queries.
template <class scalar> void forward_tile(const Softmax<scalar>& a, const QueryTile& q, long split, scalar* scratch) {
  constexpr long W = lanes<scalar>;
  const long deep = round_up<scalar>(a.D), wide = round_up<scalar>(a.Dv);
  Room<scalar> room(scratch);
  const ForwardRoom<scalar> at(a, room);
  copy_queries(a, q, at.queries);
  if (a.rows.length) copy_rows(a.row_query, q.b, q.h, q.first, q.height, a.D, a.scale, at.row_query, deep);
  start_rows(q.height, wide, at.sums, at.tops, at.totals);
  const auto meet_run = [&](const Run& run) {
    const Packed<scalar> met = packed_run(a, q, run, at.packed);
    score(a, q, run, met.keys_across, at.queries, at.row_query, at.s, static_cast<scalar*>(nullptr), at.distances);
    for (long r = 0; r < q.height; ++r) {
      scalar* row = at.s + r * run_keys;
      const scalar fade = meet(chunks_of(run, r), row, at.tops[r], at.totals[r]);
      if (fade != 1) {
        for (long d = 0; d < wide; d += W) vec(at.sums + r * wide + d) *= splat(fade);
      }
      if (!drops(a)) continue;
      for_each_segment(chunks_of(run, r), [&](long begin, long end) {
        kept(a, q, run, r, begin, end, at.factor);
        for (long c = begin; c < end; ++c) row[c] *= at.factor[c];
      });
    }
    product_along(a, run, q.height, wide, at.s, met.values, at.sums, at.narrowed);
    if (a.value_rows.length) {
      spread_by_distance(q, run, at.s, at.by_distance);
      sum_by_distance(a, q, run, a.value_rows, wide, at.by_distance, at.sums, at.distances);
    }
  };
  if (asked(a, q)) for_each_run(a, q, meet_run);
  for (long r = 0; r < q.height; ++r) finish(a, split, q.b, q.h, q.first + r, at.sums + r * wide, at.tops[r], at.totals[r]);
}

/// Scratch of a backward tile.
template <class scalar> struct BackwardRoom {
  scalar *d_k, *d_v;  // [tiles*key_tile,D rounded up]: sums of a key head that has one part
  Operand<scalar> queries, d_out;
  scalar *row_query, *p, *ds, *d_q, *d_row_query, *deltas, *factor, *slope, *by_distance, *distances;
  unsigned short* narrowed;
  Packed<scalar> packed;
  BackwardRoom(const Softmax<scalar>& a, Room<scalar>& room) {
    const long deep = round_up<scalar>(a.D), wide = round_up<scalar>(a.Dv), keys = a.parts == 1 ? tiles_of(a.M, key_tile) * key_tile : 0;
    d_k = room.take(keys * deep);
    d_v = room.take(keys * wide);
    queries = room_for_operand(a, deep, true, room);
    d_out = room_for_operand(a, wide, true, room);
    row_query = room.take(a.rows.length ? query_tile * deep : 0);
    p = room.take(query_tile * run_keys);
    ds = room.take(query_tile * run_keys);
    d_q = room.take(query_tile * deep);
    d_row_query = room.take(a.d_row_query ? query_tile * deep : 0);
    deltas = room.take(query_tile);
    factor = room.take(drops(a) ? run_keys : 0);
    slope = room.take(a.softcap ? query_tile * run_keys : 0);
    by_distance = room.take(a.rows.length || a.value_rows.length ? query_tile * distance_row : 0);
    distances = room.take(a.rows.length || a.value_rows.length ? room_by_distance(most(deep, wide)) : 0);
    narrowed = narrow(a) ? room.template take_as<unsigned short>(2 * narrow_room) : nullptr;
    packed = room_for_run(a, true, room);
  }
};

/// Probabilities of row r and the gradients of its scores, from scores in p and d_out . v in ds; zero in chunks that do not matter.
template <class scalar> void differentiate_row(const Softmax<scalar>& a, const QueryTile& q, const Run& run, long r, scalar lse, scalar delta,
                                               scalar* p, scalar* ds, scalar* factor) {
  constexpr long W = lanes<scalar>;
  const unsigned chunks = lse == -static_cast<scalar>(infinity) ? 0 : chunks_of(run, r);  // saw nothing: no gradient
  for_each_segment(chunks, [&](long begin, long end) {
    if (drops(a)) {
      kept(a, q, run, r, begin, end, factor);
      for (long c = begin; c < end; c += W) {
        const Vec<scalar> probability = exp(vec(p + c) - splat(lse)), share = vec(factor + c);
        vec(ds + c) = probability * (share * vec(ds + c) - splat(delta));
        vec(p + c) = probability * share;
      }
      return;
    }
    for (long c = begin; c < end; c += W) {
      const Vec<scalar> probability = exp(vec(p + c) - splat(lse));
      vec(ds + c) = probability * (vec(ds + c) - splat(delta));
      vec(p + c) = probability;
    }
  });
  for_each_segment(~chunks & ((1u << run.padded / chunk_keys) - 1), [&](long begin, long end) {
    for (long c = begin; c < end; c += W) vec(p + c) = vec(ds + c) = Vec<scalar>{};
  });
}

/// Backward of one tile: d_q of its queries, and what they add to the sums of this part.
///   p = exp(s - lse);  dv += p^T do;  ds = p (do v^T - delta), delta = do.out - dlse;  dq = scale ds k;  dk += ds^T (scale q)
template <class scalar> void backward_tile(const Softmax<scalar>& a, const QueryTile& q, long part, scalar* scratch) {
  constexpr long W = lanes<scalar>;
  const long first_row = (q.b * a.H + q.h) * a.N + q.first, part_head = (part * a.B + q.b) * a.H + q.h;
  if (!asked(a, q)) {
    for (long n = 0; n < q.height * a.D; ++n) a.d_q[first_row * a.D + n] = 0;
    for (long n = 0; a.d_row_query && n < q.height * a.D; ++n) a.d_row_query[first_row * a.D + n] = 0;
    return;
  }
  const long wide = round_up<scalar>(a.Dv), deep = round_up<scalar>(a.D);
  Room<scalar> room(scratch);
  const BackwardRoom<scalar> at(a, room);
  copy_queries(a, q, at.queries);
  if (a.rows.length) copy_rows(a.row_query, q.b, q.h, q.first, q.height, a.D, a.scale, at.row_query, deep);
  copy_rows(a.d_out, q.b, q.h, q.first, q.height, a.Dv, scalar{1}, at.d_out.rows, wide);
  fill(at.d_out, q.height, wide);
  for (long r = 0; r < q.height; ++r) {
    at.deltas[r] = dot(at.d_out.rows + r * wide, a.out + (first_row + r) * a.Dv, a.Dv) - (a.d_lse ? a.d_lse[first_row + r] : 0);
    for (long d = 0; d < deep; d += W) vec(at.d_q + r * deep + d) = Vec<scalar>{};
    for (long d = 0; at.d_row_query && a.d_row_query && d < deep; d += W) vec(at.d_row_query + r * deep + d) = Vec<scalar>{};
  }
  const long summed = ((part * a.B + q.b) * a.Hk + q.hk) * tiles_of(a.M, key_tile) * key_tile;
  scalar* const d_k = a.parts == 1 ? at.d_k : a.d_k + summed * deep;
  scalar* const d_v = a.parts == 1 ? at.d_v : a.d_v + summed * wide;
  for_each_run(a, q, [&](const Run& run) {
    const Packed<scalar> met = packed_run(a, q, run, at.packed);
    score(a, q, run, met.keys_across, at.queries, at.row_query, at.p, at.slope, at.distances);
    product_across(a, run, q.height, a.Dv, at.d_out, met.values_across, at.ds);
    if (a.value_rows.length) add_by_distance(a, q, run, a.value_rows, a.Dv, at.d_out.rows, wide, at.ds, at.distances);
    for (long r = 0; r < q.height; ++r) {
      differentiate_row(a, q, run, r, a.lse[first_row + r], at.deltas[r], at.p + r * run_keys, at.ds + r * run_keys, at.factor);
      if (!a.d_bias.data && !a.d_slopes && !a.d_table) continue;
      for_each_segment(chunks_of(run, r), [&](long begin, long end) { add_gradients(a, q, run, part, r, begin, end, at.ds + r * run_keys); });
    }
    if (a.d_value_rows) {
      spread_by_distance(q, run, at.p, at.by_distance);
      add_to_table(a, q, run, a.value_rows, wide, at.by_distance, at.d_out.rows, a.d_value_rows + part_head * a.value_rows.length * wide,
                   at.distances);
    }
    if (a.d_rows || a.d_row_query) spread_by_distance(q, run, at.ds, at.by_distance);
    if (a.d_rows) {
      add_to_table(a, q, run, a.rows, deep, at.by_distance, at.row_query, a.d_rows + part_head * a.rows.length * deep, at.distances);
    }
    if (a.d_row_query) sum_by_distance(a, q, run, a.rows, deep, at.by_distance, at.d_row_query, at.distances);
    for (long r = 0; a.softcap && r < q.height; ++r) {
      for_each_segment(chunks_of(run, r), [&](long begin, long end) {
        for (long c = begin; c < end; c += W) vec(at.ds + r * run_keys + c) *= vec(at.slope + r * run_keys + c);
      });
    }
    product_down(a, run, q.height, wide, at.p, at.d_out, d_v + run.first * wide, at.narrowed);
    product_down(a, run, q.height, deep, at.ds, at.queries, d_k + run.first * deep, at.narrowed);
    product_along(a, run, q.height, deep, at.ds, met.keys, at.d_q, at.narrowed);
  });
  for (long r = 0; r < q.height; ++r) {
    for (long d = 0; d < a.D; ++d) a.d_q[(first_row + r) * a.D + d] = a.scale * at.d_q[r * deep + d];
    for (long d = 0; a.d_row_query && d < a.D; ++d) a.d_row_query[(first_row + r) * a.D + d] = a.scale * at.d_row_query[r * deep + d];
  }
}

/// Packs the keys and values of the tiles [begin, end) of all (b, key head).
template <class scalar> void pack(const Softmax<scalar>& a, long begin, long end) {
  const long tiles = tiles_of(a.M, key_tile);
  for (long t = begin; t < end; ++t) pack_tile(a, t / tiles / a.Hk, t / tiles % a.Hk, t % tiles * key_tile, at_tile(a, t));
}

/// Tasks [begin, end) of B * H * query tiles * splits. Early and late tiles alternate, since causal ones grow.
template <class scalar> void forward(const Softmax<scalar>& a, long begin, long end, scalar* scratch) {
  const long tiles = tiles_of(a.N, query_tile);
  for (long task = begin; task < end; ++task) {
    const long split = task % a.splits, head = task / a.splits / tiles, turn = task / a.splits % tiles,
               t = turn % 2 ? tiles - 1 - turn / 2 : turn / 2;
    forward_tile(a, share_of(a, query_tile_at(a, head / a.H, head % a.H, t), split), split, scratch);
  }
}

/// Sums of a key head that has one part: a cache holds them, and only what is done is written.
template <class scalar> void start_sums(const Softmax<scalar>& a, const BackwardRoom<scalar>& at) {
  const long keys = tiles_of(a.M, key_tile) * key_tile;
  for (long n = 0; n < keys * round_up<scalar>(a.D); ++n) at.d_k[n] = 0;
  for (long n = 0; n < keys * round_up<scalar>(a.Dv); ++n) at.d_v[n] = 0;
}
template <class scalar> void finish_sums(const Softmax<scalar>& a, const BackwardRoom<scalar>& at, long head) {
  const auto write = [&](const scalar* sums, long width, scalar factor, scalar* to) {
    const long padded = round_up<scalar>(width), row = narrow(a) ? 1 : padded, column = narrow(a) ? key_tile : 1;
    for (long m = 0; m < a.M; ++m) {
      const scalar* from = sums + m / key_tile * key_tile * padded + m % key_tile * row;
      for (long d = 0; d < width; ++d) to[(head * a.M + m) * width + d] = factor * from[d * column];
    }
  };
  write(at.d_k, a.D, narrow(a) ? a.rest : 1, a.d_k);
  write(at.d_v, a.Dv, 1, a.d_v);
}

/// Tasks [begin, end) of B * Hk * parts. A part takes every parts-th query tile of the query heads that share a key head.
template <class scalar> void backward(const Softmax<scalar>& a, long begin, long end, scalar* scratch) {
  const long group = a.H / a.Hk, tiles = tiles_of(a.N, query_tile);
  Room<scalar> room(scratch);
  const BackwardRoom<scalar> at(a, room);
  for (long task = begin; task < end; ++task) {
    const long head = task / a.parts, part = task % a.parts, b = head / a.Hk, hk = head % a.Hk;
    if (a.parts == 1) start_sums(a, at);
    for (long h = hk * group; h < (hk + 1) * group; ++h) {
      for (long t = part; t < tiles; t += a.parts) backward_tile(a, query_tile_at(a, b, h, t), part, scratch);
    }
    if (a.parts == 1) finish_sums(a, at, head);
  }
}

template <class scalar, template <class> class AnyRoom> long numbers_for(const Softmax<scalar>& a) { return numbers_of<AnyRoom<scalar>, scalar>(a); }

template <class scalar> constexpr SoftmaxEngine<scalar> engine{.pack = pack<scalar>,
                                                               .forward = forward<scalar>,
                                                               .few = few<scalar>,
                                                               .backward = backward<scalar>,
                                                               .forward_room = numbers_for<scalar, ForwardRoom>,
                                                               .few_room = numbers_for<scalar, FewRoom>,
                                                               .backward_room = numbers_for<scalar, BackwardRoom>,
                                                               .size_across = size_across<scalar>,
                                                               .size_along = size_along<scalar>,
                                                               .vector = 2 * lanes<scalar>};

}  // namespace

const SoftmaxEngine<float> softmax_float = engine<float>;
const SoftmaxEngine<double> softmax_double = engine<double>;

}  // namespace foveate::kernels::CPU_CAPABILITY
