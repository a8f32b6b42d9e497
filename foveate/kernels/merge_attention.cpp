// Joins partial attentions by their log-sum-exp, row by row.
#include "kernels/merge_attention.h"

#include "kernels/capability.h"
#include "kernels/row_sums.h"

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

template <class scalar> void merge_attention(const MergeAttention& a, long begin, long end) {
  const auto* outs = static_cast<const scalar*>(a.outs);
  const auto* lses = static_cast<const scalar*>(a.lses);
  for (long r = begin; r < end; ++r) {
    scalar top = -static_cast<scalar>(infinity);
    for (long p = 0; p < a.parts; ++p) top = lses[p * a.rows + r] > top ? lses[p * a.rows + r] : top;
    scalar* out_r = static_cast<scalar*>(a.out) + r * a.width;  // [width]
    for (long d = 0; d < a.width; ++d) out_r[d] = 0;
    if (top == -static_cast<scalar>(infinity)) {  // no part saw a key
      static_cast<scalar*>(a.lse)[r] = top;
      continue;
    }
    scalar total = 0;
    for (long p = 0; p < a.parts; ++p) {
      const scalar weight = static_cast<scalar>(__builtin_exp(static_cast<double>(lses[p * a.rows + r] - top)));
      const scalar* out_p = outs + (p * a.rows + r) * a.width;
      total += weight;
      if (weight == 0) continue;  // a part that saw nothing may hold anything
      for (long d = 0; d < a.width; ++d) out_r[d] += weight * out_p[d];
    }
    for (long d = 0; d < a.width; ++d) out_r[d] /= total;
    static_cast<scalar*>(a.lse)[r] = top + static_cast<scalar>(__builtin_log(static_cast<double>(total)));
  }
}

/// With the weight w_p of a part: d_out_p = w_p d_out, d_lse_p = w_p (d_out.(out_p - out) + d_lse).
template <class scalar> void merge_backward(const MergeAttention& a, long begin, long end) {
  const auto *outs = static_cast<const scalar*>(a.outs), *lses = static_cast<const scalar*>(a.lses), *lse = static_cast<const scalar*>(a.lse);
  const auto* d_lse = static_cast<const scalar*>(a.d_lse);
  auto *d_outs = static_cast<scalar*>(a.d_outs), *d_lses = static_cast<scalar*>(a.d_lses), *weights = static_cast<scalar*>(a.weights);
  for (long r = begin; r < end; ++r) {
    const scalar* given = d_outs + r * a.width;
    scalar whole = d_lse ? -d_lse[r] : 0;  // d_out.out - d_lse
    for (long p = a.parts - 1; p >= 0; --p) {
      const long row = p * a.rows + r;
      const bool seen = lses[row] > -static_cast<scalar>(infinity);  // a part that saw nothing may hold anything
      const scalar weight = seen ? static_cast<scalar>(__builtin_exp(static_cast<double>(lses[row] - lse[r]))) : 0;
      weights[row] = weight;
      d_lses[row] = seen ? dot(outs + row * a.width, given, a.width) : 0;
      whole += weight * d_lses[row];
      scalar* to = d_outs + row * a.width;
      for (long d = 0; d < a.width; ++d) to[d] = weight * given[d];
    }
    for (long p = 0; p < a.parts; ++p) d_lses[p * a.rows + r] = weights[p * a.rows + r] * (d_lses[p * a.rows + r] - whole);
  }
}

}  // namespace

void merge_attention_float(const MergeAttention& a, long begin, long end) { merge_attention<float>(a, begin, end); }
void merge_attention_double(const MergeAttention& a, long begin, long end) { merge_attention<double>(a, begin, end); }
void merge_backward_float(const MergeAttention& a, long begin, long end) { merge_backward<float>(a, begin, end); }
void merge_backward_double(const MergeAttention& a, long begin, long end) { merge_backward<double>(a, begin, end); }

}  // namespace foveate::kernels::CPU_CAPABILITY
