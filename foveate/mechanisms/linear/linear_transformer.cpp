#include <foveate/linear_attention.h>
#include <foveate/linear_transformer.h>

namespace foveate {

using Function = LinearTransformerAttention;

void Function::check(const Options& o) { TORCH_CHECK_VALUE(o.eps >= 0, "linear_transformer_attention: eps must not be negative, got ", o.eps); }

std::pair<Tensor, Function::State> Function::step(const Options& o, const Parameters&, const Inputs& in, State&& past) {
  const Tensor q = layers::feature_map(in.q, o.feature_map), k = layers::feature_map(in.k, o.feature_map);
  auto [out, state] = ops::linear_attention(q, k, in.v,
                                            {.causal = o.causal,
                                             .key_mask = in.key_mask,
                                             .state = {.S = past.S, .z = past.z},
                                             .normalizer = ops::Normalizer::add,
                                             .eps = o.eps,
                                             .offset = Size(0)});
  return {std::move(out), State{.S = std::move(state.S), .z = std::move(state.z)}};
}

Tensor Function::forward(const Options& o, const Parameters& p, const Inputs& in) { return step(o, p, in, {}).first; }

FOVEATE_MECHANISM(LinearTransformerAttention)

void LinearTransformer::check(const Options& o) {
  TORCH_CHECK_VALUE(o.d_model > 0, "linear_transformer: d_model must be positive, got ", o.d_model);
  TORCH_CHECK_VALUE(o.n_heads > 0, "linear_transformer: n_heads must be positive, got ", o.n_heads);
  TORCH_CHECK_VALUE((o.d_keys && o.d_values) || o.d_model % o.n_heads == 0,
                    "linear_transformer: n_heads must divide d_model unless d_keys and d_values are given, got ", o.n_heads, " and ", o.d_model);
  TORCH_CHECK_VALUE(o.d_keys.value_or(1) > 0, "linear_transformer: d_keys must be positive, got ", *o.d_keys);
  TORCH_CHECK_VALUE(o.d_values.value_or(1) > 0, "linear_transformer: d_values must be positive, got ", *o.d_values);
  TORCH_CHECK_VALUE(o.eps >= 0, "linear_transformer: eps must not be negative, got ", o.eps);
}

LinearTransformer::Parameters LinearTransformer::init(const Options& o) {
  const int64_t each = o.d_model / o.n_heads;
  return layers::Heads::init({.width = o.d_model,
                              .context_width = o.d_model_keys,
                              .keys = o.n_heads * o.d_keys.value_or(each),
                              .values = o.n_heads * o.d_values.value_or(each)});
}

std::pair<Tensor, LinearTransformer::State> LinearTransformer::step(const Options& o, const Parameters& p, const Inputs& in, State&& past) {
  const auto [q, k, v] = p.project(in.x, in.context.value_or(in.x), o.n_heads);
  auto [out, state] = Function::step({.causal = o.causal, .feature_map = o.feature_map, .eps = o.eps}, {},
                                     {.q = q, .k = k, .v = v, .key_mask = in.key_mask}, std::move(past));
  return {p.join(out), std::move(state)};
}

Tensor LinearTransformer::forward(const Options& o, const Parameters& p, const Inputs& in) { return step(o, p, in, {}).first; }

FOVEATE_MECHANISM(LinearTransformer)

}  // namespace foveate
