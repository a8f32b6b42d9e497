// patch_match: for each query of a grid, a key of a grid that it scores high, q_i.k_j, found by trying the matches of neighbours, moved
// by as much as the neighbour stands away, and keys at random around the best so far, in ever smaller radii.
//
// A candidate replaces the match only if it scores strictly higher; candidates are tried in the order up, left, down, right, then
// radius by radius. Nothing has a gradient, and no result depends on the number of threads.
#pragma once
#include <foveate/contract.h>

namespace foveate::ops {

/// How matches spread.
enum class Propagation {
  jacobi,  ///< all queries at once, each reading its neighbours as they were before
  scan,    ///< one after the other, reading what was just found: downwards from up and left, then upwards from down and right
};

struct PatchMatch {
  Size query_height = 1, query_width = 1, key_height = 1, key_width = 1;
  Propagation propagation = Propagation::jacobi;
  double decay = 0.5;              ///< radius of level l: decay^l times the larger side of the keys' grid
  bool causal = false;             ///< no key and no neighbour after the query, in raster order; grids are one
  optional<Tensor> key_mask = {};  ///< bool [B,M] True where a key takes part
};

/// q [B,H,n,D] are the last n queries before which `past` [T+1,B,H,m] says what m queries matched at the start and after each iteration
/// (none where absent); k [B,H,M,D]; start int [B,H,n] first matches; steps [T,levels,B,H,n,2] in [-1,1], down and right.
/// -> int [T+1,B,H,m+n], the same with the new ones.
FOVEATE_API Tensor patch_match(const Tensor& q, const Tensor& k, const Tensor& start, const Tensor& steps, const optional<Tensor>& past,
                               const PatchMatch& options);

/// The keys around matches int [B,H,N]: for query i, from m on, those within `key_radius` (rows and columns) of the match of any query
/// within `query_radius` of i; -1 where a place falls off the grids. Causal: none after the query, and the query's own.
/// -> int [B,H,N-m,(2 rq+1)^2 (2 rk+1)^2, one more if causal]; a key may stand there several times.
FOVEATE_API Tensor match_support(const Tensor& match, int64_t query_radius, int64_t key_radius, const Size& m, const PatchMatch& options);

}  // namespace foveate::ops

namespace foveate {
  template <> inline constexpr auto names<ops::Propagation> = std::array<std::string_view, 2>{"jacobi", "scan"}; }  // namespace foveate
