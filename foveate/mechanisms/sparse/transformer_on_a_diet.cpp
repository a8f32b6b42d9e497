#include <foveate/dropout.h>
#include <foveate/init.h>
#include <foveate/sparse_attention.h>
#include <foveate/transformer_on_a_diet.h>

namespace foveate {
namespace {

using patterns::Pattern;

constexpr int64_t beyond_any_length = int64_t{1} << 30;

/// The steps of layer l: d_base^l.
int64_t step_of(const DietAttention::Options& o, int64_t layer) {
  return static_cast<int64_t>(std::min(std::pow(static_cast<double>(o.d_base), static_cast<double>(layer)), static_cast<double>(beyond_any_length)));
}

/// The window of a layer, in positions; nothing where all are seen.
optional<int64_t> window_of(const DietAttention::Options& o) {
  if (o.first_window_size == -1) return std::nullopt;
  const double wide = o.first_window_size * std::pow(o.window_size_multiplier, static_cast<double>(o.layer));
  return static_cast<int64_t>(std::min(wide, static_cast<double>(beyond_any_length)));
}

/// Which keys a layer sees.
Pattern distances(const DietAttention::Options& o) {
  using namespace patterns;
  switch (o.pattern) {
    case DietPattern::full: return causal();
    case DietPattern::cascade: {
      const auto window = window_of(o);
      if (!window) return causal();
      return *window > 0 ? sliding_window(*window - 1, 0) : keys(0, 0);  // a window may shrink to nothing
    }
    case DietPattern::dilated: return dilated(o.kernel_size - 1, 0, step_of(o, o.layer));
    case DietPattern::dilated_mem: {
      Pattern all = dilated(o.kernel_size - 1, 0, 1);
      for (int64_t layer = 1; layer <= o.layer; ++layer) all = all | dilated(o.kernel_size - 1, 0, step_of(o, layer));
      return all;
    }
  }
  TORCH_CHECK(false, "unreachable");
}

/// How far back a layer sees: so many keys are kept. Nothing where all are.
optional<int64_t> memory(const DietAttention::Options& o) {
  switch (o.pattern) {
    case DietPattern::full: return std::nullopt;
    case DietPattern::cascade: {
      const auto window = window_of(o);
      return window ? optional(std::max<int64_t>(*window - 1, 0)) : std::nullopt;
    }
    case DietPattern::dilated:
    case DietPattern::dilated_mem: return (o.kernel_size - 1) * step_of(o, o.layer);
  }
  TORCH_CHECK(false, "unreachable");
}

/// Attention of q to keys so far.
Tensor attend(const DietAttention::Options& o, const DietAttention::Inputs& in, const Tensor& k, const Tensor& v, const optional<Tensor>& key_mask) {
  Tensor out = ops::sparse_attention(in.q, k, v, distances(o), {.key_mask = key_mask, .scale = o.scale}).out;
  if (!in.valid_length) return out;
  const Tensor real = at::arange(extent(in.q, 2), in.valid_length->options()) < in.valid_length->unsqueeze(1);  // [B,N]
  return at::where(real.unsqueeze(1).unsqueeze(-1), out, at::zeros({}, out.options()));
}

}  // namespace

void DietAttention::check(const Options& o) {
  TORCH_CHECK_VALUE(o.kernel_size > 0, "diet_attention: kernel_size must be positive, got ", o.kernel_size);
  TORCH_CHECK_VALUE(o.d_base > 0, "diet_attention: d_base must be positive, got ", o.d_base);
  TORCH_CHECK_VALUE(o.first_window_size > 0 || o.first_window_size == -1, "diet_attention: first_window_size must be positive, or -1 for all, got ",
                    o.first_window_size);
  TORCH_CHECK_VALUE(o.window_size_multiplier > 0, "diet_attention: window_size_multiplier must be positive, got ", o.window_size_multiplier);
  TORCH_CHECK_VALUE(o.layer >= 0, "diet_attention: layer must not be negative, got ", o.layer);
  layers::check_dropout("diet_attention", "weight_dropout", o.weight_dropout);
}

Tensor DietAttention::forward(const Options& o, const Parameters&, const Inputs& in) {
  Tensor v = in.v;
  // A key that is dropped for all queries of a head is a value that is zero.
  if (in.weight_keep) v = v * (in.weight_keep->to(v.scalar_type()) / (1 - o.weight_dropout)).unsqueeze(-1);
  return attend(o, in, in.k, v, in.key_mask);
}

std::pair<Tensor, DietAttention::State> DietAttention::step(const Options& o, const Parameters&, const Inputs& in, State&& past) {
  TORCH_CHECK_VALUE(!in.weight_keep, "diet_attention_step: weight_keep is not given step by step");
  State next{.k = past.k.defined() ? at::cat({past.k, in.k}, 2) : in.k, .v = past.v.defined() ? at::cat({past.v, in.v}, 2) : in.v};
  optional<Tensor> key_mask = in.key_mask;
  if (key_mask) key_mask = key_mask->slice_symint(1, extent(*key_mask, 1) - extent(next.k, 2));  // of the keys that are kept
  Tensor out = attend(o, in, next.k, next.v, key_mask);
  if (const auto keep = memory(o)) {
    const Size drop = (extent(next.k, 2) - *keep).max(0);
    next = {.k = next.k.slice_symint(2, drop), .v = next.v.slice_symint(2, drop)};
  }
  return {std::move(out), std::move(next)};
}

FOVEATE_MECHANISM(DietAttention)

// --- the encoder -------------------------------------------------------------------------------------------------------------

void DietEncoder::check(const Options& o) {
  layers::check_heads("diet_encoder", o.embed_dim, o.num_heads);
  TORCH_CHECK_VALUE(o.num_layers > 0 && o.ff_dim > 0, "diet_encoder: num_layers and ff_dim must be positive, got ", o.num_layers, " and ", o.ff_dim);
  layers::check_dropout("diet_encoder", "dropout", o.dropout);
  DietAttention::check(o.attention(0));
}

DietEncoder::Parameters DietEncoder::shape(const Options& o) {
  Parameters p;
  p.layers.resize(static_cast<std::size_t>(o.num_layers));
  return p;
}

DietEncoder::Parameters DietEncoder::init(const Options& o) {
  const auto linear = [](int64_t in, int64_t out, bool bias) {  // MXNet's default
    return layers::Linear{.weight = layers::uniform({out, in}, 0.07), .bias = bias ? optional(layers::zeros({out})) : std::nullopt};
  };
  const auto norm = [&] { return o.use_layer_norm ? optional(layers::LayerNorm::init(o.embed_dim)) : std::nullopt; };
  const int64_t E = o.embed_dim;
  Parameters p{.norm = norm(), .layers = {}};
  for (int64_t layer = 0; layer < o.num_layers; ++layer) {
    p.layers.push_back(
        {.attention = {.query = linear(E, E, false), .key = linear(E, E, false), .value = linear(E, E, false), .out = linear(E, E, false)},
         .attention_norm = norm(),
         .feed_forward = {.up = linear(E, o.ff_dim, true), .down = linear(o.ff_dim, E, true)},
         .feed_forward_norm = norm()});
  }
  return p;
}

namespace {

/// Sines at even channels, cosines at odd ones, of positions [N]: [N,E]
Tensor sinusoids(const Tensor& position, int64_t width, DietPositions positions, at::ScalarType type) {
  const Tensor channel = at::arange(width, position.options());
  const Tensor pair = positions == DietPositions::paired ? channel.floor_divide(2) * 2 : channel * 2;
  const Tensor angle = position.to(at::kDouble).unsqueeze(1) * at::pow(10000.0, pair.to(at::kDouble) / -static_cast<double>(width));
  return at::where(channel.remainder(2) == 0, angle.sin(), angle.cos()).to(type);
}

Tensor normed(const Tensor& x, const optional<layers::LayerNorm>& norm) { return norm ? (*norm)(x) : x; }

/// The stack, given how a layer attends: attend(layer, q, k, v) [B,H,N,D].
template <class Attend> Tensor run(const DietEncoder::Options& o, const DietEncoder::Parameters& p, const Tensor& embeddings, const Tensor& position,
                                   bool training, const Attend& attend) {
  const Tensor moved =
      embeddings * std::sqrt(static_cast<double>(o.embed_dim)) + sinusoids(position, o.embed_dim, o.positions, embeddings.scalar_type());
  Tensor x = normed(at::dropout(moved, o.dropout, training), p.norm);
  for (int64_t layer = 0; layer < o.num_layers; ++layer) {
    const auto& own = p.layers[static_cast<std::size_t>(layer)];
    const bool drops = training && layer + 1 < o.num_layers;
    const auto joined = [&](const Tensor& before, const Tensor& sublayer) {
      const Tensor kept = at::dropout(sublayer, o.dropout, drops);
      return o.use_residual ? before + kept : kept;
    };
    const auto [q, k, v] = own.attention.project(x, x, o.num_heads);
    const Tensor a = normed(joined(x, own.attention.join(attend(layer, q, k, v))), own.attention_norm);
    x = normed(joined(a, own.feed_forward(a)), own.feed_forward_norm);
  }
  return x;
}

}  // namespace

Tensor DietEncoder::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  const Size B = extent(in.x, 0), N = extent(in.x, 1);
  optional<Tensor> keep = in.weight_keep;  // [layers,B,H,N]
  if (training && o.weight_dropout > 0 && !keep) {
    keep = at::rand_symint({o.num_layers, B, o.num_heads, N}, in.x.options().dtype(at::kFloat)) >= o.weight_dropout;
  }
  const Tensor position = at::arange(N, in.x.options().dtype(at::kLong));
  return run(o, p, in.x, position, training, [&](int64_t layer, const Tensor& q, const Tensor& k, const Tensor& v) {
    return DietAttention::forward(o.attention(layer), {},
                                  {.q = q,
                                   .k = k,
                                   .v = v,
                                   .valid_length = in.valid_length,
                                   .key_mask = in.key_mask,
                                   .weight_keep = keep ? optional(keep->select(0, layer)) : std::nullopt});
  });
}

