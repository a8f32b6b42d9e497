// Which scores are computed: a tile of queries, the runs of keys that it meets, and in each run the chunks of keys that matter.
#pragma once
#include "kernels/gemm.h"
#include "kernels/softmax.h"

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

/// One tile of queries of one head, and the keys that any of them may see.
struct QueryTile {
  long b, h, hk;
  long first, height;  // queries [first, first + height)
  long begin, end;     // keys
};

template <class scalar> QueryTile query_tile_at(const Softmax<scalar>& a, long b, long h, long t) {
  QueryTile q{
      .b = b, .h = h, .hk = h / (a.H / a.Hk), .first = t * query_tile, .height = least(query_tile, a.N - t * query_tile), .begin = 0, .end = a.M};
  if (a.causal) q.end = clamped(q.first + q.height + a.offset, 0, a.M);
  if (a.window) q.begin = least(q.end, most(0, q.first + a.offset - a.window + 1) / key_tile * key_tile);
  return q;
}

/// The share of one split among the keys of a tile of queries.
template <class scalar> QueryTile share_of(const Softmax<scalar>& a, QueryTile q, long split) {
  if (a.splits == 1) return q;
  const long tiles = tiles_of(q.end - q.begin, key_tile), from = q.begin;
  q.begin = least(q.end, from + tiles * split / a.splits * key_tile);
  q.end = least(q.end, from + tiles * (split + 1) / a.splits * key_tile);
  return q;
}

constexpr long groups = (query_tile + register_rows - 1) / register_rows;  // of rows that a product handles together

/// Keys [first, first + width) that a tile of queries meets together.
struct Run {
  long first, width, padded;      // padded: to whole chunks of a product
  const int* masks;               // of its tiles, null where there are none
  bool whole;                     // every chunk matters to every group
  bool cut;                       // causality or the window hides some of its keys
  bool masked;                    // a mask of the pattern does
  unsigned short chunks[groups];  // bit c: chunk c matters to some query of the group

  bool all_of_tile(long t) const {
    for (const unsigned short bits : chunks) {
      if ((bits >> (t * (key_tile / chunk_keys)) & 15) != 15) return false;
    }
    return true;
  }
};

/// Calls f(begin, end) for each run of chunks in `bits`, in keys.
template <class F> inline void for_each_segment(unsigned bits, const F& f) {
  for (long c = 0; bits >> c; ++c) {
    if (!(bits >> c & 1)) continue;
    const long begin = c;
    while (bits >> c & 1) ++c;
    f(begin * chunk_keys, c * chunk_keys);
  }
}

template <class scalar> Run run_at(const Softmax<scalar>& a, const QueryTile& q, long first, long width, const int* masks) {
  Run run{.first = first,
          .width = width,
          .padded = tiles_of(width, key_tile) * key_tile,
          .masks = masks,
          .whole = true,
          .cut = false,
          .masked = false,
          .chunks = {}};
  const long here = q.first + a.offset - first;  // the column of the first query
  run.cut = (a.causal && width - 1 > here) || (a.window && here + q.height - 1 >= a.window);
  const long tiles = run.padded / key_tile;
  for (long t = 0; masks && t < tiles; ++t) run.masked = run.masked || masks[t] >= 0;
  const unsigned all = (1u << tiles_of(width, chunk_keys)) - 1;
  for (long g = 0; g < groups; ++g) {
    const long r0 = g * register_rows, r1 = least(q.height, r0 + register_rows);
    unsigned bits = r0 < r1 ? all : 0;
    if (a.causal) bits &= (1u << tiles_of(clamped(here + r1, 0, width), chunk_keys)) - 1;
    if (a.window) bits &= ~((1u << clamped(here + r0 - a.window + 1, 0, width) / chunk_keys) - 1);
    for (long t = 0; run.masked && t < tiles; ++t) {
      if (masks[t] < 0) continue;
      unsigned seen = 0;
      for (long r = r0; r < r1; ++r) seen |= a.chunks[masks[t] * a.mask_height + r];
      bits &= ~(15u << 4 * t) | seen << 4 * t;
    }
    if (2 * lanes<scalar> > chunk_keys) bits |= (bits << 1 & 0xaaaau) | (bits >> 1 & 0x5555u);  // products take chunks in pairs
    run.chunks[g] = static_cast<unsigned short>(bits);
    run.whole = run.whole && (r0 >= q.height || bits == (1u << run.padded / chunk_keys) - 1);
  }
  return run;
}

/// Of so many neighbouring tiles, how many the next run takes: runs of about equal length, none too long.
inline long fair_share(long tiles) { return tiles_of(tiles, tiles_of(tiles, run_tiles)); }

