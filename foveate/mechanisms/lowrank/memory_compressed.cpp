#include <foveate/attention.h>
#include <foveate/init.h>
#include <foveate/memory_compressed.h>
#include <foveate/slots.h>
#include <foveate/sparse_attention.h>

namespace foveate {
namespace {

using MC = MemoryCompressedAttention;
using Reduction = MemoryReduction;

/// The slots of x [B,N,E]: what keys and values are made of, or themselves.
struct Slots {
  Tensor k, v;  // [B,H,K,D]
};

Slots compress(const MC::Options& o, const MC::Parameters& p, const Tensor& x) {
  const auto projected = [&](const Tensor& k, const Tensor& v) { return Slots{.k = split_heads(k, o.num_heads), .v = split_heads(v, o.num_heads)}; };
  const auto of = [&](const Tensor& slots) {
    return projected(layers::map_slots(p.heads.key.weight, slots), layers::map_slots(p.heads.value.weight, slots));
  };
  switch (o.reduction) {
    case Reduction::compress_kv:
      TORCH_CHECK_VALUE(p.conv && p.null_key && p.null_value, "memory_compressed_attention: compress_kv needs conv, null_key and null_value");
      return projected(layers::convolve_slots(*p.conv, p.heads.key(x)), layers::convolve_slots(*p.conv, p.heads.value(x)));
    case Reduction::compress_x: {
      TORCH_CHECK_VALUE(p.conv, "memory_compressed_attention: compress_x needs conv");
      const Tensor slots = layers::convolve_slots(*p.conv, x);
      return of(o.nonlinearity == MemoryNonlinearity::silu ? slots * slots.sigmoid() : slots);
    }
    case Reduction::mean_pool: return of(ops::whole_slots(x, o.compression_factor).mean(2));
    case Reduction::attend_x: {
      TORCH_CHECK_VALUE(p.reducer, "memory_compressed_attention: attend_x needs reducer");
      const auto [q, k, v] = p.reducer->project(x, x, o.num_heads);
      const Tensor read = ops::sparse_attention(q, k, v, patterns::block_diagonal(o.compression_factor)).out;  // [B,H,N,D]
      return of(layers::map_slots(p.reducer->out.weight, ops::whole_slots(merge_heads(read), o.compression_factor).sum(2)));
    }
  }
  TORCH_CHECK(false, "unreachable");
}

double scale(const MC::Options& o) {
  if (o.scale) return *o.scale;
  const auto E = static_cast<double>(o.embed_dim);
  if (o.reduction == Reduction::compress_kv) return 1 / std::sqrt(E);
  return o.reduction == Reduction::mean_pool ? 1 : 1 / std::sqrt(E / static_cast<double>(o.num_heads));
}

/// Whether the extra slot is the first token, and so a key like others.
bool leads_with_token(const MC::Options& o) { return o.reduction == Reduction::compress_x || o.reduction == Reduction::attend_x; }

/// A slot more before the others: keys and values learned, or zeros. It is a key like others, not a start of the softmax.
Slots with_null(const MC::Options& o, const MC::Parameters& p, const Slots& slots) {
  if (leads_with_token(o)) return slots;
  const Size B = extent(slots.k, 0);
  const auto before = [&](const Tensor& x, const optional<Tensor>& learned) {  // x [B,H,K,D]
    const Tensor first = o.reduction == Reduction::compress_kv ? learned->view({1, o.num_heads, 1, -1}).expand_symint({B, -1, -1, -1})
                                                               : x.new_zeros_symint({B, o.num_heads, 1, extent(x, 3)});
    return at::cat({first, x}, 2);
  };
  return {.k = before(slots.k, p.null_key), .v = before(slots.v, p.null_value)};
}

/// Queries of x, whose first token stands at `start`, before the slots; `slot_mask` [B,K].
Tensor attend(const MC::Options& o, const MC::Parameters& p, const Tensor& x, const Slots& slots, const optional<Tensor>& slot_mask,
              const Size& start) {
  const Tensor q = split_heads(p.heads.query(x), o.num_heads);  // [B,H,N,D]
  const auto [k, v] = with_null(o, p, slots);
  ops::Attention how{.key_mask = slot_mask, .scale = scale(o), .offset = start};
  if (slot_mask && !leads_with_token(o)) how.key_mask = at::cat({slot_mask->new_ones_symint({extent(*slot_mask, 0), 1}), *slot_mask}, 1);
  if (!o.causal) return p.heads.join(ops::attention(q, k, v, how).out);
  return p.heads.join(ops::sparse_attention(q, k, v, patterns::staircase(o.compression_factor, leads_with_token(o) ? 0 : -1), how).out);
}

/// The first token before the slots, where it leads them.
Slots with_first(const MC::Options& o, const MC::Parameters& p, const Tensor& x, Slots slots) {
  if (!leads_with_token(o)) return slots;
  const Tensor first = x.narrow(1, 0, 1);
  return {.k = at::cat({split_heads(p.heads.key(first), o.num_heads), slots.k}, 2),
          .v = at::cat({split_heads(p.heads.value(first), o.num_heads), slots.v}, 2)};
}

/// [B,K], True where a slot has a token that takes part.
optional<Tensor> slot_mask(const MC::Options& o, const optional<Tensor>& key_mask, const Size& pad) {
  if (!key_mask) return {};
  const Tensor padded = o.left_padded ? at::constant_pad_nd_symint(*key_mask, {pad, 0}, true) : *key_mask;
  const Tensor any = ops::whole_slots(padded, o.compression_factor).any(2);
  return leads_with_token(o) ? at::cat({key_mask->narrow(1, 0, 1), any}, 1) : any;
}

}  // namespace

void MemoryCompressedAttention::check(const Options& o) {
  layers::check_heads("memory_compressed_attention", o.embed_dim, o.num_heads);
  TORCH_CHECK_VALUE(o.compression_factor > 0, "memory_compressed_attention: compression_factor must be positive, got ", o.compression_factor);
  TORCH_CHECK_VALUE(!o.left_padded || o.reduction == Reduction::compress_kv, "memory_compressed_attention: left_padded is for compress_kv");
  TORCH_CHECK_VALUE(o.nonlinearity == MemoryNonlinearity::none || o.reduction == Reduction::compress_x,
                    "memory_compressed_attention: nonlinearity is for compress_x");
}

MemoryCompressedAttention::Parameters MemoryCompressedAttention::init(const Options& o) {
  const int64_t E = o.embed_dim, c = o.compression_factor;
  const bool of_kv = o.reduction == Reduction::compress_kv;
  const std::vector<int64_t> taps{c};
  Parameters p{.heads = layers::Heads::init({.width = E, .bias = false, .out_bias = of_kv})};
  if (of_kv) {
    p.conv = layers::Convolution::init(E / o.num_heads, E, taps);
    p.null_key = layers::zeros({E});
    p.null_value = layers::zeros({E});
  } else if (o.reduction == Reduction::compress_x) {
    p.conv = layers::Convolution::init(E, E, taps);
  } else if (o.reduction == Reduction::attend_x) {
    p.reducer = layers::Heads::init({.width = E, .bias = false});
  }
  return p;
}

Tensor MemoryCompressedAttention::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const int64_t c = o.compression_factor;
  const Size pad = o.left_padded ? (c - extent(in.x, 1) % c) % c : Size(0);
  const Tensor x = o.left_padded ? at::constant_pad_nd_symint(in.x, {0, 0, pad, 0}) : in.x;
  return attend(o, p, in.x, with_first(o, p, x, compress(o, p, x)), slot_mask(o, in.key_mask, pad), pad);
}

