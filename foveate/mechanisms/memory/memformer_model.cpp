#include <foveate/attention.h>
#include <foveate/init.h>
#include <foveate/memformer_model.h>
#include <foveate/t5.h>

namespace foveate {
namespace {

ops::ScoreBias by_distance(const auto& o, const Tensor& bias_table) {
  return positions::t5(bias_table, {.bidirectional = o.bidirectional, .buckets = o.buckets, .max_distance = o.max_distance});
}

Tensor with_network(const MemformerLayer& layer, const Tensor& x) { return x + layer.network(layer.network_norm(x), layers::Activation::gelu); }

void check_stack(const char* form, const auto& o) {
  layers::check_heads(form, o.embed_dim, o.num_heads);
  TORCH_CHECK_VALUE(o.depth > 0, form, ": depth must be positive, got ", o.depth);
  TORCH_CHECK_VALUE(o.buckets >= 4, form, ": buckets must be 4 or more, got ", o.buckets);
  TORCH_CHECK_VALUE(o.max_distance > o.buckets / 2, form, ": max_distance must exceed half of the buckets, got ", o.max_distance);
}

}  // namespace

MemformerStack MemformerStack::shape(int64_t depth) {
  MemformerStack sized;
  sized.layers.resize(static_cast<std::size_t>(depth));
  return sized;
}

MemformerStack MemformerStack::init(int64_t width, int64_t heads, int64_t depth, int64_t buckets) {
  MemformerStack made{.layers = {}, .bias_table = layers::normal({buckets, heads}, 1)};
  const auto norm = [&] { return layers::LayerNorm::init(width); };
  for (int64_t l = 0; l < depth; ++l) {
    made.layers.push_back({.attention_norm = norm(),
                           .attention = layers::Heads::init({.width = width}),
                           .cross_norm = norm(),
                           .cross = layers::Heads::init({.width = width}),
                           .network_norm = norm(),
                           .network = layers::FeedForward::init(width, 4 * width)});
  }
  return made;
}

// --- encoder -----------------------------------------------------------------------------------------------------------------

void MemformerEncoder::check(const Options& o) { check_stack("memformer_encoder", o); }
MemformerStack MemformerEncoder::shape(const Options& o) { return MemformerStack::shape(o.depth); }
MemformerStack MemformerEncoder::init(const Options& o) { return MemformerStack::init(o.embed_dim, o.num_heads, o.depth, o.buckets); }

Tensor MemformerEncoder::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const ops::Attention among{.key_mask = in.key_mask, .position = by_distance(o, p.bias_table), .query_mask = in.key_mask};
  Tensor x = in.x;
  for (const MemformerLayer& layer : p.layers) {
    const Tensor h = layer.attention_norm(x);
    const auto [q, k, v] = layer.attention.project(h, h, o.num_heads);
    x = x + layer.attention.join(ops::attention(q, k, v, among).out);
    const auto [asked, slot_keys, slot_values] = layer.cross.project(layer.cross_norm(x), in.memory, o.num_heads);
    x = x + layer.cross.join(ops::attention(asked, slot_keys, slot_values).out);
    x = with_network(layer, x);
  }
  return x;
}

FOVEATE_MECHANISM(MemformerEncoder)

// --- decoder -----------------------------------------------------------------------------------------------------------------

void MemformerDecoder::check(const Options& o) { check_stack("memformer_decoder", o); }
MemformerStack MemformerDecoder::shape(const Options& o) { return MemformerStack::shape(o.depth); }
MemformerStack MemformerDecoder::init(const Options& o) { return MemformerStack::init(o.embed_dim, o.num_heads, o.depth, o.buckets); }

std::pair<Tensor, MemformerDecoder::State> MemformerDecoder::step(const Options& o, const Parameters& p, const Inputs& in, State&& past) {
  TORCH_CHECK_VALUE(past.cache.empty() || past.cache.size() == 2 * p.layers.size(), "memformer_decoder_step: state must hold ", 2 * p.layers.size(),
                    " tensors, got ", past.cache.size());
  const Size N = extent(in.x, 1);
  optional<Tensor> here;  // of these tokens alone
  if (in.key_mask) here = in.key_mask->narrow_symint(1, extent(*in.key_mask, 1) - N, N);
  const ops::Attention among{.key_mask = in.key_mask, .causal = true, .position = by_distance(o, p.bias_table), .query_mask = here};
  const ops::Attention across{.key_mask = in.encoded_mask, .query_mask = in.encoded_mask ? here : std::nullopt};
  State next;
  Tensor x = in.x;
  for (std::size_t l = 0; l < p.layers.size(); ++l) {
    const MemformerLayer& layer = p.layers[l];
    const Tensor h = layer.attention_norm(x);
    auto [q, k, v] = layer.attention.project(h, h, o.num_heads);
    if (!past.cache.empty()) {
      k = at::cat({past.cache[2 * l], k}, 2);
      v = at::cat({past.cache[2 * l + 1], v}, 2);
    }
    next.cache.push_back(k);
    next.cache.push_back(v);
    x = x + layer.attention.join(ops::attention(q, k, v, among).out);
    const auto [asked, keys, values] = layer.cross.project(layer.cross_norm(x), in.encoded, o.num_heads);
    x = x + layer.cross.join(ops::attention(asked, keys, values, across).out);
    x = with_network(layer, x);
  }
  return {std::move(x), std::move(next)};
}

Tensor MemformerDecoder::forward(const Options& o, const Parameters& p, const Inputs& in) { return step(o, p, in, {}).first; }

FOVEATE_MECHANISM(MemformerDecoder)

// --- model -------------------------------------------------------------------------------------------------------------------

