// Arguments of the kernels of product_keys and weighted_rows.
#pragma once
#include "kernels/rows.h"

namespace foveate::kernels {

inline constexpr long product_tile = 48;  // queries whose scores are computed at a time: a multiple of every height of a register tile

template <class scalar> struct ProductKeys {
  const scalar* q;       // [T,H,2,h]
  const scalar* panels;  // [tables,n / panel,h,panel]: keys across, panel = two vectors; zeros beyond n
  const scalar* keys;    // [tables,n,h]
  long head, half;       // tables from one head, or half, to the next: 0 where they share one
  long T, H, h, n, k;
  scalar* scores;          // [T,H,k]
  long* slots;             // [T,H,k]
  const scalar* d_scores;  // [T,H,k]
  scalar* d_q;             // [T,H,2,h]
  scalar* d_keys;          // [tables,n,h], zeros
  long tables, ranges;     // tasks of d_keys: each table in so many ranges of keys

  long table(long h_, long half_) const { return h_ * head + half_ * half; }
};

template <class scalar> struct WeightedRows {
  const void* values;  // [S,width], stored as `kind`
  Kind kind;
  const scalar* weights;  // [T,K]
  const long* index;      // [T,K]
  scalar* out;            // [T,width]
  const scalar* d_out;    // [T,width]
  scalar* d_weights;      // [T,K]
  const long* order;      // [T K] the places (t, j) by the row they read
  const long* start;      // [rows + 1] where the places of each row that was read begin
  scalar* d_values;       // [rows,width]
  long T, K, width;
};

template <class scalar> struct ProductKeysEngine {
  void (*choose)(const ProductKeys<scalar>&, long begin, long end, scalar* scratch);  ///< tasks: tiles of every head
  void (*d_q)(const ProductKeys<scalar>&, long begin, long end);                      ///< tasks: every (t, head)
  void (*d_keys)(const ProductKeys<scalar>&, long begin, long end);                   ///< tasks: ranges of every table
  long (*choose_room)(const ProductKeys<scalar>&);                                    ///< numbers of scratch
  void (*rows)(const WeightedRows<scalar>&, long begin, long end);                    ///< tasks: every t
  void (*d_weights)(const WeightedRows<scalar>&, long begin, long end);               ///< tasks: every t
  void (*d_values)(const WeightedRows<scalar>&, long begin, long end);                ///< tasks: every row that was read
  long panel;                                                                         ///< keys side by side
};

}  // namespace foveate::kernels
