// The words that every file above kernels/ shares: Tensor, Size, and the few shape helpers of multi-head attention.
#pragma once
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

/// Marks what users may call: everything else is hidden.
#define FOVEATE_API __attribute__((visibility("default")))

namespace foveate {

using at::Tensor;
using std::optional;

/// A size that may be symbolic. Mechanisms run under torch.export with dynamic lengths, so they never ask for plain integers.
using Size = c10::SymInt;

inline Size extent(const Tensor& x, int64_t dim) { return x.sym_size(dim); }

/// One that is a plain number whatever the lengths: heads, features. (x.size(d) would turn every size of x into a plain one.)
inline int64_t plain_extent(const Tensor& x, int64_t dim) { return extent(x, dim).guard_int(__FILE__, __LINE__); }

/// 1/sqrt(D) of q [...,D]
inline double default_scale(const Tensor& q) { return 1 / std::sqrt(static_cast<double>(plain_extent(q, -1))); }

/// A length as a number that tensors are divided by: it may be symbolic.
inline Tensor length_of(const Tensor& x, int64_t dim) { return x.new_ones_symint({extent(x, dim)}).sum(); }

/// x [B,H,N,D] with zeros for the rows that a mask [B,N or 1] hides.
inline Tensor masked_rows(const Tensor& x, const optional<Tensor>& mask) {
  return mask ? x * mask->to(x.scalar_type()).unsqueeze(1).unsqueeze(-1) : x;
}

/// [B,N,H*D] -> [B,H,N,D]
inline Tensor split_heads(const Tensor& x, int64_t heads) { return x.unflatten(-1, {heads, -1}).transpose(1, 2); }

/// [B,H,N,D] -> [B,N,H*D]
inline Tensor merge_heads(const Tensor& x) { return x.transpose(1, 2).flatten(2); }
/// The same of groups of heads, one behind another.
inline Tensor merge_heads(const std::vector<Tensor>& groups) { return merge_heads(groups.size() == 1 ? groups[0] : at::cat(groups, 1)); }

}  // namespace foveate