std::pair<Tensor, MemoryCompressedAttention::State> MemoryCompressedAttention::step(const Options& o, const Parameters& p, const Inputs& in,
                                                                                    State&& past) {
  TORCH_CHECK_VALUE(o.causal, "memory_compressed_attention_step: causal must be True for the form to stream, got False");
  TORCH_CHECK_VALUE(!o.left_padded, "memory_compressed_attention_step: left_padded must be False for the form to stream: padding moves every slot");
  const int64_t c = o.compression_factor, extra = leads_with_token(o) ? 1 : 0;
  const bool starts = !past.k.defined();
  const Tensor tokens = starts ? in.x : at::cat({past.rest, in.x}, 1);  // [B,r,E]
  Slots slots = compress(o, p, tokens);
  Size start = 0;
  if (starts) {
    slots = with_first(o, p, tokens, slots);
  } else {
    start = (extent(past.k, 2) - extra) * c + extent(past.rest, 1);
    slots = {.k = at::cat({past.k, slots.k}, 2), .v = at::cat({past.v, slots.v}, 2)};
  }
  const Size used = extent(tokens, 1) / c * c;
  const Tensor out = attend(o, p, in.x, slots, slot_mask(o, in.key_mask, 0), start);
  return {out, {.k = slots.k, .v = slots.v, .rest = tokens.narrow_symint(1, used, extent(tokens, 1) - used)}};
}

FOVEATE_MECHANISM(MemoryCompressedAttention)

void BlockLocalAttention::check(const Options& o) { TORCH_CHECK_VALUE(o.block > 0, "block_local_attention: block must be positive, got ", o.block); }

Tensor BlockLocalAttention::forward(const Options& o, const Parameters&, const Inputs& in) {
  const ops::Attention how{.key_mask = in.key_mask, .causal = o.causal, .scale = o.scale};
  if (!o.look_back) return ops::sparse_attention(in.q, in.k, in.v, patterns::block_diagonal(o.block), how).out;
  if (extent(in.k, 2) < 2 * o.block) return ops::attention(in.q, in.k, in.v, how).out;
  return ops::sparse_attention(in.q, in.k, in.v, patterns::block_window(o.block, o.block, 0), how).out;
}

std::pair<Tensor, BlockLocalAttention::State> BlockLocalAttention::step(const Options& o, const Parameters& p, const Inputs& in, State&& past) {
  return layers::step_with_cache<BlockLocalAttention>("block_local_attention", o, p, in, past);
}

FOVEATE_MECHANISM(BlockLocalAttention)

}  // namespace foveate
