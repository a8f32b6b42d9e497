// Means over dimensions of a map.
#pragma once
#include <foveate/attention_formula.h>

namespace foveate::layers {

/// The mean over dims: a sum, of which what is left is divided. Its gradient is a small tensor, repeated without a copy; that of at::mean is
/// a map of its own.
inline Tensor mean_over(const Tensor& x, at::IntArrayRef dims, bool keepdim = false) {
  const Tensor sum = x.sum(dims, keepdim, ops::accumulation_type(x.scalar_type()));
  Size count = 1;
  for (const int64_t d : dims) count *= extent(x, d);
  if (const auto known = count.maybe_as_int()) return (sum / static_cast<double>(*known)).to(x.scalar_type());
  Tensor product = sum.new_ones({});
  for (const int64_t d : dims) product = product * sum.new_ones_symint({extent(x, d)}).sum();
  return (sum / product).to(x.scalar_type());
}

}  // namespace foveate::layers
