// Arguments of the kernels of attention along edges.
#pragma once

namespace foveate::kernels {

/// Edges of list (b, g), g = h if there are as many lists as heads, else 0; sorted by query: those of query n are entries
/// row[n] ... row[n + 1] - 1 of `key`, distinct, in the order in which they were listed.
template <class scalar> struct Edges {
  long B, H, G, N, M, L, D, Dv;
  // As listed.
  const long *to, *from;  // [B,G,L] with these strides; from may be null: L/N for each query
  long to_batch, to_list, from_batch, from_list;
  const unsigned char* key_mask;  // [B,M], may be null
  // Sorted.
  long* row;     // [B,G,N+1]
  long* key;     // [B,G,L]
  long* degree;  // [B,G,N]

  const scalar *q, *k, *v;  // [B,H,N,D], [B,H,M,D], [B,H,M,Dv]
  scalar *out, *lse;        // [B,H,N,Dv], [B,H,N]
  scalar scale;
  bool drops;
  unsigned seed, threshold;  // a weight is kept where its hash is at least `threshold`
  scalar kept_share;

  // Gradients.
  const scalar *d_out, *d_lse;  // d_lse may be null
  scalar *weight, *d_score;     // [B,H,L] of each entry: what multiplies its value, and the gradient of q.k
  scalar *d_q, *d_k, *d_v;      // like q, k, v
};

}  // namespace foveate::kernels
