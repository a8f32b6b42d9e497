// position_lambda: queries through linear maps that a convolution makes of the values around them.
//
//   out[b,h,v,n] = sum_k q[b,h,k,n] lambda[b,v,k,n];  lambda[b,v,k,n] = bias[k] + sum_{u,a} weight[k,u,a] values[b,u,v,n + a - padding]
//
// On a CPU the lambdas, K for each value of each position, are never whole in memory: a tile of positions at a time, and again for gradients.
#pragma once
#include <foveate/tensor.h>

namespace foveate::ops {

/// q [B,h,K,*S], v [B,U,V,*R], weight [K,U,*taps], bias [K], of one or two dimensions S = R + 2 padding - taps + 1 -> [B,h,V,*S]
FOVEATE_API Tensor position_lambda(const Tensor& q, const Tensor& v, const Tensor& weight, const optional<Tensor>& bias, int64_t padding);

}  // namespace foveate::ops
