// inner_sums: what two maps, and their complements, have in common, for a measure of how alike they are.
//
//   sums = [<p,l>, <p,p> + <l,l>, <1-p,1-l>, <1-p,1-p> + <1-l,1-l>]
//
// One reading of both maps makes all four, and one more their gradient.
#pragma once
#include <foveate/tensor.h>

namespace foveate::ops {

/// p and l [B,C,*S], not of half precision -> [4,B,C] of sums over positions, or [4,B,*S] of sums over channels.
FOVEATE_API Tensor inner_sums(const Tensor& p, const Tensor& l, bool over_positions);

}  // namespace foveate::ops
