#include <foveate/efficient_attention.h>
#include <foveate/linear_attention.h>

#include <limits>

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
  if (o.normalization == EfficientNormalization::scaling) {
    const auto sum = ops::linear_attention(in.q, in.k, in.v, {.key_mask = in.key_mask, .normalizer = ops::Normalizer::none});
    return divide_by_count(sum.out, in.k, in.key_mask);
  }
  const auto tempered = [&](const Tensor& x) { return o.temperature == 1 ? x : x / o.temperature; };
  const Tensor q = tempered(in.q).softmax(-1), k = softmax_positions(tempered(in.k), in.key_mask);
  return ops::linear_attention(q, k, in.v, {.key_mask = in.key_mask, .normalizer = ops::Normalizer::none}).out;
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
