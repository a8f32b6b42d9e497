// Arguments of the softmax engine: softmax attention over tiles of keys, forward and backward.
#pragma once
#include "kernels/rows.h"

namespace foveate::kernels {

/// Anything broadcast over [B,H,N,M]: strides may be 0. Absent where data is null.
template <class T> struct Plane {
  T* data;
  long batch, head, row, column;
};

/// A table read at the distance of a key, j - i - offset + origin, within its ends. Absent where length is 0.
template <class scalar> struct ByDistance {
  long length, heads;    // heads: 1 or H
  const scalar* along;   // [heads,length,width rounded up]
  const scalar* across;  // [heads,width,length]
};

inline constexpr long query_tile = 64;
inline constexpr long key_tile = 64;  // keys and values are packed in tiles of this many
inline constexpr long run_tiles = 4;  // tiles scored together where they are neighbours
inline constexpr long run_keys = run_tiles * key_tile;
inline constexpr long distance_row = run_keys + 2 * query_tile;  // room for the distances that a tile of queries meets in a run
inline constexpr long chunk_keys = 16;                           // what is hidden is left out in chunks of this many keys
inline constexpr long few_rows = 16;                             // so many queries of a key head, or fewer, read the keys where they lie

template <class scalar> struct Softmax {
  long B, H, Hk, N, M, D, Dv;
  Rows q, k, v;  // [B,H,N,D], [B,Hk,M,D], [B,Hk,M,Dv]
  scalar scale;
  scalar softcap;                   // 0: none
  long offset;                      // query i stands at key i + offset
  bool causal;                      // hides j > i + offset
  long window;                      // hides j <= i + offset - window; 0: no window
  Plane<const scalar> bias;         // added to scaled scores
  Plane<const unsigned char> mask;  // 0 hides
  const unsigned char* key_mask;    // [B,key_rows], 0 hides; may be null
  long key_rows;                    // M, if no index puts keys in line
  const unsigned char* seen_tiles;  // [B,tiles], 0 where key_mask hides all of a tile; may be null
  const unsigned char* query_mask;  // [B,N], 0 where a query gets zeros; may be null
  const scalar* slopes;             // [H]: -slope |j - i - offset|; may be null
  long origin;                      // entry of distance 0 in what follows
  ByDistance<scalar> table;         // added to the score; width 1, `along` is not rounded up
  ByDistance<scalar> rows;          // rows[distance] . scale row_query_i is added to the score
  Rows row_query;                   // [B,H,N,D]
  ByDistance<scalar> value_rows;    // added to the value

  // Dropout: a draw given (keep), or one made from `seed` (where drawn): a probability is kept where its hash is at least `threshold`.
  Plane<const unsigned char> keep;
  bool drawn;
  unsigned seed, threshold;
  scalar kept_share;  // 1 / (1 - probability of dropping)

  // A pattern, where tile_start is not null: the key tiles that the query tile r = h * query tiles + t sees (h = 0 where all heads are
  // alike) are tiles[tile_start[r]] ... tiles[tile_start[r + 1] - 1], ascending; tile_mask, beside them, names the mask of a tile that
  // is seen in part, -1 where it is seen whole.
  const long* tile_start;
  const int* tiles;
  const int* tile_mask;
  long pattern_heads, mask_height;
  const unsigned char* masks;   // [masks,mask_height,key_tile], 0 hides
  const unsigned char* chunks;  // [masks,mask_height]: bit c is set where some key of chunk c is seen

  // Where q, k and v are bfloat16 and the processor multiplies tiles of it: c [m,n] = or += a [m,k] b, b as pairs of rows [k/2,n,2]. Else
  // null.
  void (*multiply)(long m, long n, long k, long a_row, long b_row, long c_row, bool add, const unsigned short* a, const void* b, scalar* c);
  scalar rest;  // the scale, over the power of two at or below it

  // Filled by pack(), unless rows lie already as they are wanted (whole_keys, whole_values): per (b, key head) the tiles of keys transposed
  // [D,key_tile], of values transposed, of both as rows. Null where each tile of keys is met once: such runs are packed as they are met.
  scalar* keys_across;    // [B,Hk,tiles,D,key_tile]
  scalar* values_across;  // [B,Hk,tiles,Dv,key_tile], backward only
  scalar* keys;           // [B,Hk,tiles*key_tile,D rounded up], backward only
  scalar* values;         // [B,Hk,tiles*key_tile,Dv rounded up]; for narrow products half as much of all four, see softmax_pack.h
  bool whole_keys, whole_values;

  // Results of the forward, and what the backward starts from. Where few queries meet many keys, the keys are split, and each part has
  // results of its own.
  long splits;
  scalar* out;  // [splits,B,H,N,Dv]
  scalar* lse;  // [splits,B,H,N]

  Rows d_out;           // [B,H,N,Dv]
  const scalar* d_lse;  // [B,H,N]; may be null
  scalar* d_q;          // [B,H,N,D]
  scalar* d_row_query;  // [B,H,N,D]; may be null, as may all that follow

  // Sums over queries: the query tiles of a head are shared out over `parts` tasks, each with its own sums, zero before.
  long parts;
  scalar* d_k;           // [parts,B,Hk,tiles*key_tile,D rounded up], zeros to add to; of one part [B,Hk,M,D], to be written
  scalar* d_v;           // [parts,B,Hk,tiles*key_tile,Dv rounded up], likewise; where narrow, many parts are [...,tiles,D rounded up,key_tile]
  scalar* d_slopes;      // [parts,B,H]
  scalar* d_table;       // [parts,B,H,table.length]
  scalar* d_rows;        // [parts,B,H,rows.length,D rounded up]
  scalar* d_value_rows;  // [parts,B,H,value_rows.length,Dv rounded up]
  Plane<scalar> d_bias;
  long d_bias_part;  // from one part's d_bias to the next; 0 where parts meet different queries' biases
};

}  // namespace foveate::kernels
