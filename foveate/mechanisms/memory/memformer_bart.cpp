#include <foveate/attention.h>
#include <foveate/init.h>
#include <foveate/memformer_bart.h>

namespace foveate {
namespace {

constexpr int64_t idle_positions = 2;  // of BART's table, before the first

/// Residual sum, norm, network, residual sum, norm.
Tensor onward(const MemBartStream& p, const Tensor& x, const Tensor& attended) {
  const Tensor y = p.attention_norm(x + p.attention.join(attended));
  return p.network_norm(y + p.network(y, layers::Activation::gelu));
}

MemBartStream stream(const MemBartLayer::Options& o) {
  const auto linear = [&](int64_t in, int64_t out) {
    return layers::Linear{.weight = layers::normal({out, in}, o.init_std), .bias = layers::zeros({out})};
  };
  const int64_t E = o.embed_dim;
  return {.attention = {.query = linear(E, E), .key = linear(E, E), .value = linear(E, E), .out = linear(E, E)},
          .attention_norm = layers::LayerNorm::init(E),
          .network = {.up = linear(E, o.inner_dim), .down = linear(o.inner_dim, E)},
          .network_norm = layers::LayerNorm::init(E)};
}

struct Encoding {
  Tensor tokens, slots;  // [B,N,E], [B,S,E]
  Tensor slots_before;   // what the layers were given
};

Encoding encode(const MemBartEncoder::Options& o, const MemBartEncoder::Parameters& p, const MemBartEncoder::Inputs& in, const Tensor& memory) {
  const Tensor kept = in.reset ? memory * in.reset->logical_not().to(memory.scalar_type()).unsqueeze(-1).unsqueeze(-1) : memory;
  const Tensor before = p.memory_norm(kept + p.memory_bias);
  const Tensor here = p.positions.narrow_symint(0, idle_positions, extent(in.x, 1));
  Encoding now{.tokens = p.embedding_norm(in.x + here), .slots = before, .slots_before = before};
  for (const MemBartStreams& layer : p.layers) {
    auto [out, slots] = MemBartLayer::forward(o.layer(), layer, {.x = now.tokens, .memory = now.slots, .key_mask = in.key_mask});
    now.tokens = std::move(out);
    now.slots = std::move(slots);
  }
  return now;
}

Tensor no_memory(const MemBartEncoder::Parameters& p, const Tensor& x) {
  return x.new_zeros_symint({extent(x, 0), extent(p.memory_bias, 0), extent(p.memory_bias, 1)});
}

}  // namespace

void MemBartLayer::check(const Options& o) {
  layers::check_heads("mem_bart_layer", o.embed_dim, o.num_heads);
  TORCH_CHECK_VALUE(o.inner_dim > 0, "mem_bart_layer: inner_dim must be positive, got ", o.inner_dim);
}

MemBartStreams MemBartLayer::init(const Options& o) { return {.tokens = stream(o), .slots = stream(o)}; }

MemBartLayer::Outputs MemBartLayer::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const auto [q, k, v] = p.tokens.attention.project(in.x, in.x, o.num_heads);                          // [B,H,N,D]
  const auto [slot_q, slot_k, slot_v] = p.slots.attention.project(in.memory, in.memory, o.num_heads);  // [B,H,S,D]
  optional<Tensor> seen;
  if (in.key_mask) seen = at::cat({at::ones_symint({extent(in.x, 0), extent(in.memory, 1)}, in.key_mask->options()), *in.key_mask}, 1);
  const Tensor tokens = ops::attention(q, at::cat({slot_k, k}, 2), at::cat({slot_v, v}, 2), {.key_mask = seen}).out;
  const Tensor slots = detail::attend_from_slots(slot_q, slot_k, slot_v, k, v, in.key_mask, default_scale(q));
  return {.out = onward(p.tokens, in.x, tokens), .new_memory = onward(p.slots, in.memory, slots)};
}

FOVEATE_MECHANISM(MemBartLayer)

MemBartLayer::Options MemBartEncoder::Options::layer() const {
  return {.embed_dim = embed_dim, .num_heads = num_heads, .inner_dim = inner_dim, .init_std = init_std};
}

void MemBartEncoder::check(const Options& o) {
  MemBartLayer::check(o.layer());
  TORCH_CHECK_VALUE(o.depth > 0 && o.slots > 0 && o.max_len > 0, "mem_bart_encoder: depth, slots and max_len must be positive, got ", o.depth, ", ",
                    o.slots, " and ", o.max_len);
}

MemBartEncoder::Parameters MemBartEncoder::shape(const Options& o) {
  Parameters sized;
  sized.layers.resize(static_cast<std::size_t>(o.depth));
  return sized;
}

MemBartEncoder::Parameters MemBartEncoder::init(const Options& o) {
  const auto linear = [&](int64_t out) {
    return layers::Linear{.weight = layers::normal({out, o.embed_dim}, o.init_std), .bias = layers::zeros({out})};
  };
  Parameters p = shape(o);
  p.positions = layers::normal({idle_positions + o.max_len, o.embed_dim}, o.init_std);
  p.embedding_norm = layers::LayerNorm::init(o.embed_dim);
  p.memory_bias = layers::normal({o.slots, o.embed_dim}, o.init_std);
  p.memory_norm = layers::LayerNorm::init(o.embed_dim);
  for (auto& layer : p.layers) layer = MemBartLayer::init(o.layer());
  p.gate = {.up = linear(o.embed_dim), .down = linear(1)};
  return p;
}

Tensor MemBartEncoder::forward(const Options& o, const Parameters& p, const Inputs& in) { return encode(o, p, in, no_memory(p, in.x)).tokens; }

std::pair<Tensor, MemBartEncoder::State> MemBartEncoder::step(const Options& o, const Parameters& p, const Inputs& in, State&& past) {
  Encoding now = encode(o, p, in, past.memory.defined() ? past.memory : no_memory(p, in.x));
  const Tensor replaced = p.gate(now.slots, layers::Activation::gelu).sigmoid();  // [B,S,1]
  Tensor memory = replaced * now.slots + (1 - replaced) * now.slots_before;
  return {std::move(now.tokens), State{.memory = std::move(memory)}};
}

FOVEATE_MECHANISM(MemBartEncoder)

}  // namespace foveate
