// Slots: runs of c neighbours of a sequence that become one vector.
#pragma once
#include <foveate/convolution.h>
#include <foveate/segment_mean.h>

namespace foveate::layers {

/// x [B,K,I] -> [B,K,O] for w [O,I]. at::linear would fold K, a quotient of the length, into B, which torch.export cannot follow.
FOVEATE_API Tensor map_slots(const Tensor& w, const Tensor& x);

/// x [B,N,E] -> [B,floor(N/c),O]: the convolution whose stride is its width c is one product with whole slots, for each group of features.
FOVEATE_API Tensor convolve_slots(const Convolution& conv, const Tensor& x);

}  // namespace foveate::layers
