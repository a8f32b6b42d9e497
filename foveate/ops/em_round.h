// em_round: a round of expectation and maximisation, z = softmax over bases of (f^T bases), and the sums that new bases are made of.
#pragma once
#include <foveate/tensor.h>

namespace foveate::ops {

struct EmSums {
  Tensor sums;  // [B,C,K]: f z
  Tensor mass;  // [B,1,K]: sum over tokens of z
  Tensor z;     // [B,N,K], where it is kept: else of no token
};

/// f [B,C,N], bases [B,C,K], float32 or float64; mask [B,N]: tokens that take part.
FOVEATE_API EmSums em_round(const Tensor& f, const Tensor& bases, const optional<Tensor>& mask, bool keep_z);

}  // namespace foveate::ops
