// Arguments of the kernels of position_lambda and its gradient.
#pragma once

namespace foveate::kernels {

/// One dimension of the places: tap a of the query at s reads the value at s + a - padding, if there is one.
struct Window {
  long queries, values, taps, padding;
};

/// Features lie side by side, filled up with zeros to whole vectors; rows of values and of gradients have a margin of zeros on either side.
template <class scalar> struct PositionLambda {
  Window down, across;
  long B, H, U, V, features;
  const scalar* q;       // [B,S,H,features], S = down.queries across.queries
  const scalar* values;  // [B,V,U,down.values,row_of_values]
  const scalar* weight;  // [U,down.taps,across.taps,features]
  const scalar* bias;    // [features], may be null
  scalar* out;           // [B,H,V,S]
  const scalar* d_out;   // [B,H,V,S]
  scalar* d_q;           // [B,S,H,features]
  long first, images;    // a part of the B V images
  scalar* d_lambdas;     // [images,down.queries,row_of_lambdas,features]
  scalar* d_values;      // [B,V,U,down.values,across.values]
  scalar* d_weight;      // [U,down.taps,across.taps,features], added to
  long margin;
  long row_of_values, row_of_lambdas;  // places, with both margins
};

template <class scalar> struct PositionLambdaEngine {
  void (*forward)(const PositionLambda<scalar>&, long begin, long end, scalar* scratch);     ///< tasks: rows of queries of every (b, v)
  void (*backward_q)(const PositionLambda<scalar>&, long begin, long end, scalar* scratch);  ///< tasks: rows of queries of every b
  void (*backward_lambdas)(const PositionLambda<scalar>&, long begin, long end);             ///< tasks: rows of queries of every image of the part
  void (*backward_values)(const PositionLambda<scalar>&, long begin, long end);              ///< tasks: rows of values of (image of the part, u)
  void (*backward_weight)(const PositionLambda<scalar>&, long begin, long end);              ///< tasks: rows of taps of every u
  long vector, margin, tile;                                                                 ///< scratch holds `tile` times the features
};

}  // namespace foveate::kernels
