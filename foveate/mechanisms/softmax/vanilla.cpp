#include <foveate/attention.h>
#include <foveate/dropout.h>
#include <foveate/init.h>
#include <foveate/vanilla.h>

namespace foveate {
namespace {

/// Where query 0 stands among the keys; by default the last query meets the last key.
optional<Size> offset(CausalAlign align) { return align == CausalAlign::top_left ? optional<Size>(0) : std::nullopt; }

}  // namespace

Attention::Outputs Attention::forward(const Options& o, const Parameters&, const Inputs& in) {
  const auto [out, lse] = ops::attention(in.q, in.k, in.v,
                                         {.mask = in.mask,
                                          .key_mask = in.key_mask,
                                          .key_lengths = in.key_lengths,
                                          .causal = o.causal,
                                          .window = o.window,
                                          .bias = in.bias,
                                          .scale = o.scale,
                                          .offset = offset(o.causal_align),
                                          .dropout_keep = in.dropout_keep,
                                          .dropout = o.dropout,
                                          .dropout_seed = in.dropout_seed,
                                          .softcap = o.softcap});
  return {.out = out, .lse = lse};
}

FOVEATE_MECHANISM(Attention)

void MultiheadAttention::check(const Options& o) {
  layers::check_heads("multihead_attention", o.embed_dim, o.num_heads);
  TORCH_CHECK_VALUE(o.context_dim.value_or(1) > 0, "multihead_attention: context_dim must be positive, got ", *o.context_dim);
  layers::check_dropout("multihead_attention", "dropout", o.dropout);
}

MultiheadAttention::Parameters MultiheadAttention::init(const Options& o) {
  // Xavier-uniform over the stacked query, key and value matrices, as torch.nn.MultiheadAttention draws them.
  const double bound = std::sqrt(6.0 / static_cast<double>(4 * o.embed_dim));
  Parameters made = layers::Heads::init({.width = o.embed_dim, .context_width = o.context_dim, .bias = o.bias, .bound = bound});
  if (o.context_dim.value_or(o.embed_dim) != o.embed_dim) {  // these cannot be stacked: each by itself
    for (auto* projection : {&made.query, &made.key, &made.value}) projection->weight = layers::xavier_uniform(projection->weight.sizes());
  }
  return made;
}

Tensor MultiheadAttention::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  const auto [q, k, v] = p.project(in.x, in.context.value_or(in.x), o.num_heads);
  const layers::WeightDropout dropout(o.dropout, {}, training && !in.dropout_keep, q);
  const auto [out, lse] = ops::attention(q, k, v,
                                         dropout.with({.mask = in.mask,
                                                       .key_mask = in.key_mask,
                                                       .causal = o.causal,
                                                       .bias = in.score_bias,
                                                       .scale = o.scale,
                                                       .offset = offset(o.causal_align),
                                                       .dropout_keep = in.dropout_keep,
                                                       .dropout = o.dropout}));
  return p.join(out);
}

std::pair<Tensor, MultiheadAttention::State> MultiheadAttention::step(const Options& o, const Parameters& p, const Inputs& in, State&& past) {
  TORCH_CHECK_VALUE(!in.context, "multihead_attention_step: context is not given step by step");
  TORCH_CHECK_VALUE(!in.dropout_keep, "multihead_attention_step: dropout_keep is not given step by step");
  const auto [q, k, v] = p.project(in.x, in.x, o.num_heads);
  State next = past.then(k, v);
  const auto [out, lse] =
      ops::attention(q, next.k, next.v, {.mask = in.mask, .key_mask = in.key_mask, .causal = true, .bias = in.score_bias, .scale = o.scale});
  return {p.join(out), std::move(next)};
}

FOVEATE_MECHANISM(MultiheadAttention)

}  // namespace foveate
