// Random features: phi(x) = f(W x), W drawn at random, such that phi(q).phi(k) estimates a kernel of q and k.
//
//   W: rows are standard normal, or orthogonal within blocks of D rows, which lowers the variance of the estimate
#pragma once
#include <ATen/core/Generator.h>
#include <foveate/contract.h>
#include <foveate/feature_map.h>
#include <foveate/projected_features.h>

namespace foveate::layers {

/// What the rows of an orthogonal W are long.
enum class RowNorm {
  gaussian,  ///< as independent standard normal rows
  sqrt_dim,  ///< sqrt(D), their root mean square
};

/// How D orthonormal rows are drawn.
enum class Rotation {
  uniform,   ///< of all rotations and reflections: Q of a Gaussian matrix
  hadamard,  ///< three Hadamard matrices, columns of each under random signs; D is a power of two
  givens,    ///< D log2 D rotations of two coordinates, by random angles
};

/// How W is drawn.
struct Draw {
  int64_t features;  ///< m
  int64_t dim;       ///< D
  bool orthogonal = true;
  RowNorm row_norm = RowNorm::gaussian;
  Rotation rotation = Rotation::uniform;
};

/// The options of how W is drawn.
void draw_fields(auto&& f, auto& o) {
  f("orthogonal", o.orthogonal, "draws rows of W orthogonal within blocks of D (paper); False: independent");
  f("row_norm", o.row_norm, "how long orthogonal rows are: as independent normal rows, or sqrt(D) (authors' ortho_scaling 0 and 1)");
  f("rotation", o.rotation,
    "how orthogonal rows are drawn. uniform: of all rotations and reflections (authors' code); hadamard: three Hadamard matrices with random "
    "signs, D a power of two (paper); givens: D log2 D rotations of two coordinates by random angles (paper, authors' TensorFlow code)");
}

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

/// Features of x that are yet to be computed: see ops/projected_features.h.
struct Features {
  Tensor x = {}, W = {};            // [B,H,N,D], [m,D] or [H,m,D]
  ops::ProjectedFeatures map = {};  // all but its tops
  Tensor plain = {};                // [B,H,N,F] features that are there already; no x then
  bool own = false;                 // whether the authors' top of a query is its own
  double weight = 1;                // the estimate of the kernel is weight phi(q).phi(k)

  bool exponential() const { return x.defined() && ops::exponential(map.map); }
};

/// F of features that a W gives.
FOVEATE_API int64_t width_of(const Features& features);

/// f(W x) + epsilon, or f(x) + epsilon without W.
FOVEATE_API Features generalized_features(const Tensor& x, const optional<Tensor>& W, FeatureMap f, double epsilon);

// Estimates of exp(scale q.k), W [m,D], or [H,m,D] with one for each head; y is sqrt(scale) x.

/// [cos(W y), sin(W y)] exp(|y|^2/2): 2m features
FOVEATE_API Features sincos_features(const Tensor& x, const Tensor& W, double scale);
/// cos(W y + phase) exp(|y|^2/2): m features
FOVEATE_API Features cos_phase_features(const Tensor& x, const Tensor& W, const Tensor& phase, double scale);
/// exp(W y - |y|^2/2) + epsilon: m positive features
FOVEATE_API Features positive_features(const Tensor& x, const Tensor& W, double scale, double epsilon = 0);
/// [exp(W y - |y|^2/2), exp(-W y - |y|^2/2)] + epsilon: 2m positive features
FOVEATE_API Features hyperbolic_features(const Tensor& x, const Tensor& W, double scale, double epsilon = 0);

}  // namespace foveate::layers

namespace foveate {
template <> inline constexpr auto names<layers::RowNorm> = std::array<std::string_view, 2>{"gaussian", "sqrt_dim"};
template <> inline constexpr auto names<layers::Rotation> = std::array<std::string_view, 3>{"uniform", "hadamard", "givens"};
}  // namespace foveate
