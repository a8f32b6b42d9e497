// Arguments of the softmax engine: softmax attention over tiles of keys, forward and backward.
#pragma once

namespace foveate::kernels {

/// Rows of contiguous numbers: element (b, h, n, d) lies at data[b * batch + h * head + n * row + d].
template <class scalar> struct Rows {
  scalar* data;
  long batch, head, row;
};

/// Anything broadcast over [B,H,N,M]: strides may be 0. Absent where data is null.
template <class T> struct Plane {
  const T* data;
  long batch, head, row, column;
};

inline constexpr long query_tile = 64;
inline constexpr long key_tile = 64;                                      // keys and values are packed in tiles of this many
inline constexpr long run_tiles = 4;                                      // tiles scored together where they are neighbours
inline constexpr long run_distances = run_tiles * key_tile + query_tile;  // distances that a tile of queries meets in a run, and one

template <class scalar> struct Softmax {
  long B, H, Hk, N, M, D, Dv;
  Rows<const scalar> q, k, v;  // [B,H,N,D], [B,Hk,M,D], [B,Hk,M,Dv]
  scalar scale;
  long offset;                    // query i stands at key i + offset
  bool causal;                    // hides j > i + offset
  long window;                    // hides j <= i + offset - window; 0: no window
  Plane<scalar> bias;             // added to scaled scores
  Plane<unsigned char> mask;      // 0 hides
  const unsigned char* key_mask;  // [B,M], 0 hides; may be null
  const scalar* slopes;           // [H]: -slope |j - i - offset|; may be null
  const scalar* table;            // [H,table_length], read at j - i - offset + origin within its ends; may be null
  long table_length, origin;      // of table, rows and value_rows
  Rows<const scalar> row_query;   // [B,H,N,D]: rows[j - i - offset + origin] . row_query_i is added to the score
  const scalar* rows_across;      // [row_heads,D,table_length], times scale; may be null, forward only
  long row_heads;                 // 1 or H
  const scalar* value_rows;       // [value_row_heads,table_length,Dv rounded up]: added to the value; may be null, forward only
  long value_row_heads;

  // A pattern, where tile_start is not null: the key tiles that the query tile r = h * query tiles + t sees (h = 0 where all heads are
  // alike) are tiles[tile_start[r]] ... tiles[tile_start[r + 1] - 1], ascending; tile_mask, beside them, names the mask of a tile that
  // is seen in part, -1 where it is seen whole.
  const long* tile_start;
  const int* tiles;
  const int* tile_mask;
  long pattern_heads;
  const unsigned char* masks;  // [masks,query_tile,key_tile], 0 hides

  // Scratch, filled by pack(): per (b, key head) the tiles of scaled keys transposed [D,key_tile], of values transposed, of both as rows.
  scalar* keys_across;    // [B,Hk,tiles,D,key_tile]
  scalar* values_across;  // [B,Hk,tiles,Dv,key_tile], backward only
  scalar* keys;           // [B,Hk,tiles*key_tile,D rounded up], backward only
  scalar* values;         // [B,Hk,tiles*key_tile,Dv rounded up]

  scalar* out;  // [B,H,N,Dv]
  scalar* lse;  // [B,H,N]

  // Backward: out and lse are those of the forward.
  Rows<const scalar> d_out;  // [B,H,N,Dv]
  const scalar* d_lse;       // [B,H,N]; may be null
  scalar* d_q;               // [B,H,N,D]
  scalar* d_k_parts;         // [parts,B,Hk,tiles*key_tile,D rounded up], zero
  scalar* d_v_parts;         // [parts,B,Hk,tiles*key_tile,Dv rounded up], zero
  long parts;                // the query tiles of a head are shared out over this many tasks, each with its own sums
};

inline long tiles_of(long n, long tile) { return (n + tile - 1) / tile; }

}  // namespace foveate::kernels