std::pair<Tensor, DietEncoder::State> DietEncoder::step(const Options& o, const Parameters& p, const Inputs& in, State&& past) {
  TORCH_CHECK_VALUE(!in.weight_keep, "diet_encoder_step: weight_keep is not given step by step");
  const auto whole = in.x.options().dtype(at::kLong);
  const bool starts = !past.position.defined();
  const Tensor before = starts ? at::zeros({1}, whole) : past.position;
  State next{.position = before + extent(in.x, 1), .keys_and_values = {}};
  const Tensor position = before + at::arange(extent(in.x, 1), whole);
  Tensor out = run(o, p, in.x, position, false, [&](int64_t layer, const Tensor& q, const Tensor& k, const Tensor& v) {
    const auto first = static_cast<std::size_t>(2 * layer);
    DietAttention::State kept;
    if (!starts) kept = {.k = past.keys_and_values[first], .v = past.keys_and_values[first + 1]};
    auto [attended, after] =
        DietAttention::step(o.attention(layer), {},
                            {.q = q, .k = k, .v = v, .valid_length = in.valid_length, .key_mask = in.key_mask, .weight_keep = {}}, std::move(kept));
    next.keys_and_values.insert(next.keys_and_values.end(), {after.k, after.v});
    return attended;
  });
  return {std::move(out), std::move(next)};
}

FOVEATE_MECHANISM(DietEncoder)

}  // namespace foveate
