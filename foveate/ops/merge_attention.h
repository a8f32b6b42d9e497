// merge_attention: partial attentions over disjoint sets of keys, joined by their log-sum-exp.
//
//   lse = log sum_p exp(lse_p);  out = sum_p exp(lse_p - lse) out_p
//
// The neutral part has out 0 and lse -inf. Keys that several parts hold count several times.
#pragma once
#include <foveate/attention.h>

#include <span>

namespace foveate::ops {

/// outs [P,...,Dv], lses [P,...] -> out [...,Dv], lse [...]
FOVEATE_API Attended merge_attention(const Tensor& outs, const Tensor& lses);

/// The same for parts given one by one.
FOVEATE_API Attended merge_attention(std::span<const Attended> parts);

}  // namespace foveate::ops
