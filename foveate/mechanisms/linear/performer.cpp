#include <foveate/attention_formula.h>
#include <foveate/by_parts.h>
#include <foveate/performer.h>

namespace foveate {
namespace {

using Function = PerformerAttention;
using layers::Stabilizer;

void check_options(const char* form, const Function::Options& o) {
  const bool running = o.stabilizer == Stabilizer::running;
  TORCH_CHECK_VALUE(o.nb_features > 0, form, ": nb_features must be positive, got ", o.nb_features);
  TORCH_CHECK_VALUE(o.scale.value_or(1) > 0, form, ": scale must be positive, got ", *o.scale);
  TORCH_CHECK_VALUE(o.eps >= 0, form, ": eps must not be negative, got ", o.eps);
  TORCH_CHECK_VALUE(o.denominator_eps >= 0, form, ": denominator_eps must not be negative, got ", o.denominator_eps);
  TORCH_CHECK_VALUE(o.renormalize || !running, form,
                    ": renormalize=False needs the stabilizer sequence or none: the running maximum cancels in the division alone");
  TORCH_CHECK_VALUE(o.denominator != PerformerDenominator::add_to_keys || !running, form,
                    ": denominator add_to_keys needs the stabilizer sequence or none: it counts every key under one maximum");
  ops::check_memory(form, o.memory, o.chunk, o.stabilizer != Stabilizer::sequence);
}

void check_step(const char* form, const Function::Options& o) {
  TORCH_CHECK_VALUE(o.stabilizer != Stabilizer::sequence, form, "_step: stabilizer must be running or none for the form to stream, got sequence");
}

Tensor draw(const Function::Options& o, int64_t dim, const at::TensorOptions& options) {
  return layers::draw_projection({.features = o.nb_features, .dim = dim, .orthogonal = o.orthogonal, .row_norm = o.row_norm, .rotation = o.rotation},
                                 options);
}

/// The draw of a call: the given one, else a new one.
Tensor drawn(const Function::Options& o, const Function::Inputs& in) {
  return in.projection ? *in.projection : draw(o, plain_extent(in.q, -1), in.q.options());
}

layers::Features features(const Function::Options& o, const Tensor& x, const Tensor& W) {
  const double scale = o.scale.value_or(default_scale(x));
  return o.features == PerformerFeatures::positive ? layers::positive_features(x, W, scale, o.eps) : layers::hyperbolic_features(x, W, scale, o.eps);
}

/// The sums before any key where s is added to each: a feature of the authors is sqrt(weight) of ours.
layers::FeatureSums added_to_keys(const layers::Features& k, const Tensor& v, double s) {
  const Size B = extent(v, 0), Hk = extent(v, 1);
  const int64_t F = layers::width_of(k);
  return {.S = v.new_zeros_symint({B, Hk, F, extent(v, 3)}), .z = v.new_full_symint({B, Hk, F}, s / std::sqrt(k.weight)), .top = {}};
}

std::pair<Tensor, layers::FeatureSums> attend(const Function::Options& o, const Function::Inputs& in, const layers::FeatureSums& past = {}) {
  const auto type = in.q.scalar_type(), wide = ops::accumulation_type(type);
  const Tensor W = drawn(o, in).to(wide), v = in.v.to(wide);
  const auto k = features(o, in.k.to(wide), W);
  layers::FeatureAttention how{.stabilizer = o.stabilizer, .causal = o.causal, .key_mask = in.key_mask, .eps = o.denominator_eps};
  if (!o.renormalize) how.normalizer = ops::Normalizer::none;
  else if (o.denominator == PerformerDenominator::add) how.normalizer = ops::Normalizer::add;
  const bool to_keys = o.renormalize && o.denominator == PerformerDenominator::add_to_keys;
  if (to_keys) how.eps = 0;
  auto [out, sums] = layers::feature_attention(features(o, in.q.to(wide), W), k, v, how,
                                               to_keys && !past.S.defined() ? added_to_keys(k, v, o.denominator_eps) : past);
  return {out.to(type), std::move(sums)};
}

Function::Options of_layer(const PerformerMultiheadAttention::Options& o) {
  return {.features = o.features,
          .nb_features = o.nb_features,
          .orthogonal = o.orthogonal,
          .row_norm = o.row_norm,
          .rotation = o.rotation,
          .scale = o.scale,
          .stabilizer = o.stabilizer,
          .eps = o.eps,
          .causal = o.causal,
          .denominator = o.denominator,
          .denominator_eps = o.denominator_eps,
          .memory = o.memory,
          .chunk = o.chunk};
}

layers::Heads heads(const PerformerMultiheadAttention::Parameters& p) { return {.query = p.query, .key = p.key, .value = p.value, .out = p.out}; }

std::pair<Tensor, layers::FeatureSums> attend(const PerformerMultiheadAttention::Options& o, const PerformerMultiheadAttention::Parameters& p,
                                              const PerformerMultiheadAttention::Inputs& in, const layers::FeatureSums& past = {}) {
  const auto [q, k, v] = heads(p).project(in.x, in.context.value_or(in.x), o.num_heads);
  auto [out, sums] = attend(of_layer(o), {.q = q, .k = k, .v = v, .key_mask = in.key_mask, .projection = p.drawn.projection}, past);
  return {heads(p).join(out), std::move(sums)};
}

}  // namespace

void PerformerAttention::check(const Options& o) { check_options("performer_attention", o); }

Tensor PerformerAttention::forward(const Options& o, const Parameters& p, const Inputs& in) {
  if (o.memory == Memory::full) return attend(o, in).first;
  Inputs given = in;
  given.projection = drawn(o, in);
  return ops::by_parts<PerformerAttention>(o, p, std::move(given));
}

std::pair<Tensor, PerformerAttention::State> PerformerAttention::step(const Options& o, const Parameters&, const Inputs& in, State&& past) {
  check_step("performer_attention", o);
  TORCH_CHECK_VALUE(in.projection, "performer_attention_step: projection must be given: one draw serves a whole sequence");
  return attend(o, in, past);
}

FOVEATE_MECHANISM(PerformerAttention)
FOVEATE_BY_PARTS(PerformerAttention)

void PerformerMultiheadAttention::check(const Options& o) {
  layers::check_heads("performer_multihead_attention", o.embed_dim, o.num_heads, o.head_dim);
  check_options("performer_multihead_attention", of_layer(o));
}

PerformerMultiheadAttention::Parameters PerformerMultiheadAttention::init(const Options& o) {
  const int64_t width = o.head_dim.value_or(o.embed_dim / o.num_heads), inner = o.num_heads * width;
  auto made = layers::Heads::init(
      {.width = o.embed_dim, .context_width = o.context_dim, .keys = inner, .values = inner, .bias = o.bias, .out_bias = o.output_bias});
  return {.query = made.query,
          .key = made.key,
          .value = made.value,
          .out = made.out,
          .drawn = {.projection = draw(of_layer(o), width, made.query.weight.options())}};
}

Tensor PerformerMultiheadAttention::forward(const Options& o, const Parameters& p, const Inputs& in) {
  if (o.memory == Memory::full) return attend(o, p, in).first;
  Inputs given = in;
  if (!o.causal) given.context = in.context.value_or(in.x);  // keys come before queries then
  return ops::by_parts<PerformerMultiheadAttention>(o, p, std::move(given));
}

std::pair<Tensor, PerformerMultiheadAttention::State> PerformerMultiheadAttention::step(const Options& o, const Parameters& p, const Inputs& in,
                                                                                        State&& past) {
  check_step("performer_multihead_attention", of_layer(o));
  return attend(o, p, in, past);
}

FOVEATE_MECHANISM(PerformerMultiheadAttention)
FOVEATE_BY_PARTS(PerformerMultiheadAttention)

}  // namespace foveate
