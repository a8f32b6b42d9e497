// Arguments of the kernels of projected_features and its gradient.
#pragma once
#include "kernels/rows.h"

namespace foveate::kernels {

/// See ops/projected_features.h.
enum class Projected { positive, hyperbolic, cos_sin, sin_cos, cos_phase, relu, elu_plus_one };
enum class Top { none, own, running, whole };

inline constexpr long feature_rows = 64;  // positions that are taken at a time

template <class scalar> struct ProjectedFeatures {
  long B, H, N, D, m;
  Rows x;                         // [B,H,N,D]
  const scalar* W;                // [Hw,m,D padded], times sqrt(scale)
  const scalar* W_across;         // [Hw,D,m padded], the same
  bool W_of_heads;                // Hw is H, else 1
  const scalar* phase;            // [m padded]; of cos_phase alone
  const unsigned char* key_mask;  // [B,N], 0 hides; may be null
  const scalar* past;             // [B,H]; may be null
  Projected map;
  Top top;
  bool bare;
  scalar scale, factor, eps;

  scalar* phi;   // [B,H,N,F]
  scalar* tops;  // [B,H,N], or [B,H] of the whole

  // Backward; phi and tops are those of the forward.
  bool through_top;                      // whether tops have gradients
  const scalar *d_phi, *d_tops;          // as phi, as tops; the second may be null
  scalar *d_x, *d_W, *d_phase, *d_past;  // [B,H,N,D], [B,H,m,D padded], [B,H,m padded], [B,H]: parts of gradients; W, phase, past may be null

  bool doubled() const { return map == Projected::hyperbolic || map == Projected::cos_sin || map == Projected::sin_cos; }
  long F() const { return doubled() ? 2 * m : m; }
  bool grows() const { return map != Projected::sin_cos && map != Projected::relu && map != Projected::elu_plus_one; }
  bool in_order() const { return top == Top::running || top == Top::whole; }
  long tiles() const { return tiles_of(N, feature_rows); }
  long tasks() const { return B * H * (in_order() ? 1 : tiles()); }  // where there is no order, tiles stand by themselves
};

}  // namespace foveate::kernels
