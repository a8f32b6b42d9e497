#include <foveate/feature_attention.h>

#include <algorithm>

namespace foveate::layers {
namespace {

/// The top of nothing: finite, so that differences are never NaN.
constexpr double lowest = -1e30;

Tensor hide(const Tensor& x, const optional<Tensor>& hidden) { return hidden ? x.masked_fill(*hidden, lowest) : x; }

/// The features under a top that broadcasts to [B,H,N,1], undefined for none; exponentials of hidden positions are 0.
Tensor below(const Features& x, const Tensor& top, const optional<Tensor>& hidden = {}) {
  Tensor phi = x.body;
  if (x.shift.defined()) {
    const Tensor shift = hide(top.defined() ? x.shift - top : x.shift, hidden);
    const Tensor growth = (x.u.defined() ? x.u + shift : shift).exp();
    phi = phi.defined() ? phi * growth : growth;
  }
  return x.epsilon == 0 ? phi : phi + x.epsilon;
}

/// The greatest exponent of each position: [B,H,N,1]
Tensor exponents(const Features& x) { return x.u.defined() ? x.u.amax(-1, /*keepdim=*/true) + x.shift : x.shift; }

/// The greatest of level [B,H,N,1] along the sequence: [B,H,1,1]
Tensor greatest(const Tensor& level) {
  return at::constant_pad_nd(level, {0, 0, 1, 0}, lowest).amax(-2, /*keepdim=*/true);  // one more position, below all others: there may be none
}

struct Tops {
  Tensor q, k;                 // [B,H,N or 1,1], [B,Hk,M or 1,1]; undefined: none
  optional<Tensor> log_decay;  // [B,Hk,M]: what each key's new maximum leaves of the sums before it
  Tensor left;                 // [B,Hk]: what the keys' maximum leaves of the sums before them all, where log_decay does not say
  Tensor after;                // [B,Hk]
};

Tops running_tops(const Features& q, const Features& k, const FeatureAttention& o, const Tensor& past, const optional<Tensor>& hidden) {
  // Without constants beside the exponentials the tops cancel, and so would their gradients.
  const auto top = [cancels = k.epsilon == 0 && o.eps == 0](const Tensor& t) { return cancels ? t.detach() : t; };
  Tops tops{.q = top(exponents(q))};
  const Tensor level = top(hide(exponents(k), hidden)).squeeze(-1);  // [B,Hk,M]
  const Size B = extent(level, 0), Hk = extent(level, 1), M = extent(level, 2);
  const Tensor before = past.defined() ? top(past) : level.new_full_symint({B, Hk}, lowest);
  const Tensor all = at::cat({before.unsqueeze(-1), level}, -1);  // [B,Hk,1+M]
  if (o.causal) {
    const Tensor so_far = std::get<0>(all.cummax(-1)), now = so_far.narrow_symint(-1, 1, M);
    tops.k = now.unsqueeze(-1);
    tops.log_decay = so_far.narrow_symint(-1, 0, M) - now;
    tops.after = so_far.select(-1, -1);
  } else {
    tops.after = all.amax(-1);
    tops.k = tops.after.unsqueeze(-1).unsqueeze(-1);
    if (past.defined()) tops.left = (before - tops.after).exp();
  }
  return tops;
}

}  // namespace

std::pair<Tensor, FeatureSums> feature_attention(const Features& q, const Features& k, const Tensor& v, const FeatureAttention& o,
                                                 const FeatureSums& past) {
  const auto hidden = o.key_mask ? optional(o.key_mask->logical_not().unsqueeze(1).unsqueeze(-1)) : std::nullopt;  // [B,1,M,1]
  Tops tops;
  if (k.shift.defined()) {
    if (o.stabilizer == Stabilizer::running) tops = running_tops(q, k, o, past.top, hidden);
    else if (o.stabilizer == Stabilizer::sequence) {
      tops.q = q.own ? q.level : greatest(q.level);
      tops.k = greatest(hide(k.level, hidden));
    }
  }
  ops::LinearState state{.S = past.S, .z = past.z};
  if (tops.left.defined()) state = {.S = past.S * tops.left.unsqueeze(-1).unsqueeze(-1), .z = past.z * tops.left.unsqueeze(-1)};
  // Long vectors leave products of features that round to nothing: a denominator this small has no inverse, and its query gets zeros.
  const double least = tops.after.defined() ? (v.scalar_type() == at::kDouble ? 1e-200 : 1e-30) : 0;
  auto [out, sums] = ops::linear_attention(below(q, tops.q), below(k, tops.k, hidden), v,
                                           {.causal = o.causal,
                                            .key_mask = o.key_mask,
                                            .log_decay = tops.log_decay,
                                            .state = state,
                                            .normalizer = o.normalizer,
                                            .eps = std::max(o.eps / k.weight, least)});
  if (o.normalizer == ops::Normalizer::none) out = out * k.weight;
  const Tensor top = tops.after.defined() ? tops.after : sums.z.new_zeros_symint({extent(sums.z, 0), extent(sums.z, 1)});
  return {std::move(out), FeatureSums{.S = std::move(sums.S), .z = std::move(sums.z), .top = top}};
}

}  // namespace foveate::layers
