#include <foveate/attention_formula.h>
#include <foveate/efficient_attention.h>
#include <foveate/linear_attention.h>

#include <limits>
#include <numbers>

namespace foveate {
namespace {

void check_normalization(const char* form, EfficientNormalization normalization, double temperature) {
  TORCH_CHECK_VALUE(temperature > 0, form, ": temperature must be positive, got ", temperature);
  TORCH_CHECK_VALUE(normalization == EfficientNormalization::softmax || temperature == 1, form,
                    ": temperature must be 1 with normalization scaling, which has no softmax, got ", temperature);
}

/// Softmax over positions, those that take part: k [B,H,M,D] -> [B,H,M,D], zeros where nothing takes part.
Tensor softmax_positions(const Tensor& k, const optional<Tensor>& key_mask) {
  if (!key_mask) return k.softmax(-2);
  const Tensor hidden = key_mask->logical_not().unsqueeze(1).unsqueeze(-1);  // [B,1,M,1]
  // Lowest, not -inf: where all is hidden the softmax stays finite, and is then cleared.
  const auto lowest = k.scalar_type() == at::kHalf ? -65504. : static_cast<double>(std::numeric_limits<float>::lowest()) / 2;
  return k.masked_fill(hidden, lowest).softmax(-2).masked_fill(hidden, 0);
}

/// x [B,H,N,Dv] divided by the number of keys that take part, at least 1.
Tensor divide_by_count(const Tensor& x, const Tensor& k, const optional<Tensor>& key_mask) {
  if (!key_mask) return x / at::Scalar(extent(k, 2).max(1));
  return x / key_mask->unsqueeze(1).unsqueeze(1).sum(-1, true).clamp_min(1).to(x.scalar_type());  // by [B,1,1,1]
}

}  // namespace

void EfficientAttention::check(const Options& o) { check_normalization("efficient_attention", o.normalization, o.temperature); }

Tensor EfficientAttention::forward(const Options& o, const Parameters&, const Inputs& in) {
  if (o.causal) return step(o, {}, in, {}).first;
  if (o.normalization == EfficientNormalization::scaling) {
    const auto sum = ops::linear_attention(in.q, in.k, in.v, {.key_mask = in.key_mask, .normalizer = ops::Normalizer::none});
    return divide_by_count(sum.out, in.k, in.key_mask);
  }
  const auto tempered = [&](const Tensor& x) { return o.temperature == 1 ? x : x / o.temperature; };
  const Tensor q = tempered(in.q).softmax(-1), k = softmax_positions(tempered(in.k), in.key_mask);
  return ops::linear_attention(q, k, in.v, {.key_mask = in.key_mask, .normalizer = ops::Normalizer::none}).out;
}

/// The causal form: per channel c, out_i = sum_c rho(q)_ic (sum_{j<=i} e_jc v_j) / z_ic with z_ic = sum_{j<=i} e_jc, e = exp(k) 2^-top. The
/// division joins the query, so that one linear attention is left. `top` keeps the exponentials in range; scaling by powers of two is exact,
/// so that it cancels to the last bit, and what comes later changes nothing.
std::pair<Tensor, EfficientAttention::State> EfficientAttention::step(const Options& o, const Parameters&, const Inputs& in, State&& past) {
  TORCH_CHECK_VALUE(o.causal, "efficient_attention_step: causal must be True for the form to stream, got False");
  TORCH_CHECK_VALUE(extent(in.q, 2) == extent(in.k, 2), "efficient_attention: causal needs as many queries as keys, got ", extent(in.q, 2), " and ",
                    extent(in.k, 2));
  const bool softmax = o.normalization == EfficientNormalization::softmax;
  const auto type = ops::accumulation_type(in.q.scalar_type());
  const Tensor q = in.q.to(type), k = in.k.to(type), v = in.v.to(type);
  const auto hidden = in.key_mask ? optional(in.key_mask->logical_not().unsqueeze(1).unsqueeze(-1)) : std::nullopt;  // [B,1,M,1]
  const auto cleared = [&](const Tensor& x) { return hidden ? x.masked_fill(*hidden, 0) : x; };

  const Tensor none = at::zeros_like(k.narrow_symint(2, 0, 0)).sum(2);  // [B,Hk,D]
  const Tensor before = past.top.defined() ? past.top : (softmax ? none - 1e30 : none);
  Tensor top = none, keys = k, counted = cleared(at::ones_like(k));  // what is summed with values, and alone
  Tensor kept = at::ones_like(none);                                 // of the sums so far, under the new top
  if (softmax) {
    const Tensor power = k * (std::numbers::log2e / o.temperature), whole = power.detach().floor();  // exp(k) = 2^power
    const double lowest = type == at::kDouble ? -480 : -60;                                          // the gradient has the square of this power
    top = at::cat({before.unsqueeze(2), hidden ? whole.masked_fill(*hidden, -1e30) : whole}, 2).amax(2);
    keys = counted = cleared((power - whole).exp2() * (whole - top.unsqueeze(2)).clamp(lowest, 0).exp2());
    kept = (before - top).exp2();
  }
  const Tensor z_before = past.z.defined() ? past.z * kept : none;
  const Tensor z = z_before.unsqueeze(2) + counted.cumsum(2);        // [B,Hk,M,D]
  const Tensor divisor = z.masked_fill(z == 0, 1).unsqueeze(2);      // [B,Hk,1,M,D]
  const Tensor rho = softmax ? (q / o.temperature).softmax(-1) : q;  // [B,H,N,D]
  const Tensor asked = (rho.unflatten(1, {plain_extent(k, 1), -1}) / divisor).flatten(1, 2);
  ops::LinearState state;
  if (past.S.defined()) state = {.S = past.S * kept.unsqueeze(-1), .z = z_before};
  auto sums = ops::linear_attention(asked, keys, v, {.causal = true, .key_mask = in.key_mask, .state = state, .normalizer = ops::Normalizer::none});
  State next{.S = std::move(sums.state.S), .z = z_before + counted.sum(2), .top = top};
  return {sums.out.to(in.q.scalar_type()), std::move(next)};
}

FOVEATE_MECHANISM(EfficientAttention)

void EfficientAttentionBlock::check(const Options& o) {
  TORCH_CHECK_VALUE(o.in_channels > 0, "efficient_attention_block: in_channels must be positive, got ", o.in_channels);
  TORCH_CHECK_VALUE(o.head_count > 0, "efficient_attention_block: head_count must be positive, got ", o.head_count);
  TORCH_CHECK_VALUE(o.key_channels >= o.head_count, "efficient_attention_block: key_channels must give every head one, got ", o.key_channels, " for ",
                    o.head_count, " heads");
  TORCH_CHECK_VALUE(o.value_channels > 0 && o.value_channels % o.head_count == 0,
                    "efficient_attention_block: value_channels must be a multiple of head_count, got ", o.value_channels, " and ", o.head_count);
  check_normalization("efficient_attention_block", o.normalization, o.temperature);
}

EfficientAttentionBlock::Parameters EfficientAttentionBlock::init(const Options& o) {
  const auto pointwise = [](int64_t in, int64_t out) { return layers::Convolution::init(in, out, {1, 1}); };
  return {.keys = pointwise(o.in_channels, o.key_channels),
          .queries = pointwise(o.in_channels, o.key_channels),
          .values = pointwise(o.in_channels, o.value_channels),
          .reprojection = pointwise(o.value_channels, o.in_channels)};
}

Tensor EfficientAttentionBlock::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const auto heads = [&](const Tensor& map, int64_t channels) {  // [B,channels,H,W] -> [B,heads,N,channels/heads]
    const int64_t each = channels / o.head_count;
    return map.flatten(2).narrow(1, 0, o.head_count * each).unflatten(1, {o.head_count, each}).transpose(-1, -2);
  };
  const Tensor attended = EfficientAttention::forward({.normalization = o.normalization, .temperature = o.temperature}, {},
                                                      {.q = heads(p.queries(in.x), o.key_channels),
                                                       .k = heads(p.keys(in.x), o.key_channels),
                                                       .v = heads(p.values(in.x), o.value_channels)});  // [B,heads,N,dv]
  const Tensor map = attended.transpose(-1, -2).flatten(1, 2).unflatten_symint(-1, {extent(in.x, 2), extent(in.x, 3)});
  return in.x + p.reprojection(map);
}

FOVEATE_MECHANISM(EfficientAttentionBlock)

}  // namespace foveate
