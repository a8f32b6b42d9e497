// prob_queries: which queries matter most to attention, by a sample of keys for each (Informer).
//
//   m_n = max_j q_n.k_s(n,j) - (sum_j q_n.k_s(n,j)) / M,   s a table of U = min(f ceil(ln M), M) keys for each query
//
// The u = min(f ceil(ln N), N) queries of the largest m are active; of equal ones the earlier. No gradient. One query alone is active.
#pragma once
#include <foveate/contract.h>

namespace foveate::ops {

struct ActiveQueries {
  Tensor order;  ///< int [B,H,N]: the active queries in ascending order, then -1
  Tensor place;  ///< int [B,H,N]: where each query stands in `order`, -1 where it is not active
};

/// u of N, or U of M: of one token, that token.
FOVEATE_API int64_t active_count(int64_t factor, int64_t length);

/// q [B,H,N,D], k [B,H,M,D]; sample int [N,U], -1 for no key, or drawn from the seed, int [].
FOVEATE_API ActiveQueries prob_queries(const Tensor& q, const Tensor& k, const optional<Tensor>& sample, const optional<Tensor>& seed,
                                       int64_t factor);

}  // namespace foveate::ops
