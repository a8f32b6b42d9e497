// Joins partial attentions by their log-sum-exp, row by row.
#include "kernels/merge_attention.h"

#include "kernels/capability.h"

#include <math.h>

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

template <class scalar> void merge_attention(const MergeAttention& a, long begin, long end) {
  const auto* outs = static_cast<const scalar*>(a.outs);
  const auto* lses = static_cast<const scalar*>(a.lses);
  for (long r = begin; r < end; ++r) {
    scalar top = -static_cast<scalar>(INFINITY);
    for (long p = 0; p < a.parts; ++p) top = lses[p * a.rows + r] > top ? lses[p * a.rows + r] : top;
    scalar* out_r = static_cast<scalar*>(a.out) + r * a.width;  // [width]
    for (long d = 0; d < a.width; ++d) out_r[d] = 0;
    if (top == -static_cast<scalar>(INFINITY)) {  // no part saw a key
      static_cast<scalar*>(a.lse)[r] = top;
      continue;
    }
    scalar total = 0;
    for (long p = 0; p < a.parts; ++p) {
      const scalar weight = static_cast<scalar>(exp(static_cast<double>(lses[p * a.rows + r] - top)));
      const scalar* out_p = outs + (p * a.rows + r) * a.width;
      total += weight;
      if (weight == 0) continue;  // a part that saw nothing may hold anything
      for (long d = 0; d < a.width; ++d) out_r[d] += weight * out_p[d];
    }
    for (long d = 0; d < a.width; ++d) out_r[d] /= total;
    static_cast<scalar*>(a.lse)[r] = top + static_cast<scalar>(log(static_cast<double>(total)));
  }
}

}  // namespace

void merge_attention_float(const MergeAttention& a, long begin, long end) { merge_attention<float>(a, begin, end); }
void merge_attention_double(const MergeAttention& a, long begin, long end) { merge_attention<double>(a, begin, end); }

}  // namespace foveate::kernels::CPU_CAPABILITY
