// Arguments of the merge_attention kernel.
#pragma once

namespace foveate::kernels {

/// Row r of the merged result joins row r of `parts` partial ones: weights exp(lse_p - lse), lse = log sum_p exp(lse_p).
struct MergeAttention {
  const void* outs;  // [parts, rows, width]
  const void* lses;  // [parts, rows]
  void* out;         // [rows, width]
  void* lse;         // [rows]
  long parts, rows, width;
};

}  // namespace foveate::kernels
