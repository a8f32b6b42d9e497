#include <foveate/dropout.h>
#include <foveate/init.h>
#include <foveate/jukebox_model.h>

namespace foveate {
namespace {

using enum JukeboxPattern;

/// What the feed-forward network adds, and the scaled sum.
Tensor residual(const JukeboxBlock::Options& o, const JukeboxBlock::Parameters& p, const Tensor& x, const Tensor& attended, bool training) {
  const Tensor network = p.feed_forward(p.norm_b(x + attended, o.layer_norm_eps), o.activation);
  const Tensor added = layers::dropout(network, o.dropout, std::nullopt, training);
  return x + (attended + added) * o.res_scale;
}

}  // namespace

void JukeboxBlock::check(const Options& o) {
  JukeboxMultiheadAttention::check(o.attention());
  TORCH_CHECK_VALUE(!o.inner_dim || *o.inner_dim > 0, "jukebox: inner_dim must be positive, got ", o.inner_dim.value_or(0));
}

JukeboxBlock::Parameters JukeboxBlock::init(const Options& o) {
  const auto projection = [](int64_t in, int64_t out, double deviation) {
    return layers::Linear{.weight = layers::normal({out, in}, deviation), .bias = layers::zeros({out})};
  };
  const int64_t E = o.embed_dim, inner = o.inner_dim.value_or(E);
  const double deviation = 0.02 * o.init_scale;
  return {.norm_a = layers::LayerNorm::init(E),
          .attention = JukeboxMultiheadAttention::init(o.attention()),
          .norm_b = layers::LayerNorm::init(E),
          .feed_forward = {.up = projection(E, inner, deviation), .down = projection(inner, E, o.zero_out || o.pattern == cross ? 0 : deviation)}};
}

Tensor JukeboxBlock::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  JukeboxMultiheadAttention::Inputs normed = in;
  normed.x = p.norm_a(in.x, o.layer_norm_eps);
  return residual(o, p, in.x, JukeboxMultiheadAttention::forward(o.attention(), p.attention, normed, training), training);
}

std::pair<Tensor, JukeboxBlock::State> JukeboxBlock::step(const Options& o, const Parameters& p, const Inputs& in, State&& past) {
  JukeboxMultiheadAttention::Inputs normed = in;
  normed.x = p.norm_a(in.x, o.layer_norm_eps);
  auto [attended, next] = JukeboxMultiheadAttention::step(o.attention(), p.attention, normed, std::move(past));
  return {residual(o, p, in.x, attended, false), std::move(next)};
}

FOVEATE_MECHANISM(JukeboxBlock)

// --- the stack ---------------------------------------------------------------------------------------------------------------

JukeboxPattern JukeboxTransformer::Options::pattern(int64_t layer) const {
  if (!patterns.empty()) return static_cast<JukeboxPattern>(patterns[static_cast<std::size_t>(layer) % patterns.size()]);
  const std::array grid{JukeboxPattern::block, transpose_block, prev_block};
  const JukeboxPattern turn = grid[static_cast<std::size_t>(layer % 3)];
  const auto ends_with = [&](int64_t rounds, JukeboxPattern last) {  // after so many rounds of the grid's three
    const int64_t place = layer % (3 * rounds + 1);
    return place == 3 * rounds ? last : grid[static_cast<std::size_t>(place % 3)];
  };
  switch (attn_order) {
    case 0: return dense;
    case 1: return grid[static_cast<std::size_t>(layer % 2)];
    case 3: return layer % 2 == 0 ? JukeboxPattern::block : summary;
    case 4: return layer % 2 == 0 ? JukeboxPattern::block : summary_spread;
    case 5: return layer % 4 == 1 ? summary : JukeboxPattern::block;
    case 6: return ends_with(1, cross);
    case 7: return ends_with(5, cross);
    case 8: return ends_with(3, cross);
    case 9: return ends_with(1, dense);
    case 10: return layer >= 9 && (layer - 9) % 10 == 9 ? cross : grid[static_cast<std::size_t>((layer < 9 ? layer : (layer - 9) % 10) % 3)];
    case 11: return layer % 16 == 15 ? std::array{cross, cross, dense}[static_cast<std::size_t>(layer % 3)] : turn;
    case 12: return layer % 16 == 15 ? std::array{prime, prime, dense}[static_cast<std::size_t>(layer % 3)] : turn;
    default: return turn;
  }
}

