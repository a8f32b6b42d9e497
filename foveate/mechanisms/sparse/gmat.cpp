#include <foveate/attention.h>
#include <foveate/gmat.h>
#include <foveate/init.h>
#include <foveate/rules.h>
#include <foveate/sparse_attention.h>

namespace foveate {
namespace {

using patterns::Pattern;

/// Memory tokens see all and are seen by all; main tokens see S among themselves.
template <class Options> Pattern seen(const Options& o) {
  const Pattern sparse = o.sparse == GMATSparse::chunked  ? patterns::block_diagonal(o.chunk)
                         : o.sparse == GMATSparse::window ? patterns::sliding_window(o.window, o.window)
                                                          : Pattern{.expression = o.pattern};
  return o.memory == 0 ? sparse : patterns::global_tokens(o.memory) | patterns::shifted(sparse, o.memory);
}

/// The mask of main tokens, the memory's in front.
template <class Options> optional<Tensor> with_memory(const Options& o, const optional<Tensor>& key_mask) {
  return key_mask ? optional<Tensor>(at::constant_pad_nd(*key_mask, {o.memory, 0}, 1)) : std::nullopt;
}

template <class Options> void check_gmat(const char* form, const Options& o) {
  TORCH_CHECK_VALUE(o.memory >= 0, form, ": memory must not be negative, got ", o.memory);
  TORCH_CHECK_VALUE(o.chunk > 0 && o.window >= 0, form, ": chunk must be positive, window not negative, got ", o.chunk, " and ", o.window);
  TORCH_CHECK_VALUE((o.sparse == GMATSparse::pattern) == !o.pattern.empty(), form, ": pattern goes with sparse = pattern, and with it alone, got '",
                    o.pattern, "'");
  if (!o.pattern.empty()) patterns::parse(o.pattern);
  TORCH_CHECK_VALUE(o.pattern.find('#') == std::string::npos, form, ": pattern must not name tables, got '", o.pattern, "'");
}

template <class Options> void check_model(const char* form, const Options& o) {
  check_gmat(form, o);
  layers::check_heads(form, o.embed_dim, o.num_heads);
  TORCH_CHECK_VALUE(o.inner_dim > 0, form, ": inner_dim must be positive, got ", o.inner_dim);
}

/// As BERT draws them.
template <class Options> std::vector<GMATLayer> draw_layers(const Options& o, int64_t count) {
  const auto linear = [](int64_t in, int64_t out) { return layers::Linear{.weight = layers::normal({out, in}, 0.02), .bias = layers::zeros({out})}; };
  std::vector<GMATLayer> drawn;
  for (int64_t layer = 0; layer < count; ++layer) {
    const int64_t E = o.embed_dim;
    drawn.push_back({.attention = {.query = linear(E, E), .key = linear(E, E), .value = linear(E, E), .out = linear(E, E)},
                     .attention_norm = layers::LayerNorm::init(E),
                     .feed_forward = {.up = linear(E, o.inner_dim), .down = linear(o.inner_dim, E)},
                     .feed_forward_norm = layers::LayerNorm::init(E)});
  }
  return drawn;
}

template <class Options, class Attend> Tensor run(const Options& o, const GMATLayer& layer, const Tensor& x, const Attend& attend) {
  const auto [q, k, v] = layer.attention.project(x, x, o.num_heads);
  const Tensor y = layer.attention_norm(x + layer.attention.join(attend(q, k, v)), o.layer_norm_eps);
  return layer.feed_forward_norm(y + layer.feed_forward(y, layers::Activation::gelu), o.layer_norm_eps);
}

/// Attention over memory and main tokens, of a layer.
template <class Options> auto augmented(const Options& o, const optional<Tensor>& key_mask) {
  return [pattern = seen(o), mask = with_memory(o, key_mask)](const Tensor& q, const Tensor& k, const Tensor& v) {
    return ops::sparse_attention(q, k, v, pattern, {.key_mask = mask}).out;
  };
}

/// tokens [m,E] in front of x [B,N,E]
Tensor behind(const Tensor& tokens, const Tensor& x) { return at::cat({tokens.expand_symint({extent(x, 0), -1, -1}), x}, 1); }

}  // namespace

void GMATAttention::check(const Options& o) { check_gmat("gmat_attention", o); }

Tensor GMATAttention::forward(const Options& o, const Parameters&, const Inputs& in) {
  return ops::sparse_attention(in.q, in.k, in.v, seen(o), {.key_mask = with_memory(o, in.key_mask), .scale = o.scale}).out;
}

FOVEATE_MECHANISM(GMATAttention)

// --- encoder -----------------------------------------------------------------------------------------------------------------

void GMATEncoder::check(const Options& o) {
  check_model("gmat_encoder", o);
  TORCH_CHECK_VALUE(o.num_layers > 0, "gmat_encoder: num_layers must be positive, got ", o.num_layers);
}

GMATEncoder::Parameters GMATEncoder::shape(const Options& o) {
  return {.memory = {}, .layers = std::vector<GMATLayer>(static_cast<std::size_t>(o.num_layers))};
}

GMATEncoder::Parameters GMATEncoder::init(const Options& o) {
  return {.memory = o.memory > 0 ? optional<Tensor>(layers::normal({o.memory, o.embed_dim}, 0.02)) : std::nullopt,
          .layers = draw_layers(o, o.num_layers)};
}

GMATEncoder::Outputs GMATEncoder::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const auto attend = augmented(o, in.key_mask);
  Tensor x = p.memory ? behind(*p.memory, in.x) : in.x;
  for (const auto& layer : p.layers) x = run(o, layer, x, attend);
  return {.out = x.slice(1, o.memory), .memory = x.slice(1, 0, o.memory)};
}

