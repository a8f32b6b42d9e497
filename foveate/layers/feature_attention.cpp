#include <foveate/feature_attention.h>

#include <algorithm>

namespace foveate::layers {
namespace {

/// The top of nothing: finite, so that differences are never NaN.
constexpr double lowest = -1e30;

/// Features of queries and keys, and what the tops of the keys do to the sums.
struct Made {
  Tensor q, k;
  optional<Tensor> log_decay;  // [B,Hk,M]: what each key's new maximum leaves of the sums before it
  Tensor left;                 // [B,Hk]: what the keys' maximum leaves of the sums before them all, where log_decay does not say
  Tensor after;                // [B,Hk]; undefined: there is none
};

ops::Projection compute(const Features& features, const ops::ProjectedFeatures& map) {
  if (features.plain.defined()) return {.phi = features.plain, .top = {}};
  return ops::projected_features(features.x, features.W, map);
}

Made under_running_tops(const Features& q, const Features& k, const FeatureAttention& o, const Tensor& past) {
  ops::ProjectedFeatures of_q = q.map, of_k = k.map;
  // Without constants beside the exponentials the tops cancel, and so would their gradients.
  of_q.detach = of_k.detach = k.map.eps == 0 && o.eps == 0;
  of_q.top = ops::Top::own;
  of_k.top = o.causal ? ops::Top::running : ops::Top::whole;
  of_k.key_mask = o.key_mask;
  if (past.defined()) of_k.past = past;
  auto [phi, top] = compute(k, of_k);
  if (of_k.detach) top = top.detach();
  Made made{.q = compute(q, of_q).phi, .k = std::move(phi)};
  const Size B = extent(top, 0), Hk = extent(top, 1), M = extent(top, 2);
  const Tensor before = !past.defined() ? top.new_full_symint({B, Hk}, lowest) : of_k.detach ? past.detach() : past;
  if (o.causal) {
    const Tensor so_far = at::cat({before.unsqueeze(-1), top}, -1);  // [B,Hk,1+M]
    made.log_decay = so_far.narrow_symint(-1, 0, M) - so_far.narrow_symint(-1, 1, M);
    made.after = so_far.select(-1, -1);
  } else {
    made.after = top.squeeze(-1);
    if (past.defined()) made.left = (before - made.after).exp();
  }
  return made;
}

Made make(const Features& q, const Features& k, const FeatureAttention& o, const Tensor& past) {
  if (k.exponential() && o.stabilizer == Stabilizer::running) return under_running_tops(q, k, o, past);
  ops::ProjectedFeatures of_q = q.map, of_k = k.map;
  if (k.exponential()) of_k.key_mask = o.key_mask;
  if (k.exponential() && o.stabilizer == Stabilizer::sequence) {
    of_q.top = q.own ? ops::Top::own : ops::Top::whole;
    of_k.top = ops::Top::whole;
    of_q.bare = of_k.bare = true;
  }
  return {.q = compute(q, of_q).phi, .k = compute(k, of_k).phi};
}

}  // namespace

std::pair<Tensor, FeatureSums> feature_attention(const Features& q, const Features& k, const Tensor& v, const FeatureAttention& o,
                                                 const FeatureSums& past) {
  const Made made = make(q, k, o, past.top);
  ops::LinearState state{.S = past.S, .z = past.z};
  if (made.left.defined()) state = {.S = past.S * made.left.unsqueeze(-1).unsqueeze(-1), .z = past.z * made.left.unsqueeze(-1)};
  // Long vectors leave products of features that round to nothing: a denominator this small has no inverse, and its query gets zeros.
  const double least = made.after.defined() ? (v.scalar_type() == at::kDouble ? 1e-200 : 1e-30) : 0;
  auto [out, sums] = ops::linear_attention(made.q, made.k, v,
                                           {.causal = o.causal,
                                            .key_mask = o.key_mask,
                                            .log_decay = made.log_decay,
                                            .state = state,
                                            .normalizer = o.normalizer,
                                            .eps = std::max(o.eps / k.weight, least)});
  if (o.normalizer == ops::Normalizer::none) out = out * k.weight;
  const Tensor top = made.after.defined() ? made.after : sums.z.new_zeros_symint({extent(sums.z, 0), extent(sums.z, 1)});
  return {std::move(out), FeatureSums{.S = std::move(sums.S), .z = std::move(sums.z), .top = top}};
}

}  // namespace foveate::layers
