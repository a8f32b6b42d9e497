// The softmax engine. A tile of queries meets the keys it may see, a run of key tiles at a time: scores by one product, biases and
// hidden keys, then the online softmax of the forward or the recomputed probabilities of the backward. Nothing of size N x M exists.
#include "kernels/softmax.h"

#include "kernels/capability.h"
#include "kernels/gemm.h"

#include <math.h>

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

constexpr long run_keys = run_tiles * key_tile;

long least(long a, long b) { return a < b ? a : b; }
long most(long a, long b) { return a > b ? a : b; }

/// One tile of queries of one head, and the keys that any of them may see.
struct QueryTile {
  long b, h, hk;
  long first, height;  // queries [first, first + height)
  long begin, end;     // keys
};

template <class scalar> QueryTile query_tile_at(const Softmax<scalar>& a, long b, long h, long t) {
  QueryTile q{
      .b = b, .h = h, .hk = h / (a.H / a.Hk), .first = t * query_tile, .height = least(query_tile, a.N - t * query_tile), .begin = 0, .end = a.M};
  if (a.causal) q.end = most(0, least(a.M, q.first + q.height + a.offset));
  if (a.window) q.begin = least(q.end, most(0, q.first + a.offset - a.window + 1) / key_tile * key_tile);
  return q;
}

/// Rows of one (b, h), from query or key `n`.
template <class scalar> scalar* at(const Rows<scalar>& rows, long b, long h, long n) {
  return rows.data + b * rows.batch + h * rows.head + n * rows.row;
}

/// Copies `height` rows of `width` numbers to rows of `padded`, the rest zero.
template <class scalar> void copy_rows(const scalar* from, long from_row, long height, long width, scalar* to, long padded) {
  for (long r = 0; r < height; ++r) {
    for (long d = 0; d < width; ++d) to[r * padded + d] = from[r * from_row + d];
    for (long d = width; d < padded; ++d) to[r * padded + d] = 0;
  }
}

/// Copies `height` rows to a transposed tile [width,key_tile], times `factor`; keys beyond them are zero.
template <class scalar> void copy_across(const scalar* from, long from_row, long height, long width, scalar factor, scalar* to) {
  for (long d = 0; d < width; ++d) {
    for (long r = 0; r < height; ++r) to[d * key_tile + r] = factor * from[r * from_row + d];
    for (long r = height; r < key_tile; ++r) to[d * key_tile + r] = 0;
  }
}

/// Keys [first, first + width) that a tile of queries meets together; `masks` names the masks of their tiles, null where they have none.
struct KeyRun {
  long first, width;
  const int* masks;
};

/// Calls f(run) for the keys that a tile of queries may see, neighbouring tiles together.
template <class scalar, class F> void for_each_run(const Softmax<scalar>& a, const QueryTile& q, const F& f) {
  if (!a.tile_start) {
    for (long j0 = q.begin; j0 < q.end; j0 += run_keys) f(KeyRun{j0, least(run_keys, q.end - j0), nullptr});
    return;
  }
  const long row = (a.pattern_heads > 1 ? q.h * tiles_of(a.N, query_tile) : 0) + q.first / query_tile;
  for (long e = a.tile_start[row]; e < a.tile_start[row + 1];) {
    long count = 1;
    while (count < run_tiles && e + count < a.tile_start[row + 1] && a.tiles[e + count] == a.tiles[e] + count) ++count;
    const long first = a.tiles[e] * key_tile;
    f(KeyRun{first, least(count * key_tile, a.M - first), a.tile_mask + e});
    e += count;
  }
}

/// Where the distances of a run lie in a table: column c of row r of the scores is at distance number c + height - 1 - r, and number n
/// is entry n + `first` of the table, or its nearest end.
struct Distances {
  long first, count;
};

template <class scalar> Distances distances_of(const Softmax<scalar>& a, const QueryTile& q, const KeyRun& run) {
  return {run.first - (q.first + q.height - 1 + a.offset) + a.origin, run.width + q.height - 1};
}

template <class scalar> long entry(const Softmax<scalar>& a, long n) { return most(0, least(a.table_length - 1, n)); }

