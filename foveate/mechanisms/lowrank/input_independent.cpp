#include <foveate/attention.h>
#include <foveate/heads.h>
#include <foveate/init.h>
#include <foveate/input_independent.h>
#include <foveate/table_attention.h>

namespace foveate {
namespace {

using Kind = InputIndependentKind;

/// Each row divided by its sum; rows of zeros stay.
Tensor rows_to_one(const Tensor& x) {
  const Tensor sums = x.sum(-1, true);
  return x / at::where(sums > 0, sums, at::ones_like(sums));
}

std::pair<Tensor, InputIndependentAttention::State> run(const InputIndependentAttention::Options& o, const InputIndependentAttention::Parameters& p,
                                                        const InputIndependentAttention::Inputs& in, const InputIndependentAttention::State& past) {
  TORCH_CHECK_VALUE(extent(in.x, 2) == o.embed_dim, "input_independent_attention: x must have embed_dim = ", o.embed_dim, " features, got ",
                    in.x.sym_sizes());
  Tensor v = split_heads(p.value(in.x), o.num_heads);  // [B,H,M,Dv]
  const Size N = extent(v, 2);
  if (past.v.defined()) v = at::cat({past.v, v}, 2);
  const Size M = extent(v, 2);
  TORCH_CHECK_VALUE(M <= o.max_len, "input_independent_attention: x must have no more than max_len = ", o.max_len, " tokens, got ", M);

  Tensor out;  // [B,H,N,Dv]
  if (o.kind == Kind::random) {
    TORCH_CHECK_VALUE(p.table, "input_independent_attention: table is needed by the kind random");
    out = layers::table_attention(layers::part_of(layers::part_of(*p.table, 1, M - N, N), 2, 0, M), v, o.causal, in.key_mask);
  } else {  // scores W2 h + b2 are products of [h,1] with [W2,b2]
    TORCH_CHECK_VALUE(p.hidden && p.keys && p.keys->bias, "input_independent_attention: hidden and keys are needed by the kind dense");
    const Tensor hidden = (*p.hidden)(split_heads(in.x, o.num_heads)).relu();  // [B,H,N,f]
    const Tensor q = at::cat({hidden, at::ones_like(hidden.narrow(3, 0, 1))}, 3);
    const Tensor k = layers::part_of(at::cat({p.keys->weight, p.keys->bias->unsqueeze(-1)}, 1), 0, 0, M);  // [M,f+1]
    out = ops::attention(q, k.expand_symint({extent(v, 0), o.num_heads, -1, -1}), v, {.key_mask = in.key_mask, .causal = o.causal, .scale = 1}).out;
  }
  if (in.head_gate) {
    TORCH_CHECK_VALUE(extent(*in.head_gate, 0) == o.num_heads, "input_independent_attention: head_gate must be [H] with H = ", o.num_heads, ", got ",
                      in.head_gate->sym_sizes());
    out = out * in.head_gate->unsqueeze(-1).unsqueeze(-1);
  }
  return {merge_heads(out), {.v = v}};
}

}  // namespace

Tensor InputIndependentAttention::patterns(int64_t L) {
  const Tensor place = at::arange(L), i = place.unsqueeze(1), j = place.unsqueeze(0);
  const Tensor growing = (place + 1).to(at::kDouble).pow(3).expand({L, L});  // by column
  const auto where = [&](const Tensor& seen) { return seen.to(at::kDouble); };
  const Tensor right = at::logical_or(j >= i + 2, at::logical_and(i == 0, j == 0));  // row 0 begins at itself in the authors' code
  return at::stack({where(j == i), where(j == (i + 1).remainder(L)), where(j == (i - 1).remainder(L)), rows_to_one(growing * where(j <= i - 2)),
                    rows_to_one(growing * where(right)), rows_to_one(growing), rows_to_one(growing.flip(1))})
      .to(at::get_default_dtype());
}

void InputIndependentAttention::check(const Options& o) {
  layers::check_heads("input_independent_attention", o.embed_dim, o.num_heads);
  TORCH_CHECK_VALUE(o.max_len > 0 && o.bottleneck > 0, "input_independent_attention: max_len and bottleneck must be positive, got ", o.max_len,
                    " and ", o.bottleneck);
}

InputIndependentAttention::Parameters InputIndependentAttention::init(const Options& o) {
  using layers::Linear;
  Parameters p{.value = Linear::init(o.embed_dim, o.embed_dim)};
  if (o.kind == Kind::dense) {
    p.hidden = Linear::init(o.embed_dim / o.num_heads, o.bottleneck);
    p.keys = Linear::init(o.bottleneck, o.max_len);
    return p;
  }
  Tensor table = layers::normal({o.num_heads, o.max_len, o.max_len}, 1);
  if (o.table_init == TableInit::handcrafted) {
    const Tensor start = patterns(o.max_len);
    const int64_t count = std::min(o.num_heads, start.size(0));
    table.narrow(0, 0, count).copy_(start.narrow(0, 0, count));
  }
  p.table = table;
  return p;
}

Tensor InputIndependentAttention::forward(const Options& o, const Parameters& p, const Inputs& in) { return run(o, p, in, {}).first; }

std::pair<Tensor, InputIndependentAttention::State> InputIndependentAttention::step(const Options& o, const Parameters& p, const Inputs& in,
                                                                                    State&& past) {
  TORCH_CHECK_VALUE(o.causal, "input_independent_attention_step: causal must be True for the form to stream, got False");
  return run(o, p, in, past);
}

FOVEATE_MECHANISM(InputIndependentAttention)

}  // namespace foveate
