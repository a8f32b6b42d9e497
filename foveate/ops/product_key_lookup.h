// The two steps of a product-key memory, whose slot (i, j) has the key [first half i, second half j].
//
//   product_keys   the k slots of n^2 whose keys fit a query best, q.key = q1.key1_i + q2.key2_j: the best k of each half, then the best of
//                  their sums. A pair (a, b) of those k x k, each half sorted, is among the k best sums only if (a + 1)(b + 1) <= k, since
//                  so many are at least as good: 119 pairs of 1024 for k = 32. Exact. Of equal scores the lower index wins in each half, and the
//                  better first half among the sums.
//   weighted_rows  out_t = sum_j w_tj V[index_tj]
//
// What is chosen has no gradient; scores pass theirs to queries and to the keys that were chosen, rows to the rows of V that were.
#pragma once
#include <foveate/contract.h>

namespace foveate::ops {

struct ProductKeys {
  Tensor scores;  // [T,H,k], falling
  Tensor slots;   // int [T,H,k], i n + j
};

/// q [T,H,2,h], keys [H or 1,2 or 1,n,h]; k at most n. A table that stands once serves all heads, or both halves.
FOVEATE_API ProductKeys product_keys(const Tensor& q, const Tensor& keys, int64_t k);

/// The same where the scores of both halves are known: [T,H,2,n].
FOVEATE_API ProductKeys best_products(const Tensor& halves, int64_t k);

/// values [S,Dv], weights [T,K], index int [T,K] -> [T,Dv]. With `sparse` the gradient of values is a coalesced sparse tensor that holds
/// only rows that were read, as torch.optim.SparseAdam takes it.
FOVEATE_API Tensor weighted_rows(const Tensor& values, const Tensor& weights, const Tensor& index, bool sparse = false);

}  // namespace foveate::ops
