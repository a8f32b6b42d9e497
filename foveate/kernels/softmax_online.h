// The online softmax of one query: its highest score so far, the sum of exponentials, and the sum of values they weigh.
#pragma once
#include "kernels/room.h"
#include "kernels/softmax_tiles.h"

#include <math.h>

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

template <class scalar> void start_rows(long height, long wide, scalar* sums, scalar* tops, scalar* totals) {
  for (long r = 0; r < height; ++r) {
    tops[r] = -static_cast<scalar>(infinity);
    totals[r] = 0;
    for (long d = 0; d < wide; d += lanes<scalar>) vec(sums + r * wide + d) = Vec<scalar>{};
  }
}

/// Scores of a row become exponentials below its new top, in the chunks that matter; gives what earlier sums fade by.
template <class scalar> scalar meet(unsigned chunks, scalar* row, scalar& top, scalar& total_so_far) {
  constexpr long W = lanes<scalar>;
  const scalar nothing = -static_cast<scalar>(infinity);
  Vec<scalar> high = splat(nothing);
  for_each_segment(chunks, [&](long begin, long end) {
    for (long c = begin; c < end; c += W) high = vec(row + c) > high ? vec(row + c) : high;
  });
  const scalar highest = highest_of(high), best = highest > top ? highest : top;
  if (best == nothing) {  // nothing seen yet, or NaN alone, which must not be lost
    for_each_segment(chunks, [&](long begin, long end) {
      for (long c = begin; c < end; ++c) {
        if (row[c] != row[c]) total_so_far = row[c];
        row[c] = 0;
      }
    });
    return 1;
  }
  Vec<scalar> sum{};
  for_each_segment(chunks, [&](long begin, long end) {
    for (long c = begin; c < end; c += W) {
      const Vec<scalar> p = exp(vec(row + c) - splat(best));
      vec(row + c) = p;
      sum += p;
    }
  });
  const scalar fade = best > top ? exp(splat(top - best))[0] : 1;
  total_so_far = total_so_far * fade + total<scalar>(sum);
  top = best;
  return fade;
}

/// Writes out and lse of query i; one that saw nothing gives zeros.
template <class scalar> void finish(const Softmax<scalar>& a, long split, long b, long h, long i, const scalar* sums, scalar top, scalar total_seen) {
  if (a.q.place(b, h, i) < 0 || (a.query_mask && !a.query_mask[b * a.N + i])) total_seen = 0;
  const long row = ((split * a.B + b) * a.H + h) * a.N + i;
  const scalar share = total_seen > 0 || total_seen != total_seen ? 1 / total_seen : 0;
  for (long d = 0; d < a.Dv; ++d) a.out[row * a.Dv + d] = share * sums[d];
  a.lse[row] =
      total_seen > 0 || total_seen != total_seen ? top + static_cast<scalar>(log(static_cast<double>(total_seen))) : -static_cast<scalar>(infinity);
}

}  // namespace
}  // namespace foveate::kernels::CPU_CAPABILITY
