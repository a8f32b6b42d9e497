// Random features: phi(x) = f(W x), W drawn at random, such that phi(q).phi(k) estimates a kernel of q and k; and attention on them.
//
//   W: rows are standard normal, or orthogonal within blocks of D rows, which lowers the variance of the estimate
//   features are a body times exp(exponent - top): the top keeps the exponentials in range, and cancels when attention is normalised
#pragma once
#include <ATen/core/Generator.h>
#include <foveate/contract.h>
#include <foveate/feature_map.h>
#include <foveate/linear_attention.h>

#include <utility>

namespace foveate::layers {

/// What the rows of an orthogonal W are long.
enum class RowNorm {
  gaussian,  ///< as independent standard normal rows
  sqrt_dim,  ///< sqrt(D), their root mean square
};

/// Which maximum stabilises exponential features.
enum class Stabilizer {
  running,   ///< of each key's exponents, over the keys so far: strictly causal, streams, and passes no gradient
  sequence,  ///< the authors' own, over all positions, differentiated through: the future changes the past, if by rounding and constants alone
  none,
};

/// How W is drawn.
struct Draw {
  int64_t features;  ///< m
  int64_t dim;       ///< D
  bool orthogonal = true;
  RowNorm row_norm = RowNorm::gaussian;
};

/// W [m,D], from the global generator where none is given.
FOVEATE_API Tensor draw_projection(const Draw& draw, const at::TensorOptions& options, const optional<at::Generator>& generator = {});

/// Phases [m], uniform in [0, 2 pi).
FOVEATE_API Tensor draw_phase(int64_t features, const at::TensorOptions& options, const optional<at::Generator>& generator = {});

/// The draws that a layer keeps, and redraws on request.
struct DrawnProjection {
  Tensor projection;
  void fields(auto&& f) { f("projection", projection, "[*,*] the draw of W, features by width of a head; not trained", buffer); }
};
struct Drawn {
  optional<Tensor> projection, phase;
  void fields(auto&& f) {
    f("projection", projection, "[*,*] the draw of W, features by width of a head; not trained", buffer);
    f("phase", phase, "[*] the draw of phases; not trained", buffer);
  }
};

/// phi = body exp(exponent - top) + epsilon
struct Features {
  Tensor body;         // [B,H,N,F]; undefined: 1
  Tensor exponent;     // [B,H,N,F or 1]; undefined: 0
  Tensor level;        // [B,H,N,1], what the authors take the maximum of
  double epsilon = 0;  // added at the end
};

/// f(W x) + epsilon, or f(x) + epsilon without W.
FOVEATE_API Features generalized_features(const Tensor& x, const optional<Tensor>& W, FeatureMap f, double epsilon);
/// [cos(W x), sin(W x)] exp(|x|^2/2) / sqrt(m): 2m features of exp(q.k)
FOVEATE_API Features sincos_features(const Tensor& x, const Tensor& W);
/// cos(W x + phase) exp(|x|^2/2) sqrt(2/m): m features of exp(q.k)
FOVEATE_API Features cos_phase_features(const Tensor& x, const Tensor& W, const Tensor& phase);
/// exp(W x - |x|^2/2) + epsilon: m positive features of m exp(q.k)
FOVEATE_API Features positive_features(const Tensor& x, const Tensor& W, double epsilon = 0);
/// [exp(W x - |x|^2/2), exp(-W x - |x|^2/2)] + epsilon: 2m positive features of 2m exp(q.k)
FOVEATE_API Features hyperbolic_features(const Tensor& x, const Tensor& W, double epsilon = 0);

/// The features under a given top [B,H,N or 1,1], undefined for none; exponents of hidden positions (bool [B,1,N,1]) count as 0.
FOVEATE_API Tensor below(const Features& x, const Tensor& top, const optional<Tensor>& hidden = {});

/// The greatest of level [B,H,N,1] among positions that are not hidden: [B,H,1,1]
FOVEATE_API Tensor greatest(const Tensor& level, const optional<Tensor>& hidden = {});

/// The sums over the keys so far, under their greatest exponent.
struct FeatureSums {
  Tensor S, z, top;
  void fields(auto&& f) {
    f("S", S, "[B,Hk,F,Dv] sum of phi(k) v^T so far, under `top`; float32 for half precision");
    f("z", z, "[B,Hk,F] sum of phi(k) so far");
    f("top", top, "[B,Hk] greatest exponent of the keys so far; 0 where features have none");
  }
};

struct FeatureAttention {
  bool causal = false;
  optional<Tensor> key_mask = {};  // bool [B,M]
  ops::Normalizer normalizer = ops::Normalizer::guard;
  double eps = 0;
};

/// Attention on features, stabilised by the running maximum of the keys' exponents. q is bounded already: each query is under its own top.
FOVEATE_API std::pair<Tensor, FeatureSums> running_attention(const Tensor& q, const Features& k, const Tensor& v, const FeatureAttention& o,
                                                             const FeatureSums& past = {});

}  // namespace foveate::layers

namespace foveate {
template <> inline constexpr auto names<layers::RowNorm> = std::array<std::string_view, 2>{"gaussian", "sqrt_dim"};
template <> inline constexpr auto names<layers::Stabilizer> = std::array<std::string_view, 3>{"running", "sequence", "none"};
}  // namespace foveate