FOVEATE_MECHANISM(GMATEncoder)

// --- compression -------------------------------------------------------------------------------------------------------------

void GMATCompression::check(const Options& o) {
  check_model("gmat_compression", o);
  TORCH_CHECK_VALUE(o.memory > 0 && o.length > 0, "gmat_compression: memory and length must be positive, got ", o.memory, " and ", o.length);
  TORCH_CHECK_VALUE(o.num_compress > 0 && o.num_memory_layers >= 0 && o.num_decompress > 0,
                    "gmat_compression: num_compress and num_decompress must be positive, num_memory_layers not negative, got ", o.num_compress, ", ",
                    o.num_decompress, " and ", o.num_memory_layers);
}

GMATCompression::Parameters GMATCompression::shape(const Options& o) {
  return {.memory = {},
          .position = {},
          .layers = std::vector<GMATLayer>(static_cast<std::size_t>(o.num_compress + o.num_memory_layers + o.num_decompress))};
}

GMATCompression::Parameters GMATCompression::init(const Options& o) {
  return {.memory = layers::normal({o.memory, o.embed_dim}, 0.02),
          .position = layers::normal({o.length, o.embed_dim}, 0.02),
          .layers = draw_layers(o, o.num_compress + o.num_memory_layers + o.num_decompress)};
}

GMATCompression::Outputs GMATCompression::forward(const Options& o, const Parameters& p, const Inputs& in) {
  TORCH_CHECK_VALUE(extent(in.x, 1) <= extent(p.position, 0), "gmat_compression: x must have at most ", extent(p.position, 0),
                    " tokens, the option length, got ", extent(in.x, 1));
  const auto attend = augmented(o, in.key_mask);
  const auto among_memory = [](const Tensor& q, const Tensor& k, const Tensor& v) { return ops::attention(q, k, v).out; };
  auto layer = p.layers.begin();
  Tensor x = behind(p.memory, in.x);
  for (int64_t t = 0; t < o.num_compress; ++t) x = run(o, *layer++, x, attend);
  Tensor memory = x.slice(1, 0, o.memory);
  for (int64_t t = 0; t < o.num_memory_layers; ++t) memory = run(o, *layer++, memory, among_memory);
  const Tensor positions = p.position.slice_symint(0, 0, extent(in.x, 1));
  x = at::cat({memory, positions.expand_symint({extent(memory, 0), -1, -1})}, 1);
  for (int64_t t = 0; t < o.num_decompress; ++t) x = run(o, *layer++, x, attend);
  return {.out = x.slice(1, o.memory), .stored_memory = memory};
}

FOVEATE_MECHANISM(GMATCompression)

}  // namespace foveate
