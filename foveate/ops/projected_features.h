// projected_features: random features of x, phi = factor f(W y) exp(+-|y|^2/2 - top) + eps, y = sqrt(scale) x, in one pass.
//
// An exponential is kept in range by a top that is taken off its exponent and cancels in a division: that of the position, of all positions
// so far, or of all. It is the greatest exponent there is, or with `bare` what authors take: W y without |y|^2/2, of positive features; twice
// |y|^2/2, of hyperbolic ones.
#pragma once
#include <foveate/contract.h>

namespace foveate::ops {

/// f and the exponential beside it: u is W y, h is |y|^2/2.
enum class Projected {
  positive,      ///< exp(u - h)
  hyperbolic,    ///< [exp(u - h), exp(-u - h)]
  cos_sin,       ///< [cos u, sin u] exp(h)
  sin_cos,       ///< [sin u, cos u]
  cos_phase,     ///< cos(u + phase) exp(h)
  relu,          ///< max(u, 0)
  elu_plus_one,  ///< elu(u) + 1
};

/// Whose maximum is taken off.
enum class Top {
  none,     ///< of nothing
  own,      ///< of each position
  running,  ///< of all positions so far
  whole,    ///< of all positions
};

struct ProjectedFeatures {
  Projected map = Projected::positive;
  optional<Tensor> phase = {};     ///< [m], of cos_phase
  optional<Tensor> key_mask = {};  ///< bool [B,N]: no maximum looks at a hidden position, whose exponential is 0
  optional<Tensor> past = {};      ///< [B,H]: the top before all positions, of running and whole
  Top top = Top::none;
  bool bare = false;
  bool detach = false;  ///< whether tops are constants: where they cancel so do their gradients
  double scale = 1, factor = 1, eps = 0;
};

struct Projection {
  Tensor phi;  ///< [B,H,N,F], F is m or 2m; float32 of half precision
  Tensor top;  ///< [B,H,0] of none, [B,H,N] of own and running, [B,H,1] of the whole
};

/// x [B,H,N,D], W [m,D], or [H,m,D] with one for each head; W and what stands beside it are of the type of phi.
FOVEATE_API Projection projected_features(const Tensor& x, const Tensor& W, const ProjectedFeatures& options);

/// Whether f gives two features for each row of W.
constexpr bool doubled(Projected map) { return map == Projected::hyperbolic || map == Projected::cos_sin || map == Projected::sin_cos; }
/// Whether there is an exponential.
constexpr bool exponential(Projected map) {
  return map == Projected::positive || map == Projected::hyperbolic || map == Projected::cos_sin || map == Projected::cos_phase;
}

}  // namespace foveate::ops

namespace foveate {
template <> inline constexpr auto names<ops::Projected> =
    std::array<std::string_view, 7>{"positive", "hyperbolic", "cos_sin", "sin_cos", "cos_phase", "relu", "elu_plus_one"};
template <> inline constexpr auto names<ops::Top> = std::array<std::string_view, 4>{"none", "own", "running", "whole"};
}  // namespace foveate