/// Calls f(run) for the keys that a tile of queries may see, neighbouring tiles together.
template <class scalar, class F> void for_each_run(const Softmax<scalar>& a, const QueryTile& q, const F& f) {
  const long row = (a.pattern_heads > 1 ? q.h * tiles_of(a.N, query_tile) : 0) + q.first / query_tile;
  const long first = a.tile_start ? a.tile_start[row] : q.begin / key_tile, last = a.tile_start ? a.tile_start[row + 1] : tiles_of(q.end, key_tile);
  const unsigned char* seen_tiles = a.seen_tiles ? a.seen_tiles + q.b * tiles_of(a.M, key_tile) : nullptr;
  const auto tile = [&](long e) { return a.tile_start ? a.tiles[e] : e; };
  const auto seen = [&](long e) { return (!seen_tiles || seen_tiles[tile(e)]) && tile(e) * key_tile < q.end && (tile(e) + 1) * key_tile > q.begin; };
  for (long e = first; e < last;) {
    long count = 0;
    while (count < 2 * run_tiles && e + count < last && tile(e + count) == tile(e) + count && seen(e + count)) ++count;
    if (count == 0) {
      ++e;
      continue;
    }
    count = fair_share(count);
    const long key = tile(e) * key_tile;
    f(run_at(a, q, key, least(count * key_tile, q.end - key), a.tile_start ? a.tile_mask + e : nullptr));
    e += count;
  }
}

/// Whether some query of the tile is asked for: it stands in line, and no mask leaves it out.
template <class scalar> bool asked(const Softmax<scalar>& a, const QueryTile& q) {
  if (!a.query_mask && !a.q.index) return true;
  for (long i = q.first; i < q.first + q.height; ++i) {
    if (a.q.place(q.b, q.h, i) >= 0 && (!a.query_mask || a.query_mask[q.b * a.N + i])) return true;
  }
  return false;
}

/// The chunks that matter to the query at row r.
inline unsigned chunks_of(const Run& run, long r) { return run.chunks[r / register_rows]; }

/// s [height,padded] (+)= x [height,depth] times the packed tiles of the run, transposed [depth,key_tile] each: what matters of it.
template <class scalar> void product_across(const Run& run, long height, long depth, Left<scalar> x, const scalar* tiles, scalar* s) {
  for (long t = 0; t < run.padded / key_tile; ++t) {
    const scalar* tile = tiles + t * depth * key_tile;
    scalar* to = s + t * key_tile;
    if (run.all_of_tile(t) || run.whole) {
      gemm<false>(height, key_tile, depth, x, Right<scalar>{tile, key_tile}, to, run_keys);
      continue;
    }
    for (long r = 0; r < height; r += register_rows) {
      for_each_segment(chunks_of(run, r) >> 4 * t & 15, [&](long begin, long end) {
        gemm<false>(least(register_rows, height - r), end - begin, depth, x.from(r), Right<scalar>{tile + begin, key_tile}, to + r * run_keys + begin,
                    run_keys);
      });
    }
  }
}

/// sums [height,width] += p [height,padded] times rows [padded,width]: what matters of it.
template <class scalar> void product_along(const Run& run, long height, long width, const scalar* p, const scalar* rows, scalar* sums) {
  if (run.whole) {
    gemm<true>(height, width, run.padded, Left<scalar>{p, run_keys, 1}, Right<scalar>{rows, width}, sums, width);
    return;
  }
  for (long d = 0; d < width; d += 2 * lanes<scalar>) {  // all queries meet a panel of the rows while it is near
    for (long r = 0; r < height; r += register_rows) {
      for_each_segment(chunks_of(run, r), [&](long begin, long end) {
        gemm<true>(least(register_rows, height - r), 2 * lanes<scalar>, end - begin, Left<scalar>{p + r * run_keys + begin, run_keys, 1},
                   Right<scalar>{rows + begin * width + d, width}, sums + r * width + d, width);
      });
    }
  }
}

/// sums [padded,width] += p^T [padded,height] times rows [height,width]: what matters of it; p is 0 in chunks that do not matter.
template <class scalar> void product_down(const Run& run, long height, long width, const scalar* p, const scalar* rows, scalar* sums) {
  struct Span {
    long begin, end;
  };
  const auto rows_of = [&](long chunk) {
    Span span{height, 0};
    for (long g = 0; g < groups; ++g) {
      if (run.whole || run.chunks[g] >> chunk & 1)
        span = {least(span.begin, g * register_rows), most(span.end, least(height, (g + 1) * register_rows))};
    }
    return span;
  };
  const long chunks = run.padded / chunk_keys;
  for (long c = 0; c < chunks;) {
    const long first = c;
    const Span span = rows_of(c);
    for (++c; c < chunks; ++c) {
      const Span next = rows_of(c);
      if (next.begin != span.begin || next.end != span.end) break;
    }
    if (span.begin >= span.end) continue;
    gemm<true>((c - first) * chunk_keys, width, span.end - span.begin, Left<scalar>{p + span.begin * run_keys + first * chunk_keys, 1, run_keys},
               Right<scalar>{rows + span.begin * width, width}, sums + first * chunk_keys * width, width);
  }
}

}  // namespace
}  // namespace foveate::kernels::CPU_CAPABILITY