/// Adds what the distance to each key is worth to the queries: one product with the rows of all distances, read along diagonals.
template <class scalar> void add_rows(const Softmax<scalar>& a, const QueryTile& q, const KeyRun& run, scalar* s, scalar* scratch) {
  const Distances d = distances_of(a, q, run);
  const long padded = round_up<scalar>(d.count);
  scalar* rows = scratch;                      // [D,run_distances]
  scalar* worth = rows + a.D * run_distances;  // [height,run_distances]
  const scalar* table = a.rows_across + (a.row_heads > 1 ? q.h : 0) * a.D * a.table_length;
  for (long k = 0; k < a.D; ++k) {
    for (long n = 0; n < d.count; ++n) rows[k * run_distances + n] = table[k * a.table_length + entry(a, n + d.first)];
    for (long n = d.count; n < padded; ++n) rows[k * run_distances + n] = 0;
  }
  gemm<false>(q.height, padded, a.D, Left<scalar>{at(a.row_query, q.b, q.h, q.first), a.row_query.row, 1}, Right<scalar>{rows, run_distances}, worth,
              run_distances);
  for (long r = 0; r < q.height; ++r) {
    const scalar* diagonal = worth + r * run_distances + q.height - 1 - r;
    for (long c = 0; c < run.width; ++c) s[r * run_keys + c] += diagonal[c];
  }
}

/// Adds to the sums the probabilities of each distance times its value row.
template <class scalar> void add_value_rows(const Softmax<scalar>& a, const QueryTile& q, const KeyRun& run, const scalar* p, scalar* sums,
                                            scalar* scratch) {
  const Distances d = distances_of(a, q, run);
  const long wide = round_up<scalar>(a.Dv);
  scalar* rows = scratch;                             // [count,wide]
  scalar* by_distance = rows + run_distances * wide;  // [height,run_distances]
  const scalar* table = a.value_rows + (a.value_row_heads > 1 ? q.h : 0) * a.table_length * wide;
  for (long n = 0; n < d.count; ++n) {
    for (long k = 0; k < wide; ++k) rows[n * wide + k] = table[entry(a, n + d.first) * wide + k];
  }
  for (long r = 0; r < q.height; ++r) {
    scalar* row = by_distance + r * run_distances;
    for (long n = 0; n < d.count; ++n) row[n] = 0;
    for (long c = 0; c < run.width; ++c) row[c + q.height - 1 - r] = p[r * run_keys + c];
  }
  gemm<true>(q.height, wide, d.count, Left<scalar>{by_distance, run_distances, 1}, Right<scalar>{rows, wide}, sums, wide);
}

