// Arguments of the kernels of window_sum and its gradient.
#pragma once

namespace foveate::kernels {

/// A task is a chunk of `chunk` positions, for `width` channels of one sequence: see tasks().
template <class scalar> struct WindowSum {
  const scalar* x;             // [B,N,C]
  const scalar *left, *right;  // [B,Q,H] in tokens; no `right` is zero
  scalar* out;                 // [B,Q,C]
  const scalar* d_out;         // [B,Q,C]
  scalar* d_x;                 // [B,N,C]
  scalar *d_left, *d_right;    // [B,Q,H], may be null
  long B, N, Q, C, H;
  double scale;
  long reach_left, reach_right;  // no window reaches further
  long width, chunk;
  long ring;  // sums kept at a time: a power of two above reach_left + reach_right + 4

  long blocks() const { return (C + width - 1) / width; }
  long tasks(long positions) const { return B * blocks() * ((positions + chunk - 1) / chunk); }
  long room() const { return (ring + 2) * width; }  // numbers of scratch
};

template <class scalar> struct WindowSumEngine {
  void (*forward)(const WindowSum<scalar>&, long begin, long end, double* scratch);     ///< tasks(Q)
  void (*backward_x)(const WindowSum<scalar>&, long begin, long end, double* scratch);  ///< tasks(N)
  void (*backward_ends)(const WindowSum<scalar>&, long begin, long end);                ///< tasks: every (b, query)
};

}  // namespace foveate::kernels
