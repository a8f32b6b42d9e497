// Arguments of the kernels of inner_sums: what two maps and their complements have in common, and the gradient of that.
#pragma once

namespace foveate::kernels {

template <class scalar> struct InnerSums {
  const scalar *p, *l;  // [B,C,N]
  long B, C, N;
  scalar* sums;                  // [4,B,C], or [4,B,N]: p.l, p.p + l.l, and the same of 1 - p and 1 - l
  const scalar *own, *by, *one;  // the gradients are own p + by l + one, and own l + by p + one: [B,C], or [B,N]
  bool over_positions;           // one number for each channel; else one for each position
  scalar *d_p, *d_l;             // [B,C,N], may be null
};

template <class scalar> struct InnerSumsEngine {
  void (*over_positions)(const InnerSums<scalar>&, long begin, long end);  ///< tasks: every (b, channel)
  void (*over_channels)(const InnerSums<scalar>&, long begin, long end);   ///< tasks: tiles of positions of every b
  void (*backward)(const InnerSums<scalar>&, long begin, long end);        ///< tasks: every (b, channel)
  long tile;                                                               ///< positions of a task of over_channels
};

}  // namespace foveate::kernels
