#include <foveate/attention_formula.h>
#include <foveate/by_parts.h>
#include <foveate/feature_attention.h>
#include <foveate/init.h>
#include <foveate/slim_performer.h>

namespace foveate {
namespace {

using Layer = SlimPerformerLayer;

/// x [B,H,N,D] -> [B,H,N,R]; rfs [H,D,R] with favor+
layers::Features features(SlimFeatures type, const Tensor& x, const Tensor& rfs) {
  switch (type) {
    case SlimFeatures::relu: return layers::generalized_features(x, {}, layers::FeatureMap::relu, 0);
    case SlimFeatures::elu_plus_one: return layers::generalized_features(x, {}, layers::FeatureMap::elu_plus_one, 0);
    case SlimFeatures::square: return layers::generalized_features(x, {}, layers::FeatureMap::square, 0);
    case SlimFeatures::absolute: return layers::generalized_features(x, {}, layers::FeatureMap::absolute, 0);
    case SlimFeatures::favor_plus: {
      auto positive = layers::positive_features(x, rfs.transpose(-1, -2), default_scale(x));
      positive.weight = 1;  // the denominator's constant stands beside features that are not divided by sqrt(m)
      return positive;
    }
  }
  TORCH_CHECK(false, "slim_performer: unknown features");
}

/// A draw [H,D,R]: orthogonal blocks with rows of length sqrt(D), head by head.
Tensor draw(const Layer::Options& o, const at::TensorOptions& options) {
  const int64_t width = o.hidden_dim / o.n_heads;
  std::vector<Tensor> heads;
  for (int64_t h = 0; h < o.n_heads; ++h) {
    heads.push_back(layers::draw_projection({.features = o.favor_blocks * width, .dim = width, .row_norm = layers::RowNorm::sqrt_dim}, options).t());
  }
  return at::stack(heads);
}

/// The draw of a call: the given one, else a new one; none but with favor+.
optional<Tensor> drawn(const Layer::Options& o, const optional<Tensor>& given, const Tensor& like) {
  return given || o.feature_type != SlimFeatures::favor_plus ? given : draw(o, like.options());
}

/// Attention and its sums after x [B,N,E]
std::pair<Tensor, Layer::State> attend(const Layer::Options& o, const SlimPerformerBlock& p, const Tensor& x, const Layer::Inputs& in,
                                       const Layer::State& past) {
  const auto type = x.scalar_type(), wide = ops::accumulation_type(type);  // exponentials and squares lose too much in half precision
  const auto given = drawn(o, in.rfs, x);
  const Tensor rfs = given ? given->to(wide) : Tensor();
  const auto heads = [&](const layers::Linear& projection) { return split_heads(projection(x), o.n_heads).to(wide); };
  auto [out, sums] = layers::feature_attention(
      features(o.feature_type, heads(p.query), rfs), features(o.feature_type, heads(p.key), rfs), heads(p.value),
      {.stabilizer = layers::Stabilizer::none, .causal = true, .key_mask = in.key_mask, .normalizer = ops::Normalizer::add, .eps = 1e-16},
      {.S = past.S, .z = past.z, .top = {}});
  return {merge_heads(out).to(type), Layer::State{.S = std::move(sums.S), .z = std::move(sums.z)}};
}

std::pair<Tensor, Layer::State> layer(const Layer::Options& o, const SlimPerformerBlock& p, const Layer::Inputs& in, const Layer::State& past) {
  const auto network = [&](const Tensor& x) { return p.down(at::gelu(p.up(x))); };
  auto [attended, state] = attend(o, p, o.post_layernorm ? in.x : p.attention_norm(in.x), in, past);
  const Tensor x = in.x + (o.post_layernorm ? p.attention_norm(attended) : attended);
  return {x + (o.post_layernorm ? p.feed_forward_norm(network(x)) : network(p.feed_forward_norm(x))), std::move(state)};
}

Layer::Options layer_options(const SlimPerformer::Options& o) {
  return {.hidden_dim = o.hidden_dim,
          .n_heads = o.n_heads,
          .ffn_dim = o.ffn_dim,
          .feature_type = o.feature_type,
          .favor_blocks = o.favor_blocks,
          .post_layernorm = o.post_layernorm,
          .memory = o.memory,
          .chunk = o.chunk};
}

void check_layer(const char* form, const Layer::Options& o) {
  TORCH_CHECK_VALUE(o.n_heads > 0 && o.hidden_dim > 0 && o.hidden_dim % o.n_heads == 0, form, ": n_heads must divide hidden_dim, got ", o.n_heads,
                    " and ", o.hidden_dim);
  TORCH_CHECK_VALUE(o.ffn_dim > 0, form, ": ffn_dim must be positive, got ", o.ffn_dim);
  TORCH_CHECK_VALUE(o.favor_blocks > 0, form, ": favor_blocks must be positive, got ", o.favor_blocks);
  ops::check_memory(form, o.memory, o.chunk, true);
}

void check_draw(const char* form, SlimFeatures type, const optional<Tensor>& rfs) {
  TORCH_CHECK_VALUE(rfs || type != SlimFeatures::favor_plus, form, "_step: rfs must be given with favor+: one draw serves a whole sequence");
}

/// Sines and cosines of positions [N] -> [N,E/2]
Tensor sinusoids(const Tensor& positions, int64_t width, at::ScalarType type) {
  const auto options = positions.options().dtype(ops::accumulation_type(type));
  const Tensor rates = (at::arange(0, width / 2, 2, options) * (-std::log(10000.0) / (static_cast<double>(width) / 2))).exp();  // [E/4]
  const Tensor angles = positions.unsqueeze(-1) * rates;
  return at::cat({angles.sin(), angles.cos()}, -1).to(type);
}

std::pair<Tensor, SlimPerformer::State> model(const SlimPerformer::Options& o, const SlimPerformer::Parameters& p, const SlimPerformer::Inputs& in,
                                              const SlimPerformer::State& past) {
  const Size N = extent(in.tokens, 1);
  const Tensor start = past.position.defined() ? past.position : at::zeros({}, in.tokens.options());
  const Tensor positions = at::arange(N, in.tokens.options()) + start;
  const Tensor table = sinusoids(positions, o.hidden_dim, p.embedding.scalar_type());  // [N,E/2]
  Tensor x = at::cat({at::embedding(p.embedding, in.tokens), table.unsqueeze(0).expand_symint({extent(in.tokens, 0), N, o.hidden_dim / 2})}, -1);
  std::vector<Tensor> S, z;
  for (std::size_t l = 0; l < p.layers.size(); ++l) {
    const auto index = static_cast<int64_t>(l);
    Layer::State before;
    if (past.S.defined()) before = {.S = past.S.select(0, index), .z = past.z.select(0, index)};
    auto [y, after] = layer(layer_options(o), p.layers[l],
                            {.x = x, .key_mask = in.key_mask, .rfs = in.rfs ? optional(in.rfs->select(0, index)) : std::nullopt}, before);
    x = std::move(y);
    S.push_back(std::move(after.S));
    z.push_back(std::move(after.z));
  }
  return {p.output(x), SlimPerformer::State{.position = start + at::Scalar(N), .S = at::stack(S), .z = at::stack(z)}};
}

}  // namespace

void SlimPerformerLayer::check(const Options& o) { check_layer("slim_performer_layer", o); }

SlimPerformerBlock SlimPerformerLayer::init(const Options& o) {
  const auto square = [&] { return layers::Linear::init(o.hidden_dim, o.hidden_dim); };
  return {.query = square(),
          .key = square(),
          .value = square(),
          .up = layers::Linear::init(o.hidden_dim, o.ffn_dim),
          .down = layers::Linear::init(o.ffn_dim, o.hidden_dim),
          .attention_norm = layers::LayerNorm::init(o.hidden_dim),
          .feed_forward_norm = layers::LayerNorm::init(o.hidden_dim)};
}

Tensor SlimPerformerLayer::forward(const Options& o, const Parameters& p, const Inputs& in) {
  if (o.memory == Memory::full) return layer(o, p, in, {}).first;
  return ops::by_parts<SlimPerformerLayer>(o, p, {.x = in.x, .key_mask = in.key_mask, .rfs = drawn(o, in.rfs, in.x)});
}

std::pair<Tensor, SlimPerformerLayer::State> SlimPerformerLayer::step(const Options& o, const Parameters& p, const Inputs& in, State&& past) {
  check_draw("slim_performer_layer", o.feature_type, in.rfs);
  return layer(o, p, in, past);
}

FOVEATE_MECHANISM(SlimPerformerLayer)
FOVEATE_BY_PARTS(SlimPerformerLayer)

void SlimPerformer::check(const Options& o) {
  check_layer("slim_performer", layer_options(o));
  TORCH_CHECK_VALUE(o.hidden_dim % 4 == 0, "slim_performer: hidden_dim must be a multiple of 4, got ", o.hidden_dim);
  TORCH_CHECK_VALUE(o.vocab_size > 0, "slim_performer: vocab_size must be positive, got ", o.vocab_size);
  TORCH_CHECK_VALUE(o.n_layers > 0, "slim_performer: n_layers must be positive, got ", o.n_layers);
}

SlimPerformer::Parameters SlimPerformer::shape(const Options& o) {
  Parameters sized;
  sized.layers.resize(static_cast<std::size_t>(o.n_layers));
  return sized;
}

SlimPerformer::Parameters SlimPerformer::init(const Options& o) {
  Parameters made = shape(o);
  made.embedding = foveate::layers::normal({o.vocab_size, o.hidden_dim / 2}, 1);  // as torch.nn.Embedding
  for (auto& block : made.layers) block = SlimPerformerLayer::init(layer_options(o));
  made.output = foveate::layers::Linear::init(o.hidden_dim, o.vocab_size);
  return made;
}

Tensor SlimPerformer::forward(const Options& o, const Parameters& p, const Inputs& in) {
  if (o.memory == Memory::full) return model(o, p, in, {}).first;
  Inputs given = in;
  if (!in.rfs && o.feature_type == SlimFeatures::favor_plus) {
    std::vector<Tensor> each;
    for (std::size_t l = 0; l < p.layers.size(); ++l) each.push_back(draw(layer_options(o), p.embedding.options()));
    given.rfs = at::stack(each);
  }
  return ops::by_parts<SlimPerformer>(o, p, std::move(given));
}

std::pair<Tensor, SlimPerformer::State> SlimPerformer::step(const Options& o, const Parameters& p, const Inputs& in, State&& past) {
  check_draw("slim_performer", o.feature_type, in.rfs);
  return model(o, p, in, past);
}

FOVEATE_MECHANISM(SlimPerformer)
FOVEATE_BY_PARTS(SlimPerformer)

}  // namespace foveate
