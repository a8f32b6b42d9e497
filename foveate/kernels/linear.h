// Arguments of the linear engine: attention whose weights are products of features, by chunks with carried sums, or whole.
#pragma once
#include "kernels/rows.h"

namespace foveate::kernels {

inline constexpr long chunk = 64;  // keys, and the queries that stand beside them, that are met at a time

inline constexpr long part_rows = 1024;  // keys, or queries, that are summed by one task where there is no order

/// The denominator d(z) under q S; see ops/linear_attention.h.
enum class Divisor { none, add, clamp, clamp_abs, guard };

template <class scalar> struct Linear {
  long B, H, Hk, N, M, F, Dv;
  Rows q, k, v;                   // [B,H,N,F], [B,Hk,M,F], [B,Hk,M,Dv]
  long offset;                    // query i sees keys j <= i + offset
  const unsigned char* key_mask;  // [B,M], 0 hides; may be null
  const scalar* log_decay;        // [B,Hk,M]; may be null
  const scalar* beta;             // [B,Hk,M]: how strongly a key corrects the memory, the delta rule; may be null, needs no decay, no divisor
  const scalar *S, *z;            // [B,Hk,F,Dv], [B,Hk,F]: what came before; may be null
  Divisor divisor;
  scalar eps;

  scalar* out;                // [B,H,N,Dv]
  scalar *S_after, *z_after;  // like S and z; z is null with the delta rule, here and below

  // Backward: out is that of the forward, and so are the sums after all keys.
  Rows d_out;                           // [B,H,N,Dv]
  const scalar *d_S_after, *d_z_after;  // like S and z; may be null
  scalar *d_q, *d_k, *d_v, *d_S, *d_z;  // [B,H,N,F], [B,Hk,M,F], [B,Hk,M,Dv], like S, like z
  scalar *d_log_decay, *d_beta;         // [B,Hk,M]; may be null
  scalar *shares, *d_z_of;              // [B,H,N]: scratch, 1 / d and the gradient of q . z; null with the delta rule

  scalar* parts;  // without an order: [B,Hk,parts of keys, or of queries, numbers of sums]: scratch
};

}  // namespace foveate::kernels
