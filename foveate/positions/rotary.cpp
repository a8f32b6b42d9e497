#include <ATen/OpMathType.h>
#include <foveate/rotary.h>

namespace foveate {
namespace {

void check_rotary(const char* form, const auto& o) {
  TORCH_CHECK_VALUE(!o.rotary_dim || (*o.rotary_dim > 0 && *o.rotary_dim % 2 == 0), form, ": rotary_dim must be positive and even, got ",
                    *o.rotary_dim);
  TORCH_CHECK_VALUE(o.base > 0, form, ": base must be positive, got ", o.base);
  TORCH_CHECK_VALUE(o.factor > 0, form, ": factor must be positive, got ", o.factor);
}

positions::Rotary rotary(const auto& o) {
  return {.rotary_dim = o.rotary_dim, .base = o.base, .interleaved = o.interleaved, .scaling = o.scaling, .factor = o.factor};
}

}  // namespace

Tensor positions::rotate(const Tensor& x, const Size& offset, const Rotary& o) {
  const int64_t width = extent(x, -1).guard_int(__FILE__, __LINE__), turning = o.rotary_dim.value_or(width);
  TORCH_CHECK_VALUE(turning <= width && turning % 2 == 0, "rotary: rotary_dim must be even and at most D = ", width, ", got ", turning);
  const bool linear = o.scaling == RotaryScaling::linear, ntk = o.scaling == RotaryScaling::ntk;
  TORCH_CHECK_VALUE(!ntk || turning > 2, "rotary: rotary_dim must exceed 2 for ntk scaling, got ", turning);
  const auto rd = static_cast<double>(turning);
  const double base = ntk ? o.base * std::pow(o.factor, rd / (rd - 2)) : o.base;

  // Angles in double: a position times a frequency has no digits left in float32 for a long sequence.
  const auto exact = x.options().dtype(at::kDouble);
  const Tensor position = (at::arange(extent(x, -2), exact) + offset) / (linear ? o.factor : 1);  // [N]
  const Tensor frequency = at::exp(at::arange(turning / 2, exact) * (-2 * std::log(base) / rd));  // [rd/2]
  const Tensor angle = position.unsqueeze(1) * frequency;                                         // [N,rd/2]
  const auto type = at::toOpMathType(x.scalar_type());
  const Tensor cos = angle.cos().to(type), sin = angle.sin().to(type);

  const Tensor part = x.narrow(-1, 0, turning).to(type);
  Tensor joined;
  if (o.interleaved) {  // neighbours are the two parts of a complex number
    const Tensor pairs = at::view_as_complex(part.unflatten(-1, {turning / 2, 2}).contiguous());
    joined = at::view_as_real(pairs * at::complex(cos, sin)).flatten(-2);
  } else {
    const auto pairs = part.chunk(2, -1);
    joined = at::cat({pairs[0] * cos - pairs[1] * sin, pairs[0] * sin + pairs[1] * cos}, -1);
  }
  joined = joined.to(x.scalar_type());
  return turning == width ? joined : at::cat({joined, x.narrow(-1, turning, width - turning)}, -1);
}

void RotaryEmbedding::check(const Options& o) { check_rotary("rotary_embedding", o); }

Tensor RotaryEmbedding::forward(const Options& o, const Parameters&, const Inputs& in) { return positions::rotate(in.x, o.offset, rotary(o)); }

FOVEATE_MECHANISM(RotaryEmbedding)

void RotaryAttention::check(const Options& o) { check_rotary("rotary_attention", o); }

Tensor RotaryAttention::forward(const Options& o, const Parameters&, const Inputs& in) {
  const Tensor q = positions::rotate(in.q, o.q_offset, rotary(o)), k = positions::rotate(in.k, o.k_offset, rotary(o));
  return ops::attention(q, k, in.v, {.key_mask = in.key_mask, .causal = o.causal, .scale = o.scale, .offset = Size(o.q_offset - o.k_offset)}).out;
}

std::pair<Tensor, RotaryAttention::State> RotaryAttention::step(const Options& o, const Parameters&, const Inputs& in, State&& past) {
  TORCH_CHECK_VALUE(o.causal, "rotary_attention_step: causal must be True for a form to stream, got False");
  TORCH_CHECK_VALUE(o.q_offset <= o.k_offset, "rotary_attention_step: q_offset must not exceed k_offset, or queries would see keys to come; got ",
                    o.q_offset, " and ", o.k_offset);
  const Size before = past.k.defined() ? extent(past.k, 2) : Size(0);
  const Tensor q = positions::rotate(in.q, before + o.q_offset, rotary(o)), k = positions::rotate(in.k, before + o.k_offset, rotary(o));
  State next = past.then(k, in.v);
  const auto [out, lse] =
      ops::attention(q, next.k, next.v, {.key_mask = in.key_mask, .causal = true, .scale = o.scale, .offset = before + o.q_offset - o.k_offset});
  return {out, std::move(next)};
}

FOVEATE_MECHANISM(RotaryAttention)

}  // namespace foveate
