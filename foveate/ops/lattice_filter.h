// lattice_filter: out_i ~ sum_j exp(-|f_i - f_j|^2 / 2) v_j on the permutohedral lattice, at a cost that is linear in the number of points.
//
//   embed  e = E f lies in the plane sum(e) = 0 of d + 1 dimensions, inside a simplex whose d + 1 vertices are points of the lattice;
//          barycentric weights w say where
//   splat  L[vertex_k of i] += w_ik v_i
//   blur   for each direction a = 0..d in turn: L[x] <- L[x] + (L[x + o_a] + L[x - o_a]) / 2 among the vertices that some point touches
//   slice  out_i = alpha sum_k w_ik L[vertex_k of i],  alpha = 1 / (1 + 2^-d)
//
// Points that share a table share its vertices. Features have a gradient through the weights; vertices are constant. Where coordinates are
// equal the lower one counts as the larger; a point on the border of simplices therefore belongs to one of them, and its other vertices too exist.
#pragma once
#include <foveate/contract.h>

namespace foveate::ops {

inline constexpr int64_t lattice_widest = 16;  ///< features d

/// Where points lie.
struct LatticeSimplex {
  Tensor weights;   // [...,d+1] barycentric weight of each vertex, sum 1
  Tensor rank;      // int [...,d+1] place of each coordinate among those of its point, 0 the largest
  Tensor quotient;  // int [...,d] of vertex 0, whose coordinates are multiples of d + 1
};

/// features [...,d]
FOVEATE_API LatticeSimplex lattice_simplex(const Tensor& features);

/// Coordinates of all vertices, the last one left out since they sum to 0: int [...,d+1,d]. Those of vertex k are k modulo d + 1.
FOVEATE_API Tensor lattice_vertices(const LatticeSimplex& simplex);

/// features [B,H,N,d], values [B,H,N,c], mask bool [B,N] -> [B,H,N,c]. A point that is masked touches no vertex and gets zeros. With
/// `shared` one table serves all samples of a batch, whose vertices then let each other's blur pass; else each has its own.
FOVEATE_API Tensor lattice_filter(const Tensor& features, const Tensor& values, const optional<Tensor>& mask = {}, bool shared = false);

}  // namespace foveate::ops
