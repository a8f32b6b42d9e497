// Attention on random features whose exponentials are kept in range by a maximum, their top, which cancels in the division.
#pragma once
#include <foveate/linear_attention.h>
#include <foveate/random_features.h>

#include <utility>

namespace foveate::layers {

/// Which maximum stabilises exponential features.
enum class Stabilizer {
  running,   ///< of the keys' exponents so far, and of each query's own: strictly causal, streams
  sequence,  ///< the authors' own, over all positions: the future changes the past, if by rounding and constants alone
  none,
};

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
  Stabilizer stabilizer = Stabilizer::running;
  bool causal = false;
  optional<Tensor> key_mask = {};  // bool [B,M]
  ops::Normalizer normalizer = ops::Normalizer::guard;
  double eps = 0;  // of the denominator, an estimate of sum_j kernel(q, k_j), under the tops
};

/// q [B,H,N,F], k [B,Hk,M,F], v [B,Hk,M,Dv] -> [B,H,N,Dv], and the sums after all keys.
FOVEATE_API std::pair<Tensor, FeatureSums> feature_attention(const Features& q, const Features& k, const Tensor& v, const FeatureAttention& options,
                                                             const FeatureSums& past = {});

/// The options of forms that can do with less memory, see ops/memory.h.
void memory_fields(auto&& f, auto& o) {
  f("memory", o.memory,
    "full: keeps features of all positions for the gradient; minimal: computes them anew, a chunk at a time, not with the stabilizer sequence");
  f("chunk", o.chunk, "positions that minimal memory takes at a time");
}

}  // namespace foveate::layers

namespace foveate {
  template <> inline constexpr auto names<layers::Stabilizer> = std::array<std::string_view, 3>{"running", "sequence", "none"};
}  // namespace foveate