/// s[r,c] for queries of the tile and keys of the run: scaled, biased, -infinity where hidden and beyond the run.
template <class scalar> void score(const Softmax<scalar>& a, const QueryTile& q, const KeyRun& run, scalar* s, scalar* scratch) {
  const long j0 = run.first, width = run.width;
  const long tiles = tiles_of(a.M, key_tile), padded = tiles_of(width, key_tile) * key_tile;
  const scalar* keys = a.keys_across + ((q.b * a.Hk + q.hk) * tiles + j0 / key_tile) * a.D * key_tile;
  for (long c = 0; c < padded; c += key_tile) {
    gemm<false>(q.height, key_tile, a.D, Left<scalar>{at(a.q, q.b, q.h, q.first), a.q.row, 1}, Right<scalar>{keys + c * a.D, key_tile}, s + c,
                run_keys);
  }
  if (a.rows_across) add_rows(a, q, run, s, scratch);
  const scalar hidden = -static_cast<scalar>(infinity);
  const long first_last = q.first + a.offset, last_last = first_last + q.height - 1;  // last keys of the first and of the last query
  const bool cut = (a.causal && j0 + width - 1 > first_last) || (a.window && j0 <= last_last - a.window);
  bool masked = false;
  for (long t = 0; run.masks && t < padded / key_tile; ++t) masked = masked || run.masks[t] >= 0;
  const bool plain = !a.bias.data && !a.mask.data && !a.key_mask && !a.slopes && !a.table && !cut && !masked && padded == width;
  if (plain) return;
  for (long r = 0; r < q.height; ++r) {
    scalar* row = s + r * run_keys;  // [padded]
    const long i = q.first + r, here = i + a.offset;
    if (a.bias.data) {
      const scalar* bias = a.bias.data + q.b * a.bias.batch + q.h * a.bias.head + i * a.bias.row + j0 * a.bias.column;
      if (a.bias.column == 1) {
        for (long c = 0; c < width; ++c) row[c] += bias[c];
      } else {
        for (long c = 0; c < width; ++c) row[c] += bias[c * a.bias.column];
      }
    }
    if (a.slopes) {
      const scalar slope = a.slopes[q.h];
      for (long c = 0; c < width; ++c) row[c] -= slope * static_cast<scalar>(j0 + c > here ? j0 + c - here : here - j0 - c);
    }
    if (a.table) {
      const scalar* table = a.table + q.h * a.table_length;
      for (long c = 0; c < width; ++c) row[c] += table[most(0, least(a.table_length - 1, j0 + c - here + a.origin))];
    }
    if (a.mask.data) {
      const unsigned char* mask = a.mask.data + q.b * a.mask.batch + q.h * a.mask.head + i * a.mask.row + j0 * a.mask.column;
      for (long c = 0; c < width; ++c) row[c] = mask[c * a.mask.column] ? row[c] : hidden;
    }
    if (a.key_mask) {
      const unsigned char* mask = a.key_mask + q.b * a.M + j0;
      for (long c = 0; c < width; ++c) row[c] = mask[c] ? row[c] : hidden;
    }
    for (long t = 0; masked && t < padded / key_tile; ++t) {
      if (run.masks[t] < 0) continue;
      const unsigned char* mask = a.masks + (run.masks[t] * query_tile + r) * key_tile;
      for (long c = 0; c < key_tile; ++c) row[t * key_tile + c] = mask[c] ? row[t * key_tile + c] : hidden;
    }
    if (cut) {
      const long seen_begin = a.window ? most(0, least(width, here - a.window + 1 - j0)) : 0;
      const long seen_end = a.causal ? most(0, least(width, here + 1 - j0)) : width;
      for (long c = 0; c < seen_begin; ++c) row[c] = hidden;
      for (long c = seen_end; c < width; ++c) row[c] = hidden;
    }
    for (long c = width; c < padded; ++c) row[c] = hidden;
  }
}

/// Forward of one tile: out and lse of its queries. Scratch: scores [query_tile,run_keys], sums [query_tile,Dv rounded up], tops, totals,
/// and what add_rows and add_value_rows need.
template <class scalar> void forward_tile(const Softmax<scalar>& a, const QueryTile& q, scalar* scratch) {
  constexpr long W = lanes<scalar>;
  const long wide = round_up<scalar>(a.Dv), tiles = tiles_of(a.M, key_tile);
  scalar* s = scratch;
  scalar* sums = s + query_tile * run_keys;
  scalar* tops = sums + query_tile * wide;
  scalar* totals = tops + query_tile;
  scalar* distances = totals + query_tile;
  for (long r = 0; r < q.height; ++r) {
    tops[r] = -static_cast<scalar>(infinity);
    totals[r] = 0;
    for (long d = 0; d < wide; d += W) vec(sums + r * wide + d) = Vec<scalar>{};
  }
  for_each_run(a, q, [&](const KeyRun& run) {
    const long padded = tiles_of(run.width, key_tile) * key_tile;
    score(a, q, run, s, distances);
    for (long r = 0; r < q.height; ++r) {
      scalar* row = s + r * run_keys;
      Vec<scalar> high = vec(row);
      for (long c = W; c < padded; c += W) high = vec(row + c) > high ? vec(row + c) : high;
      const scalar best = highest<scalar>(high), top = best <= tops[r] ? tops[r] : best;  // of a NaN, the NaN
      if (top == -static_cast<scalar>(infinity)) {                                        // nothing seen yet
        for (long c = 0; c < padded; c += W) vec(row + c) = Vec<scalar>{};
        continue;
      }
      const Vec<scalar> shift = splat(top);
      Vec<scalar> sum{};
      for (long c = 0; c < padded; c += W) {
        const Vec<scalar> p = exp(vec(row + c) - shift);
        vec(row + c) = p;
        sum += p;
      }
      if (top > tops[r]) {
        const scalar fade = exp(splat(tops[r] - top))[0];
        totals[r] *= fade;
        for (long d = 0; d < wide; d += W) vec(sums + r * wide + d) *= splat(fade);
        tops[r] = top;
      }
      totals[r] += total<scalar>(sum);
    }
    const scalar* values = a.values + ((q.b * a.Hk + q.hk) * tiles * key_tile + run.first) * wide;
    gemm<true>(q.height, wide, padded, Left<scalar>{s, run_keys, 1}, Right<scalar>{values, wide}, sums, wide);
    if (a.value_rows) add_value_rows(a, q, run, s, sums, distances);
  });
  for (long r = 0; r < q.height; ++r) {
    const long row = (q.b * a.H + q.h) * a.N + q.first + r;
    const scalar share = totals[r] > 0 ? 1 / totals[r] : 0;  // a query that sees nothing gives zeros
    for (long d = 0; d < a.Dv; ++d) a.out[row * a.Dv + d] = share * sums[r * wide + d];
    a.lse[row] = totals[r] > 0 ? tops[r] + static_cast<scalar>(log(static_cast<double>(totals[r]))) : -static_cast<scalar>(infinity);
  }
}

