// segment_sum: rows that belong to one group are added up.  take_rows: each group's row goes back to those that belong to it.
//
//   sum_c = sum over n with group_n = c of x_n          taken_n = x_c, c = group_n
//
// Rows whose group is not one of 0 .. C-1 belong to none: they are not added, and take zeros. Each is the gradient of the other.
#pragma once
#include <foveate/contract.h>

namespace foveate::ops {

/// x [B,H,N,D], groups int [B,H,N] -> [B,H,C,D]
FOVEATE_API Tensor segment_sum(const Tensor& x, const Tensor& groups, int64_t count);
/// x [B,H,C,D], groups int [B,H,N] -> [B,H,N,D]
FOVEATE_API Tensor take_rows(const Tensor& x, const Tensor& groups);

}  // namespace foveate::ops
