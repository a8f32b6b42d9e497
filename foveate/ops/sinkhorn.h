// sinkhorn: a matrix brought towards one whose rows and columns sum to 1, in log space: T times
//
//   t_ij -= log sum_j exp(t_ij), then t_ij -= log sum_i exp(t_ij);  out = exp(t)
#pragma once
#include <foveate/contract.h>

namespace foveate::ops {

/// logits [...,R,C] -> [...,R,C]
FOVEATE_API Tensor sinkhorn(const Tensor& logits, int64_t iterations);

}  // namespace foveate::ops
