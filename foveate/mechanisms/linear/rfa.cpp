#include <foveate/attention_formula.h>
#include <foveate/init.h>
#include <foveate/linear_attention.h>
#include <foveate/projected_features.h>
#include <foveate/rfa.h>

#include <algorithm>
#include <limits>

namespace foveate {
namespace {

using Function = RandomFeatureAttention;

/// `count` matrices of m rows: [count,m,D]
Tensor draw_matrices(RFADraw draw, int64_t count, int64_t m, int64_t D, const at::TensorOptions& options) {
  if (draw == RFADraw::gaussian) return at::randn({count, m, D}, options);
  const auto exact = options.dtype(options.dtype() == at::kDouble ? at::kDouble : at::kFloat);
  // Q has orthonormal columns; where there are fewer rows than columns, its rows are. Times chi lengths, rows are as long as Gaussian ones.
  const Tensor tall = at::randn({count, std::max(m, D), std::min(m, D)}, exact);
  const Tensor q = std::get<0>(at::linalg_qr(tall)), lengths = at::linalg_vector_norm(at::randn({count, m, std::max(m, D)}, exact), 2, {-1}, true);
  return ((m < D ? q.transpose(-1, -2) : q) * lengths).to(options.dtype().toScalarType()).contiguous();
}

/// x / (|x| + eps); a row of zeros stays. x [...,D] -> [...,D]
Tensor unit(const Tensor& x, double eps) {
  const Tensor squares = x.square().sum(-1, true), zero = squares == 0;
  const Tensor length = squares.masked_fill(zero, 1).sqrt().masked_fill(zero, eps == 0 ? 1 : 0) + eps;  // the root never meets 0
  return x / length;
}

/// phi: x [B,H,N,D], W [H,m,D] -> [B,H,N,F]
Tensor features(const Tensor& x, const Tensor& W, const Function::Options& o) {
  const double factor = o.feature_scale.value_or(1 / std::sqrt(static_cast<double>(plain_extent(W, 1))));
  const auto map = o.feature_map == RFAFeatures::arccos ? ops::Projected::relu : ops::Projected::sin_cos;
  return ops::projected_features(unit(x, o.norm_eps), W, {.map = map, .factor = factor}).phi;
}

/// What a token keeps of the memory, and how strongly it writes: [B,H,M]
struct Gate {
  Tensor log_keep, write;
};

struct Tokens {
  Tensor q, k, v, random_matrices;  // [B,H,N,D], [B,H,M,D], [B,H,M,Dv], [H,m,D]
  optional<Tensor> sigma, key_mask;
  optional<Gate> gate;
};

/// W, scaled: rows for queries and keys of unit length.
Tensor scaled(const Tokens& t, double tau) { return (t.sigma ? *t.sigma * t.random_matrices : t.random_matrices) / tau; }

/// The linear form, from `past` on.
std::pair<Tensor, Function::State> attend(const Function::Options& o, const Tokens& t, const Function::State& past) {
  const auto type = ops::accumulation_type(t.q.scalar_type());
  const Tensor W = scaled(t, o.tau).to(type), q = features(t.q.to(type), W, o);
  Tensor k = features(t.k.to(type), W, o);
  if (t.gate) k = k * t.gate->write.to(type).unsqueeze(-1);
  auto [out, state] =
      ops::linear_attention(q, k, t.v.to(type),
                            {.causal = o.causal,
                             .key_mask = t.key_mask,
                             .log_decay = t.gate ? optional(t.gate->log_keep.to(type)) : std::nullopt,
                             .state = {.S = past.S, .z = past.z},
                             .normalizer = o.denominator == RFADenominator::clamp ? ops::Normalizer::clamp : ops::Normalizer::clamp_abs,
                             .eps = o.denominator_eps,
                             .offset = Size(0)});
  return {out.to(t.q.scalar_type()), {.S = std::move(state.S), .z = std::move(state.z), .random_matrices = t.random_matrices}};
}

/// The quadratic form, for masks that no sum can follow.
Tensor attend_by_pairs(const Function::Options& o, const Tokens& t, const Tensor& mask) {
  TORCH_CHECK_VALUE(!t.gate, "random_feature_attention: mask and gate exclude each other: with a gate, what is forgotten follows the order");
  const auto type = ops::accumulation_type(t.q.scalar_type());
  const Tensor W = scaled(t, o.tau).to(type);
  Tensor seen = mask;  // broadcastable to [B,H,N,M]
  if (t.key_mask) seen = seen.logical_and(t.key_mask->unsqueeze(1).unsqueeze(1));
  if (o.causal) {
    const auto places = t.q.options().dtype(at::kLong);
    seen = seen.logical_and(at::arange(extent(t.k, 2), places) <= at::arange(extent(t.q, 2), places).unsqueeze(-1));
  }
  const Tensor products = at::matmul(features(t.q.to(type), W, o), features(t.k.to(type), W, o).transpose(-1, -2));
  const Tensor weights = products.masked_fill(seen.logical_not(), 0), R = weights.sum(-1, true);  // [B,H,N,M], [B,H,N,1]
  const Tensor least = (o.denominator == RFADenominator::clamp ? R : R.abs()).clamp_min(o.denominator_eps);
  return (at::matmul(weights, t.v.to(type)) / least.masked_fill(least == 0, 1)).to(t.q.scalar_type());
}

void check_features(const char* form, const Function::Options& o) {
  TORCH_CHECK_VALUE(o.proj_dim > 0, form, ": proj_dim must be positive, got ", o.proj_dim);
  TORCH_CHECK_VALUE(o.tau != 0, form, ": tau must not be 0");
  TORCH_CHECK_VALUE(o.norm_eps >= 0, form, ": norm_eps must not be negative, got ", o.norm_eps);
  TORCH_CHECK_VALUE(o.denominator_eps >= 0, form, ": denominator_eps must not be negative, got ", o.denominator_eps);
}

Tokens tokens(const Function::Options& o, const Function::Inputs& in, const Function::State& past) {
  TORCH_CHECK_VALUE(!in.gate || o.causal, "random_feature_attention: gate needs causal: without an order nothing is older");
  Tokens t{.q = in.q, .k = in.k, .v = in.v, .sigma = in.sigma, .key_mask = in.key_mask};
  if (in.random_matrices) t.random_matrices = *in.random_matrices;
  else if (past.random_matrices.defined()) t.random_matrices = past.random_matrices;
  else t.random_matrices = draw_matrices(o.draw, plain_extent(in.q, 1), o.proj_dim, plain_extent(in.q, 3), in.q.options());
  if (in.gate) {  // a closed gate has no logarithm: the smallest number stands for it
    const double least = in.gate->scalar_type() == at::kHalf ? 6e-8 : static_cast<double>(std::numeric_limits<float>::min());
    t.gate = Gate{.log_keep = in.gate->clamp_min(least).log(), .write = 1 - *in.gate};
  }
  return t;
}

}  // namespace

void Function::check(const Options& o) { check_features("random_feature_attention", o); }

std::pair<Tensor, Function::State> Function::step(const Options& o, const Parameters&, const Inputs& in, State&& past) {
  TORCH_CHECK_VALUE(!in.mask, "random_feature_attention_step: mask is not given step by step");
  return attend(o, tokens(o, in, past), past);
}

Tensor Function::forward(const Options& o, const Parameters&, const Inputs& in) {
  const Tokens t = tokens(o, in, {});
  return in.mask ? attend_by_pairs(o, t, *in.mask) : attend(o, t, {}).first;
}

FOVEATE_MECHANISM(RandomFeatureAttention)

namespace {

Function::Options function_options(const RFA::Options& o) {
  return {.causal = o.causal,
          .proj_dim = o.proj_dim,
          .tau = o.tau,
          .feature_map = o.feature_map,
          .feature_scale = o.feature_scale,
          .norm_eps = o.norm_eps,
          .denominator = o.denominator,
          .denominator_eps = o.denominator_eps,
          .draw = o.draw};
}

/// W of every head: given, that of earlier steps, or from the pool.
Tensor choose_matrices(const RFA::Options& o, const RFA::Parameters& p, const RFA::Inputs& in, const RFA::State& past, bool training) {
  if (in.random_matrices) return *in.random_matrices;
  if (past.random_matrices.defined()) return past.random_matrices;
  if (!p.pool) return draw_matrices(o.draw, o.num_heads, o.proj_dim, o.embed_dim / o.num_heads, in.x.options());
  if (!training) return p.pool->narrow(0, 0, o.num_heads);
  return p.pool->index_select(0, at::randperm(o.pool_size, p.pool->options().dtype(at::kLong)).narrow(0, 0, o.num_heads));
}

Tokens tokens(const RFA::Options& o, const RFA::Parameters& p, const RFA::Inputs& in, const RFA::State& past, bool training) {
  TORCH_CHECK_VALUE(!in.context || !o.causal, "rfa: context is not given with causal");
  TORCH_CHECK_VALUE(p.gate.has_value() == o.gated, "rfa: gate is needed with gated, and only then");
  TORCH_CHECK_VALUE(p.sigma.has_value() == o.reparam_proj, "rfa: sigma is needed with reparam_proj, and only then");
  const auto [q, k, v] = p.attention.project(in.x, in.context.value_or(in.x), o.num_heads);
  Tokens t{.q = q, .k = k, .v = v, .random_matrices = choose_matrices(o, p, in, past, training), .sigma = p.sigma, .key_mask = in.key_mask};
  if (p.gate) {
    const Tensor logits = (*p.gate)(in.x).transpose(1, 2);  // [B,H,N]
    t.gate = Gate{.log_keep = at::log_sigmoid(logits), .write = (-logits).sigmoid()};
  }
  return t;
}

}  // namespace

void RFA::check(const Options& o) {
  layers::check_heads("rfa", o.embed_dim, o.num_heads);
  TORCH_CHECK_VALUE(o.context_dim.value_or(1) > 0, "rfa: context_dim must be positive, got ", *o.context_dim);
  TORCH_CHECK_VALUE(!o.gated || o.causal, "rfa: gated needs causal: without an order nothing is older");
  TORCH_CHECK_VALUE(o.pool_size == 0 || o.pool_size >= o.num_heads, "rfa: pool_size must be 0 or num_heads = ", o.num_heads, " and more, got ",
                    o.pool_size);
  check_features("rfa", function_options(o));
}

RFA::Parameters RFA::init(const Options& o) {
  const int64_t E = o.embed_dim, H = o.num_heads, D = E / H;
  Parameters p{.attention = layers::Heads::init({.width = E, .context_width = o.context_dim})};
  for (auto* one : {&p.attention.query, &p.attention.key, &p.attention.value, &p.attention.out}) {
    one->weight = layers::xavier_uniform(one->weight.sizes(), 1 / std::sqrt(2.0));
  }
  p.attention.out.bias->zero_();
  if (!o.causal) p.attention.query.bias->zero_();
  if (o.gated) p.gate = layers::Linear{.weight = layers::xavier_uniform({H, E}, 1 / std::sqrt(2.0)), .bias = at::full({H}, 3.0)};  // a long memory
  if (o.reparam_proj) p.sigma = layers::ones({H, 1, D});
  if (o.pool_size > 0) p.pool = draw_matrices(o.draw, o.pool_size, o.proj_dim, D, layers::zeros({0}).options());
  return p;
}

Tensor RFA::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  const Tokens t = tokens(o, p, in, {}, training);
  return p.attention.join(in.mask ? attend_by_pairs(function_options(o), t, *in.mask) : attend(function_options(o), t, {}).first);
}

std::pair<Tensor, RFA::State> RFA::step(const Options& o, const Parameters& p, const Inputs& in, State&& past, bool training) {
  TORCH_CHECK_VALUE(!in.mask, "rfa_step: mask is not given step by step");
  auto [out, state] = attend(function_options(o), tokens(o, p, in, past, training), past);
  return {p.attention.join(out), std::move(state)};
}

FOVEATE_MECHANISM(RFA)

}  // namespace foveate