namespace {

using Model = Memformer;

MemformerWrite::Options write_options(const Model::Options& o) {
  return {.embed_dim = o.embed_dim, .num_heads = o.write_heads, .num_updates = o.num_updates};
}

MemformerMemory::Options forget_options(const Model::Options& o) {
  return {.embed_dim = o.embed_dim, .num_heads = o.write_heads, .slots = o.slots, .temperature = o.temperature};
}

Model::Coder coder(int64_t vocabulary, const auto& o, bool with_head) {
  Model::Coder made{.embedding = layers::normal({vocabulary, o.embed_dim}, 1),
                    .stack = MemformerStack::init(o.embed_dim, o.num_heads, o.depth, o.buckets),
                    .norm = layers::LayerNorm::init(o.embed_dim),
                    .head = {}};
  if (with_head) made.head = layers::Linear::init(o.embed_dim, vocabulary);
  return made;
}

Tensor first_state(const Model::Parameters& p) {
  if (p.forgetting) return detail::unit(p.forgetting->forget_bias);
  TORCH_CHECK_VALUE(p.memory_slots, "memformer: memory_slots are needed by the write gru");
  return *p.memory_slots;
}

Tensor written(const Model::Options& o, const Model::Parameters& p, const Tensor& memory, const Tensor& encoded, const optional<Tensor>& mask) {
  if (p.forgetting) return detail::forgetful_write(*p.forgetting, o.write_heads, o.temperature, memory, encoded, mask);
  TORCH_CHECK_VALUE(p.update, "memformer: update is needed by the write gru");
  return MemformerWrite::forward(write_options(o), *p.update, {.memory = memory, .encoded = encoded, .key_mask = mask});
}

Model::Outputs read(const Model::Options& o, const Model::Parameters& p, const Model::Inputs& in, const Tensor& memory) {
  TORCH_CHECK_VALUE(!in.tgt || p.decoder, "memformer: tgt has no decoder where encoder_only is True");
  const Tensor x = MemformerEncoder::forward(o.encoder(), p.encoder.stack,
                                             {.x = at::embedding(p.encoder.embedding, in.src), .memory = memory, .key_mask = in.src_mask});
  const Tensor encoded = p.encoder.norm(x);
  if (!in.tgt) return {.out = encoded, .encoded = encoded};
  const auto& d = *p.decoder;
  const MemformerDecoder::Inputs given{
      .x = at::embedding(d.embedding, *in.tgt), .encoded = encoded, .key_mask = in.tgt_mask, .encoded_mask = in.src_mask};
  const Tensor y = d.norm(MemformerDecoder::forward(o.decoder(), d.stack, given));
  return {.out = d.head ? (*d.head)(y) : y, .encoded = encoded};
}

}  // namespace

MemformerEncoder::Options Memformer::Options::encoder() const {
  return {.embed_dim = embed_dim,
          .num_heads = num_heads,
          .depth = encoder_depth,
          .buckets = buckets,
          .max_distance = max_distance,
          .bidirectional = !swapped_buckets};
}

MemformerDecoder::Options Memformer::Options::decoder() const {
  return {.embed_dim = embed_dim,
          .num_heads = decoder_heads.value_or(num_heads),
          .depth = decoder_depth,
          .buckets = buckets,
          .max_distance = max_distance,
          .bidirectional = swapped_buckets};
}

void Memformer::check(const Options& o) {
  check_stack("memformer", o.encoder());
  if (!o.encoder_only) check_stack("memformer", o.decoder());
  TORCH_CHECK_VALUE(o.vocab_size > 0 && o.target_vocab_size.value_or(1) > 0, "memformer: vocab_size and target_vocab_size must be positive, got ",
                    o.vocab_size, " and ", o.target_vocab_size.value_or(o.vocab_size));
  MemformerWrite::check(write_options(o));
  MemformerMemory::check(forget_options(o));
}

Model::Parameters Memformer::shape(const Options& o) {
  Parameters p;
  p.encoder.stack = MemformerStack::shape(o.encoder_depth);
  if (!o.encoder_only) p.decoder = Coder{.embedding = {}, .stack = MemformerStack::shape(o.decoder_depth), .norm = {}, .head = layers::Linear{}};
  return p;
}

Model::Parameters Memformer::init(const Options& o) {
  Parameters p{.encoder = coder(o.vocab_size, o.encoder(), false), .decoder = {}, .memory_slots = {}, .update = {}, .forgetting = {}};
  if (!o.encoder_only) p.decoder = coder(o.target_vocab_size.value_or(o.vocab_size), o.decoder(), true);
  if (o.write == SlotWrite::forget) {
    p.forgetting = detail::init_forgetting(o.embed_dim, o.slots);
  } else {
    p.memory_slots = layers::normal({o.slots, o.embed_dim}, 1);
    p.update = SlotUpdate::init(o.embed_dim);
  }
  return p;
}

Model::Outputs Memformer::forward(const Options& o, const Parameters& p, const Inputs& in) {
  return read(o, p, in, detail::memory_or_first({}, {}, first_state(p), extent(in.src, 0)));
}

std::pair<Model::Outputs, Model::State> Memformer::step(const Options& o, const Parameters& p, const Inputs& in, State&& past) {
  const auto before = past.memory.defined() ? optional(past.memory) : std::nullopt;
  const Tensor memory = detail::memory_or_first(before, in.reset, first_state(p), extent(in.src, 0));
  Outputs outputs = read(o, p, in, memory);
  Tensor next = written(o, p, memory, outputs.encoded, in.src_mask);
  return {std::move(outputs), State{.memory = std::move(next)}};
}

FOVEATE_MECHANISM(Memformer)

}  // namespace foveate
