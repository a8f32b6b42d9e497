#include <foveate/attention_formula.h>
#include <foveate/by_parts.h>
#include <foveate/favor.h>

namespace foveate {
namespace {

using Function = FavorAttention;

bool of_softmax(FavorFeatures features) { return features != FavorFeatures::generalized; }

bool streams(const Function::Options& o) { return !of_softmax(o.features) || o.stabilizer != layers::Stabilizer::sequence; }

/// Rows of W where it is drawn; none for generalized features of x itself.
optional<int64_t> drawn_features(const Function::Options& o) { return o.nb_features || !of_softmax(o.features) ? o.nb_features : 256; }

void check_options(const char* form, const Function::Options& o) {
  TORCH_CHECK_VALUE(o.nb_features.value_or(1) > 0, form, ": nb_features must be positive, got ", *o.nb_features);
  TORCH_CHECK_VALUE(o.numerical_stabilizer.value_or(0) >= 0, form, ": numerical_stabilizer must not be negative, got ", *o.numerical_stabilizer);
  TORCH_CHECK_VALUE(o.renormalize || !of_softmax(o.features) || o.stabilizer != layers::Stabilizer::running, form,
                    ": renormalize=False needs the stabilizer sequence or none: the running maximum cancels in the division alone");
  ops::check_memory(form, o.memory, o.chunk, streams(o));
}

void check_step(const char* form, const Function::Options& o) {
  TORCH_CHECK_VALUE(streams(o), form, "_step: stabilizer must be running or none for the form to stream, got sequence");
}

layers::Drawn draw(const Function::Options& o, int64_t dim, const at::TensorOptions& options) {
  layers::Drawn drawn;
  const auto m = drawn_features(o);
  if (m)
    drawn.projection =
        layers::draw_projection({.features = *m, .dim = dim, .orthogonal = o.orthogonal, .row_norm = o.row_norm, .rotation = o.rotation}, options);
  if (o.features == FavorFeatures::cos_phase) drawn.phase = layers::draw_phase(*m, options);
  return drawn;
}

layers::Features features(const Function::Options& o, const Tensor& x, const layers::Drawn& drawn) {
  const double scale = o.normalize_data.value_or(of_softmax(o.features)) ? default_scale(x) : 1;  // of q.k
  const auto& W = drawn.projection;
  switch (o.features) {
    case FavorFeatures::generalized: {
      double factor = std::sqrt(scale);
      if (o.divide_by_root && W) factor /= std::sqrt(static_cast<double>(plain_extent(*W, 0)));
      return layers::generalized_features(factor == 1 ? x : x * factor, W, o.kernel_fn, o.kernel_epsilon);
    }
    case FavorFeatures::sincos: return layers::sincos_features(x, *W, scale);
    case FavorFeatures::cos_phase: return layers::cos_phase_features(x, *W, *drawn.phase, scale);
  }
  TORCH_CHECK(false, "favor_attention: unknown features");
}

/// The draws of a call: those given, and new ones for those that are not.
layers::Drawn draws(const Function::Options& o, const Function::Inputs& in) {
  const bool complete = (in.projection || !drawn_features(o)) && (in.phase || o.features != FavorFeatures::cos_phase);
  layers::Drawn drawn = complete ? layers::Drawn{} : draw(o, plain_extent(in.q, -1), in.q.options());
  if (in.projection) drawn.projection = in.projection;
  if (in.phase) drawn.phase = in.phase;
  return drawn;
}

std::pair<Tensor, layers::FeatureSums> attend(const Function::Options& o, const Function::Inputs& in, const layers::FeatureSums& past = {}) {
  const auto type = in.q.scalar_type(), wide = ops::accumulation_type(type);
  layers::Drawn drawn = draws(o, in);
  for (auto* tensor : {&drawn.projection, &drawn.phase}) {
    if (*tensor) *tensor = (*tensor)->to(wide);
  }
  auto [out, sums] = layers::feature_attention(features(o, in.q.to(wide), drawn), features(o, in.k.to(wide), drawn), in.v.to(wide),
                                               {.stabilizer = o.stabilizer,
                                                .causal = o.causal,
                                                .key_mask = in.key_mask,
                                                .normalizer = o.renormalize ? ops::Normalizer::guard : ops::Normalizer::none,
                                                .eps = o.numerical_stabilizer.value_or(of_softmax(o.features) ? 1e-6 : 0)},
                                               past);
  return {out.to(type), std::move(sums)};
}

Function::Options of_layer(const FavorMultiheadAttention::Options& o) {
  return {.features = o.features,
          .kernel_fn = o.kernel_fn,
          .kernel_epsilon = o.kernel_epsilon,
          .nb_features = o.nb_features,
          .orthogonal = o.orthogonal,
          .row_norm = o.row_norm,
          .rotation = o.rotation,
          .divide_by_root = o.divide_by_root,
          .normalize_data = o.normalize_data,
          .stabilizer = o.stabilizer,
          .causal = o.causal,
          .numerical_stabilizer = o.numerical_stabilizer,
          .memory = o.memory,
          .chunk = o.chunk};
}

layers::Heads heads(const FavorMultiheadAttention::Parameters& p) { return {.query = p.query, .key = p.key, .value = p.value, .out = p.out}; }

std::pair<Tensor, layers::FeatureSums> attend(const FavorMultiheadAttention::Options& o, const FavorMultiheadAttention::Parameters& p,
                                              const FavorMultiheadAttention::Inputs& in, const layers::FeatureSums& past = {}) {
  const auto [q, k, v] = heads(p).project(in.x, in.context.value_or(in.x), o.num_heads);
  auto [out, sums] =
      attend(of_layer(o), {.q = q, .k = k, .v = v, .key_mask = in.key_mask, .projection = p.drawn.projection, .phase = p.drawn.phase}, past);
  return {heads(p).join(out), std::move(sums)};
}

}  // namespace

void FavorAttention::check(const Options& o) { check_options("favor_attention", o); }

Tensor FavorAttention::forward(const Options& o, const Parameters& p, const Inputs& in) {
  if (o.memory == Memory::full) return attend(o, in).first;
  Inputs given = in;
  auto drawn = draws(o, in);
  given.projection = std::move(drawn.projection);
  given.phase = std::move(drawn.phase);
  return ops::by_parts<FavorAttention>(o, p, std::move(given));
}

std::pair<Tensor, FavorAttention::State> FavorAttention::step(const Options& o, const Parameters&, const Inputs& in, State&& past) {
  check_step("favor_attention", o);
  TORCH_CHECK_VALUE(in.projection || !drawn_features(o), "favor_attention_step: projection must be given: one draw serves a whole sequence");
  TORCH_CHECK_VALUE(in.phase || o.features != FavorFeatures::cos_phase,
                    "favor_attention_step: phase must be given: one draw serves a whole sequence");
  return attend(o, in, past);
}

FOVEATE_MECHANISM(FavorAttention)
FOVEATE_BY_PARTS(FavorAttention)

void FavorMultiheadAttention::check(const Options& o) {
  layers::check_heads("favor_multihead_attention", o.embed_dim, o.num_heads, o.head_dim);
  check_options("favor_multihead_attention", of_layer(o));
}

FavorMultiheadAttention::Parameters FavorMultiheadAttention::init(const Options& o) {
  const int64_t width = o.head_dim.value_or(o.embed_dim / o.num_heads), inner = o.num_heads * width;
  auto made = layers::Heads::init({.width = o.embed_dim, .context_width = o.context_dim, .keys = inner, .values = inner, .bias = o.bias});
  return {.query = made.query, .key = made.key, .value = made.value, .out = made.out, .drawn = draw(of_layer(o), width, made.query.weight.options())};
}

Tensor FavorMultiheadAttention::forward(const Options& o, const Parameters& p, const Inputs& in) {
  if (o.memory == Memory::full) return attend(o, p, in).first;
  Inputs given = in;
  if (!o.causal) given.context = in.context.value_or(in.x);  // keys come before queries then
  return ops::by_parts<FavorMultiheadAttention>(o, p, std::move(given));
}

std::pair<Tensor, FavorMultiheadAttention::State> FavorMultiheadAttention::step(const Options& o, const Parameters& p, const Inputs& in,
                                                                                State&& past) {
  check_step("favor_multihead_attention", of_layer(o));
  return attend(o, p, in, past);
}

FOVEATE_MECHANISM(FavorMultiheadAttention)
FOVEATE_BY_PARTS(FavorMultiheadAttention)

}  // namespace foveate