JukeboxBlock::Options JukeboxTransformer::Options::block(int64_t layer) const {
  return {.embed_dim = embed_dim,
          .num_heads = num_heads,
          .attention_dim = attention_dim,
          .inner_dim = inner_dim,
          .pattern = pattern(layer),
          .block_length = block_length,
          .blocks = blocks,
          .spread = spread,
          .prime_len = prime_len,
          .prime_rounds_up = prime_rounds_up,
          .causal = causal,
          .res_scale = res_scale,
          .activation = activation,
          .layer_norm_eps = layer_norm_eps,
          .init_scale = init_scale,
          .zero_out = zero_out,
          .attention_dropout = attention_dropout,
          .dropout = dropout};
}

void JukeboxTransformer::check(const Options& o) {
  TORCH_CHECK_VALUE(o.num_layers > 0, "jukebox_transformer: num_layers must be positive, got ", o.num_layers);
  TORCH_CHECK_VALUE(o.attn_order >= 0 && o.attn_order <= 12, "jukebox_transformer: attn_order must lie in 0..12, got ", o.attn_order);
  for (const int64_t number : o.patterns) {
    TORCH_CHECK_VALUE(number >= 0 && number <= 7, "jukebox_transformer: patterns must be code numbers 0..7, got ", number);
  }
  for (int64_t layer = 0; layer < o.num_layers; ++layer) JukeboxBlock::check(o.block(layer));
}

JukeboxTransformer::Parameters JukeboxTransformer::shape(const Options& o) {
  Parameters p;
  p.blocks.resize(static_cast<std::size_t>(o.num_layers));
  return p;
}

JukeboxTransformer::Parameters JukeboxTransformer::init(const Options& o) {
  Parameters p;
  for (int64_t layer = 0; layer < o.num_layers; ++layer) p.blocks.push_back(JukeboxBlock::init(o.block(layer)));
  return p;
}

namespace {

/// The inputs of a block: of pattern cross, the context and its mask.
JukeboxBlock::Inputs inputs_of(const JukeboxBlock::Options& o, const Tensor& x, const JukeboxTransformer::Inputs& in) {
  if (o.pattern == cross) return {.x = x, .context = in.context, .key_mask = in.context_mask, .dropout_seed = {}};
  return {.x = x, .context = {}, .key_mask = in.key_mask, .dropout_seed = {}};
}

}  // namespace

Tensor JukeboxTransformer::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  Tensor x = in.x;
  for (int64_t layer = 0; const auto& block : p.blocks) {
    const auto options = o.block(layer++);
    x = JukeboxBlock::forward(options, block, inputs_of(options, x, in), training);
  }
  return x;
}

std::pair<Tensor, JukeboxTransformer::State> JukeboxTransformer::step(const Options& o, const Parameters& p, const Inputs& in, State&& past) {
  TORCH_CHECK_VALUE(past.kept.empty() || past.kept.size() == 4 * p.blocks.size(), "jukebox_transformer_step: state must hold ", 4 * p.blocks.size(),
                    " tensors, got ", past.kept.size());
  Tensor x = in.x;
  State next;
  for (std::size_t layer = 0; layer < p.blocks.size(); ++layer) {
    JukeboxState before;
    if (!past.kept.empty()) {
      const Tensor* kept = &past.kept[4 * layer];
      before = {.k = kept[0], .v = kept[1], .summary_k = kept[2], .summary_v = kept[3]};
    }
    const auto options = o.block(static_cast<int64_t>(layer));
    auto [y, after] = JukeboxBlock::step(options, p.blocks[layer], inputs_of(options, x, in), std::move(before));
    x = std::move(y);
    next.kept.insert(next.kept.end(), {after.k, after.v, after.summary_k, after.summary_v});
  }
  return {std::move(x), std::move(next)};
}

FOVEATE_MECHANISM(JukeboxTransformer)

}  // namespace foveate
