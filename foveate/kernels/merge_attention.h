// Arguments of the merge_attention kernel and of its gradient.
#pragma once

namespace foveate::kernels {

/// Row r of the merged result joins row r of `parts` partial ones: weights exp(lse_p - lse), lse = log sum_p exp(lse_p).
struct MergeAttention {
  const void* outs;       // [parts, rows, width]
  const void* lses;       // [parts, rows]
  void* out;              // [rows, width]
  void* lse;              // [rows]
  const void* d_lse;      // [rows], may be null
  void *d_outs, *d_lses;  // like outs and lses; the gradient of out stands where that of the first part will
  void* weights;          // [parts, rows]
  long parts, rows, width;
};

}  // namespace foveate::kernels
