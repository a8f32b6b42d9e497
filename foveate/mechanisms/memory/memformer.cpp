#include <foveate/attention.h>
#include <foveate/init.h>
#include <foveate/memformer.h>

namespace foveate {

namespace detail {

Tensor attend_from_slots(const Tensor& q, const Tensor& own_key, const Tensor& own_value, const Tensor& k, const Tensor& v,
                         const optional<Tensor>& key_mask, double scale) {
  const ops::Start self{.logit = (q * own_key).sum(-1) * scale, .value = own_value};
  return ops::attention(q, k, v, {.key_mask = key_mask, .scale = scale, .start = self}).out;
}

Tensor memory_or_first(const optional<Tensor>& memory, const optional<Tensor>& reset, const Tensor& first, const Size& batch) {
  Tensor begun = first.unsqueeze(0).expand_symint({batch, -1, -1});
  if (!memory) return begun;
  return reset ? at::where(reset->unsqueeze(-1).unsqueeze(-1), begun, *memory) : *memory;
}

Tensor unit(const Tensor& x) { return x / x.norm(2, at::IntArrayRef{-1}, /*keepdim=*/true); }

SlotForgetting init_forgetting(int64_t width, int64_t slots) {
  const auto linear = [&] { return layers::Linear::init(width, width, /*bias=*/false); };
  return {.write = {.query = linear(), .key = linear(), .value = linear()}, .forget_bias = layers::normal({slots, width}, 1)};
}

Tensor forgetful_write(const SlotForgetting& p, int64_t heads, double temperature, const Tensor& memory, const Tensor& x,
                       const optional<Tensor>& key_mask) {
  const auto split = [&](const Tensor& y) { return split_heads(y, heads); };
  const Tensor q = split(p.write.query(memory));  // [B,H,S,D]
  const Tensor written = attend_from_slots(q, split(p.write.key(memory)), split(memory), split(p.write.key(x)), split(p.write.value(x)), key_mask,
                                           default_scale(q) / temperature);
  return unit(merge_heads(written) + p.forget_bias);
}

}  // namespace detail

void MemformerMemory::check(const Options& o) {
  layers::check_heads("memformer_memory", o.embed_dim, o.num_heads);
  TORCH_CHECK_VALUE(o.slots > 0, "memformer_memory: slots must be positive, got ", o.slots);
  TORCH_CHECK_VALUE(o.temperature > 0, "memformer_memory: temperature must be positive, got ", o.temperature);
}

MemformerMemory::Parameters MemformerMemory::init(const Options& o) {
  return {.read = layers::Heads::init({.width = o.embed_dim, .bias = false}), .forgetting = detail::init_forgetting(o.embed_dim, o.slots)};
}

MemformerMemory::Outputs MemformerMemory::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const Tensor memory = detail::memory_or_first(in.memory, in.reset, detail::unit(p.forgetting.forget_bias), extent(in.x, 0));
  const auto [q, k, v] = p.read.project(in.x, memory, o.num_heads);
  return {.out = p.read.join(ops::attention(q, k, v).out),
          .new_memory = detail::forgetful_write(p.forgetting, o.num_heads, o.temperature, memory, in.x, in.key_mask)};
}

FOVEATE_MECHANISM(MemformerMemory)

SlotUpdate SlotUpdate::init(int64_t width) {
  return {.heads = layers::Heads::init({.width = width}),
          .gate = layers::GRU::init(width),
          .norm = layers::LayerNorm::init(width),
          .network = layers::FeedForward::init(width, 4 * width)};
}

void MemformerWrite::check(const Options& o) {
  layers::check_heads("memformer_write", o.embed_dim, o.num_heads);
  TORCH_CHECK_VALUE(o.num_updates > 0, "memformer_write: num_updates must be positive, got ", o.num_updates);
}

SlotUpdate MemformerWrite::init(const Options& o) { return SlotUpdate::init(o.embed_dim); }

Tensor MemformerWrite::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const auto split = [&](const Tensor& y) { return split_heads(y, o.num_heads); };
  const Tensor k = split(p.heads.key(in.encoded)), v = split(p.heads.value(in.encoded));  // [B,H,N,D]
  Tensor memory = in.memory;
  for (int64_t i = 0; i < o.num_updates; ++i) {
    const auto [q, own_key, own_value] = p.heads.project(memory, memory, o.num_heads);  // [B,H,S,D]
    const Tensor read = p.heads.join(detail::attend_from_slots(q, own_key, own_value, k, v, in.key_mask, default_scale(q)));
    const Tensor updated = p.gate(read, memory);
    memory = updated + p.network(p.norm(updated), layers::Activation::gelu);
  }
  return memory;
}

FOVEATE_MECHANISM(MemformerWrite)

}  // namespace foveate