/// Backward of one tile: d_q of its queries, and what they add to d_k and d_v of this part.
///   p = exp(s - lse);  dv += p^T do;  ds = p (do v^T - delta), delta = do.out - dlse;  dq = scale ds k;  dk += scale ds^T q
template <class scalar> void backward_tile(const Softmax<scalar>& a, const QueryTile& q, long part, scalar* scratch) {
  constexpr long W = lanes<scalar>;
  const long wide = round_up<scalar>(a.Dv), deep = round_up<scalar>(a.D), tiles = tiles_of(a.M, key_tile);
  scalar* p = scratch;
  scalar* ds = p + query_tile * run_keys;
  scalar* d_out = ds + query_tile * run_keys;   // [height,wide]
  scalar* queries = d_out + query_tile * wide;  // [height,deep]
  scalar* d_q = queries + query_tile * deep;    // [height,deep]
  scalar* deltas = d_q + query_tile * deep;
  const long first_row = (q.b * a.H + q.h) * a.N + q.first;
  copy_rows(at(a.d_out, q.b, q.h, q.first), a.d_out.row, q.height, a.Dv, d_out, wide);
  copy_rows(at(a.q, q.b, q.h, q.first), a.q.row, q.height, a.D, queries, deep);
  for (long r = 0; r < q.height; ++r) {
    deltas[r] = a.d_lse ? -a.d_lse[first_row + r] : 0;
    for (long d = 0; d < a.Dv; ++d) deltas[r] += d_out[r * wide + d] * a.out[(first_row + r) * a.Dv + d];
    for (long d = 0; d < deep; d += W) vec(d_q + r * deep + d) = Vec<scalar>{};
  }
  const long head = q.b * a.Hk + q.hk;
  for_each_run(a, q, [&](const KeyRun& run) {
    const long padded = tiles_of(run.width, key_tile) * key_tile, key = head * tiles * key_tile + run.first;
    score(a, q, run, p, deltas + query_tile);
    for (long c = 0; c < padded; c += key_tile) {
      gemm<false>(q.height, key_tile, a.Dv, Left<scalar>{d_out, wide, 1}, Right<scalar>{a.values_across + (key + c) * a.Dv, key_tile}, ds + c,
                  run_keys);
    }
    for (long r = 0; r < q.height; ++r) {
      const scalar lse = a.lse[first_row + r];
      scalar *p_r = p + r * run_keys, *ds_r = ds + r * run_keys;
      if (lse == -static_cast<scalar>(infinity)) {  // saw nothing: no gradient
        for (long c = 0; c < padded; c += W) vec(p_r + c) = vec(ds_r + c) = Vec<scalar>{};
        continue;
      }
      for (long c = 0; c < padded; c += W) {
        vec(p_r + c) = exp(vec(p_r + c) - splat(lse));
        vec(ds_r + c) = vec(p_r + c) * (vec(ds_r + c) - splat(deltas[r])) * splat(a.scale);
      }
    }
    const long summed = part * a.B * a.Hk * tiles * key_tile + key;
    gemm<true>(padded, wide, q.height, Left<scalar>{p, 1, run_keys}, Right<scalar>{d_out, wide}, a.d_v_parts + summed * wide, wide);
    gemm<true>(padded, deep, q.height, Left<scalar>{ds, 1, run_keys}, Right<scalar>{queries, deep}, a.d_k_parts + summed * deep, deep);
    gemm<true>(q.height, deep, padded, Left<scalar>{ds, run_keys, 1}, Right<scalar>{a.keys + key * deep, deep}, d_q, deep);
  });
  for (long r = 0; r < q.height; ++r) {
    for (long d = 0; d < a.D; ++d) a.d_q[(first_row + r) * a.D + d] = d_q[r * deep + d];
  }
}

