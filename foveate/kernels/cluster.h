// Arguments of attention inside clusters of tokens that stand in line, forward and backward: ops/cluster_attention.h says what it computes.
#pragma once
#include "kernels/rows.h"

namespace foveate::kernels {

inline constexpr long cluster_rows = 64;  // places of queries, and of keys, that are computed together

template <class scalar> struct Cluster {
  long B, H, N, M, D, Dv;
  long clusters, q_size, k_size, places;  // `places` of the line of queries are asked for; the lines fill up whole clusters
  long before, after;
  bool circular;
  Rows q;                           // row i is the query at place i: index [B,H,clusters q_size]
  Rows k, v;                        // the same of keys: index [B,H,clusters k_size]
  const scalar* k_weight;           // [B,H,clusters k_size]: multiplies the key and the value at a place; may be null
  const unsigned char* key_mask;    // [B,M], 0 hides; may be null
  const unsigned char* query_mask;  // [B,N]; may be null
  long causal_keys;                 // keys u < causal_keys are hidden from queries t < u
  bool has_self, self_seen;
  scalar self_score;
  const int* label;  // [B,H,clusters q_size]; may be null
  long rounds;
  const int *here, *behind;    // [B,H,rounds,N]: a and b of the meetings; may be null
  const scalar* log_meetings;  // [2 rounds + 1]
  scalar scale;
  bool drawn;
  unsigned seed, threshold;
  const unsigned char* keep;  // [B,H,places,(before + 1 + after) k_size]: a draw given instead, 0 drops; may be null
  scalar kept_share;

  bool merged;     // all places of a token are one query: there are N rows of results, else one for each place
  scalar* out;     // [B,H,places or N,Dv]
  scalar* lse;     // [B,H,places or N]
  scalar* totals;  // [B,H,N], room for sums; forward of merged only

  Rows d_out;           // row i is that of place i, merged or not
  const scalar* d_lse;  // [B,H,places or N]; may be null
  scalar* d_q;          // [B,H,N,D], zero before, as are the others
  scalar* d_k;          // [B,H,M,D]
  scalar* d_v;          // [B,H,M,Dv]
  scalar* d_k_weight;   // [B,H,clusters k_size], where there is a k_weight
};

}  // namespace foveate::kernels
