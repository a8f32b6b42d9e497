// largest: the places of the k largest numbers of each row, in descending order; of equal ones the first comes first.
#pragma once
#include <foveate/contract.h>

namespace foveate::ops {

/// x [...,M] -> int [...,k]; -1 where a row has no more numbers. -inf is none. No gradient.
FOVEATE_API Tensor largest(const Tensor& x, int64_t k);

}  // namespace foveate::ops