/// Packs the keys and values of the tiles [begin, end) of all (b, key head).
template <class scalar> void pack(const Softmax<scalar>& a, long begin, long end) {
  const long tiles = tiles_of(a.M, key_tile), wide = round_up<scalar>(a.Dv), deep = round_up<scalar>(a.D);
  for (long t = begin; t < end; ++t) {
    const long head = t / tiles, first = t % tiles * key_tile, height = least(key_tile, a.M - first);
    const scalar *k = at(a.k, head / a.Hk, head % a.Hk, first), *v = at(a.v, head / a.Hk, head % a.Hk, first);
    copy_across(k, a.k.row, height, a.D, a.scale, a.keys_across + t * a.D * key_tile);
    copy_rows(v, a.v.row, height, a.Dv, a.values + t * key_tile * wide, wide);
    for (long i = height * wide; i < key_tile * wide; ++i) a.values[t * key_tile * wide + i] = 0;  // 0 times a NaN would be a NaN
    if (!a.keys) continue;
    copy_across(v, a.v.row, height, a.Dv, scalar{1}, a.values_across + t * a.Dv * key_tile);
    copy_rows(k, a.k.row, height, a.D, a.keys + t * key_tile * deep, deep);
    for (long i = height * deep; i < key_tile * deep; ++i) a.keys[t * key_tile * deep + i] = 0;
  }
}

/// Tasks [begin, end) of B * H * query tiles. Early and late tiles alternate, since causal ones grow.
template <class scalar> void forward(const Softmax<scalar>& a, long begin, long end, scalar* scratch) {
  const long tiles = tiles_of(a.N, query_tile);
  for (long task = begin; task < end; ++task) {
    const long head = task / tiles, turn = task % tiles, t = turn % 2 ? tiles - 1 - turn / 2 : turn / 2;
    forward_tile(a, query_tile_at(a, head / a.H, head % a.H, t), scratch);
  }
}

/// Tasks [begin, end) of B * Hk * parts. A part takes every parts-th query tile of the query heads that share a key head.
template <class scalar> void backward(const Softmax<scalar>& a, long begin, long end, scalar* scratch) {
  const long group = a.H / a.Hk, tiles = tiles_of(a.N, query_tile);
  for (long task = begin; task < end; ++task) {
    const long head = task / a.parts, part = task % a.parts, b = head / a.Hk, hk = head % a.Hk;
    for (long h = hk * group; h < (hk + 1) * group; ++h) {
      for (long t = part; t < tiles; t += a.parts) backward_tile(a, query_tile_at(a, b, h, t), part, scratch);
    }
  }
}

template <class scalar> constexpr SoftmaxEngine<scalar> engine{
    .pack = pack<scalar>, .forward = forward<scalar>, .backward = backward<scalar>, .vector = 2 * lanes<scalar>};

}  // namespace

const SoftmaxEngine<float> softmax_float = engine<float>;
const SoftmaxEngine<double> softmax_double = engine<double>;

}  // namespace foveate::kernels::CPU_CAPABILITY
