// context_pool: one sum of a map's positions, weighted by a softmax of a linear score.
//
//   a_n = softmax_n(w.x_n + bias);  c = sum_n a_n x_n
//
// Where no position is seen c is 0. Only the weights of positions are kept for gradients, and the gradient of x is written once.
#pragma once
#include <foveate/tensor.h>

namespace foveate::ops {

/// x [B,C,N], w [1,C], bias [1], seen bool [B,N] -> [B,C]
FOVEATE_API Tensor context_pool(const Tensor& x, const Tensor& w, const optional<Tensor>& bias, const optional<Tensor>& seen);

}  // namespace foveate::ops
