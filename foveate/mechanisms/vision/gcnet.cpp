#include <foveate/context_pool.h>
#include <foveate/gcnet.h>
#include <foveate/init.h>
#include <foveate/means.h>

namespace foveate {
namespace {

using layers::Linear;

void check_map(const char* form, const Tensor& x, int64_t channels, const optional<Tensor>& mask) {
  TORCH_CHECK_VALUE(x.dim() >= 3 && extent(x, 1) == channels, form, ": x must be [B,C,*S] with C = ", channels, ", got ", x.sym_sizes());
  if (!mask) return;
  bool fits = mask->dim() == x.dim() - 1 && extent(*mask, 0) == extent(x, 0);
  for (int64_t d = 1; fits && d < mask->dim(); ++d) fits = extent(*mask, d) == extent(x, d + 1);
  TORCH_CHECK_VALUE(fits, form, ": mask must be [B,*S] as x, got ", mask->sym_sizes(), " beside ", x.sym_sizes());
}

/// c [B,C] = sum_n a_n x_n, a the softmax of the scores, or all alike where there are none.
Tensor context(const Tensor& x, const optional<Linear>& score, const optional<Tensor>& mask) {
  const Tensor positions = x.flatten(2);  // [B,C,N]
  const optional<Tensor> seen = mask ? optional(mask->flatten(1)) : std::nullopt;
  if (score) return ops::context_pool(positions, score->weight, score->bias, seen);
  if (!seen) return layers::mean_over(positions, {2});
  return ops::context_pool(positions, positions.new_zeros({1, plain_extent(x, 1)}), {}, seen);
}

Tensor transformed(const GlobalContextBlock::Transform& t, const Tensor& c, double eps) { return t.restore(t.norm(t.reduce(c), eps).relu()); }

/// [B,C] beside a map [B,C,*S]
Tensor everywhere(Tensor c, const Tensor& x) {
  for (int64_t d = 2; d < x.dim(); ++d) c = c.unsqueeze(-1);
  return c;
}

/// As the authors' code starts it: Kaiming-normal.
Linear score_map(int64_t channels) {
  return {.weight = layers::normal({1, channels}, std::sqrt(2 / static_cast<double>(channels))), .bias = layers::zeros({1})};
}

Linear zero_map(int64_t in, int64_t out) { return {.weight = layers::zeros({out, in}), .bias = layers::zeros({out})}; }

int64_t inner_width(const GlobalContextBlock::Options& o) { return static_cast<int64_t>(static_cast<double>(o.in_channels) * o.ratio); }

}  // namespace

void GlobalContextBlock::check(const Options& o) {
  TORCH_CHECK_VALUE(o.in_channels > 0, "global_context_block: in_channels must be positive, got ", o.in_channels);
  TORCH_CHECK_VALUE(inner_width(o) > 0, "global_context_block: ratio must leave an inner width of 1 or more, got ", o.ratio, " of ", o.in_channels,
                    " channels");
  TORCH_CHECK_VALUE(o.channel_add || o.channel_mul, "global_context_block: channel_add or channel_mul must be True");
}

GlobalContextBlock::Parameters GlobalContextBlock::init(const Options& o) {
  const int64_t C = o.in_channels, inner = inner_width(o);
  const auto transform = [&] {
    return Transform{.reduce = Linear::init(C, inner), .norm = layers::LayerNorm::init(inner), .restore = zero_map(inner, C)};
  };
  Parameters p;
  if (o.pooling == ContextPooling::att) p.score = score_map(C);
  if (o.channel_add) p.add = transform();
  if (o.channel_mul) p.mul = transform();
  return p;
}

Tensor GlobalContextBlock::forward(const Options& o, const Parameters& p, const Inputs& in) {
  check_map("global_context_block", in.x, o.in_channels, in.mask);
  const bool weighs = o.pooling == ContextPooling::att;
  TORCH_CHECK_VALUE(!weighs || p.score, "global_context_block: score is needed where pooling is att");
  TORCH_CHECK_VALUE((!o.channel_add || p.add) && (!o.channel_mul || p.mul), "global_context_block: add and mul are needed as the options have them");
  const Tensor c = context(in.x, weighs ? p.score : std::nullopt, in.mask);
  const auto term = [&](const Transform& t) { return everywhere(transformed(t, c, o.ln_eps), in.x); };
  if (!o.channel_mul) return in.x + term(*p.add);
  const Tensor gate = term(*p.mul).sigmoid();
  return o.channel_add ? at::addcmul(term(*p.add), in.x, gate) : in.x * gate;
}

FOVEATE_MECHANISM(GlobalContextBlock)

void SimplifiedNonLocalBlock::check(const Options& o) {
  TORCH_CHECK_VALUE(o.in_channels > 0, "simplified_non_local_block: in_channels must be positive, got ", o.in_channels);
}

SimplifiedNonLocalBlock::Parameters SimplifiedNonLocalBlock::init(const Options& o) {
  return {.score = score_map(o.in_channels), .value = zero_map(o.in_channels, o.in_channels)};
}

Tensor SimplifiedNonLocalBlock::forward(const Options& o, const Parameters& p, const Inputs& in) {
  check_map("simplified_non_local_block", in.x, o.in_channels, in.mask);
  return in.x + everywhere(p.value(context(in.x, p.score, in.mask)), in.x);
}

FOVEATE_MECHANISM(SimplifiedNonLocalBlock)

}  // namespace foveate
