// hamming_clusters: vectors hashed to bits, one for each plane, and the codes clustered by k-means in Hamming space.
//
//   bit_r(x) = 1 where x.plane_r > threshold_r;  a vector's cluster is that of the nearest code, of several equally near the first
//   a cluster's code: bit r is 1 where more than half of its vectors have it
//
// A cluster that is left without a vector takes a code that is given for that case, else it keeps its own. Nothing has a gradient.
#pragma once
#include <foveate/contract.h>

namespace foveate::ops {

struct HammingClusters {
  int64_t iterations = 10;            ///< assignments; between them the codes are updated
  bool thresholds = true;             ///< False: all are 0
  optional<Tensor> mask = {};         ///< bool [B,N] True where a vector counts
  optional<Tensor> empty_codes = {};  ///< bool [iterations - 1,C,bits] for each update, the codes of clusters left without a vector
};

struct Clustered {
  Tensor groups;  ///< int [B,H,N] cluster of each vector, C + 1 where it does not count
  Tensor counts;  ///< int [B,H,C] vectors of each cluster
};

/// x [B,H,N,D], planes [bits,D+1] with thresholds in the last column, seeds int [C]: vectors whose codes are the first ones
FOVEATE_API Clustered hamming_clusters(const Tensor& x, const Tensor& planes, const Tensor& seeds, const HammingClusters& options = {});

}  // namespace foveate::ops
