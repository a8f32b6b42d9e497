// Arguments of the kernels that choose who attends to whom.
#pragma once

namespace foveate::kernels {

/// PatchMatch: queries m ... N-1 of every (b, h), after m whose matches are known.
template <class scalar> struct Matches {
  long H, N, m, M, D, iterations, levels, heads;  // heads: B H
  const scalar *q, *k;                            // [B,H,N-m,D], [B,H,M,D]
  const long* start;                              // [B,H,N-m]
  const double* steps;                            // [iterations,levels,B,H,N-m,2]
  const double* radius;                           // [levels]
  const long* past;                               // [iterations+1,B,H,m]
  const unsigned char* key_mask;                  // [B,M], may be null
  long query_height, query_width, key_height, key_width;
  bool scan, causal;
  long* trail;    // [iterations+1,B,H,N]
  scalar* score;  // [B,H,N-m] scratch: of the matches
};

/// K-means of codes in Hamming space, of every (b, h).
struct Codes {
  long H, N, C, bits, iterations;
  const unsigned long* code;         // [B,H,N]
  const long* seeds;                 // [C]
  const unsigned char* mask;         // [B,N], may be null
  const unsigned long* empty_codes;  // [iterations-1,C], may be null
  long *groups, *counts;             // [B,H,N], [B,H,C]
  unsigned long* centre;             // [B,H,C] scratch
  long* ones;                        // [B,H,C,bits] scratch
};

}  // namespace foveate::kernels
