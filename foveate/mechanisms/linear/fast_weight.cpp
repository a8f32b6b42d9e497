#include <foveate/attention_formula.h>
#include <foveate/delta_attention.h>
#include <foveate/dropout.h>
#include <foveate/fast_weight.h>
#include <foveate/feature_map.h>
#include <foveate/linear_attention.h>
#include <foveate/projected_features.h>
#include <foveate/random_features.h>

namespace foveate {
namespace {

using Function = FastWeightAttention;

/// [D,m]: columns orthogonal in blocks of D, each as long as a Gaussian vector.
Tensor draw_columns(int64_t D, int64_t m, const at::TensorOptions& options) {
  return layers::draw_projection({.features = m, .dim = D}, options).transpose(0, 1);
}

/// r [r rotated by 1, ..., r rotated by nu] with r = [relu(x), relu(-x)]: x [...,D] -> [...,2 D nu]
Tensor dpfp(const Tensor& x, int64_t nu) {
  const Tensor r = at::cat({x.relu(), (-x).relu()}, -1);
  std::vector<Tensor> products;
  for (int64_t by = 1; by <= nu; ++by) products.push_back(r * at::roll(r, {by}, {-1}));
  return at::cat(products, -1);
}

/// ([e^(u-h), e^(-u-h)] + eps) (2m)^(-1/2), u = x W, h = |x|^2 / 2: x [...,D], W [D,m] -> [...,2m]
Tensor favor_plus(const Tensor& x, const Tensor& W, double eps) {
  const double factor = 1 / std::sqrt(2 * static_cast<double>(plain_extent(W, 1)));
  return ops::projected_features(x, W.transpose(0, 1), {.map = ops::Projected::hyperbolic, .factor = factor, .eps = eps * factor}).phi;
}

/// x / divisor, where divisor is not 0.
Tensor over(const Tensor& x, const Tensor& divisor) { return x / divisor.masked_fill(divisor == 0, 1); }

/// phi in the type that sums are kept in: x [B,H,N,D] -> [B,H,N,F]
Tensor features(const Tensor& given, const Function::Options& o, const Tensor& projection) {
  const Tensor x = given.to(ops::accumulation_type(given.scalar_type()));
  const Tensor phi = o.feature_map == FastWeightFeatures::elu_plus_one ? layers::feature_map(x, layers::FeatureMap::elu_plus_one)
                     : o.feature_map == FastWeightFeatures::dpfp       ? dpfp(x, o.nu)
                                                                       : favor_plus(x, projection.to(x.scalar_type()), o.kernel_eps);
  const bool sums_to_one = o.sum_norm.value_or(o.update == FastWeightUpdate::delta);
  return sums_to_one ? over(phi, phi.sum(-1, true)) : phi;  // dpfp may vanish: such a key writes nothing
}

/// sum_j q.k_j over the keys before and up to `offset` places after each query, z_0 what came earlier: [B,H,N,1], and z after all keys
ops::LinearAttended mass(const Tensor& q, const Tensor& k, const Tensor& z_0, const optional<Tensor>& key_mask, bool causal, int64_t offset) {
  const Tensor ones = at::ones_like(k.narrow(-1, 0, 1));
  ops::LinearState state;
  if (z_0.defined()) state = {.S = z_0.unsqueeze(-1), .z = z_0};
  return ops::linear_attention(q, k, ones,
                               {.causal = causal, .key_mask = key_mask, .state = state, .normalizer = ops::Normalizer::none, .offset = Size(offset)});
}

/// True at the first token of a sequence that takes part: [M] or [B,1,M]
Tensor first_token(const Tensor& k, const optional<Tensor>& key_mask) {
  if (key_mask) return (key_mask->cumsum(-1) <= 1).unsqueeze(1);
  return at::arange(extent(k, 2), k.options().dtype(at::kLong)) == 0;
}

struct Written {
  Tensor out, S, z;
};

Written write_sum(const Function::Options& o, const Tensor& q, const Tensor& k, const Tensor& v, const optional<Tensor>& key_mask,
                  const Function::State& past) {
  const bool divides = o.attention_norm != FastWeightNorm::none;
  auto [out, state] = ops::linear_attention(q, k, v,
                                            {.causal = o.causal,
                                             .key_mask = key_mask,
                                             .state = {.S = past.S, .z = past.z},
                                             .normalizer = divides ? ops::Normalizer::add : ops::Normalizer::none,
                                             .eps = o.eps,
                                             .offset = Size(0)});
  return {.out = std::move(out), .S = std::move(state.S), .z = std::move(state.z)};
}

Written write_delta(const Function::Options& o, const Tensor& q, const Tensor& k, const Tensor& v, Tensor beta, const optional<Tensor>& key_mask,
                    const Function::State& past) {
  Tensor key = k;
  if (o.attention_norm == FastWeightNorm::both) {  // beta (v - S^T k / d) = beta d (v - S^T k / d) / d, d = z_{t-1}.k_t
    Tensor d = mass(k, k, past.z, key_mask, /*causal=*/true, /*offset=*/-1).out.squeeze(-1);  // [B,H,M]
    if (!past.S.defined()) d = d.masked_fill(first_token(k, key_mask), 1);
    beta = beta * d;
    key = over(k, (d + o.eps).unsqueeze(-1));
  }
  auto [out, S] = ops::delta_attention(q, key, v, beta, {.causal = o.causal, .key_mask = key_mask, .state = past.S, .offset = Size(0)});
  if (o.attention_norm == FastWeightNorm::none) {
    const Tensor added = (key_mask ? k.masked_fill(key_mask->logical_not().unsqueeze(1).unsqueeze(-1), 0) : k).sum(2);
    return {.out = std::move(out), .S = std::move(S), .z = past.z.defined() ? past.z + added : added};
  }
  const auto seen = mass(q, k, past.z, key_mask, o.causal, /*offset=*/0);
  return {.out = over(out, seen.out + o.eps), .S = std::move(S), .z = seen.state.z};
}

void check_memory(const char* form, const Function::Options& o) {
  TORCH_CHECK_VALUE(o.nu > 0, form, ": nu must be positive, got ", o.nu);
  TORCH_CHECK_VALUE(o.m > 0, form, ": m must be positive, got ", o.m);
  TORCH_CHECK_VALUE(o.kernel_eps >= 0, form, ": kernel_eps must not be negative, got ", o.kernel_eps);
  TORCH_CHECK_VALUE(o.eps >= 0, form, ": eps must not be negative, got ", o.eps);
}

}  // namespace

void Function::check(const Options& o) { check_memory("fast_weight_attention", o); }

std::pair<Tensor, Function::State> Function::step(const Options& o, const Parameters&, const Inputs& in, State&& past) {
  const bool delta = o.update == FastWeightUpdate::delta, random = o.feature_map == FastWeightFeatures::favor_plus;
  TORCH_CHECK_VALUE(in.beta.has_value() == delta, "fast_weight_attention: beta is for update = delta, which needs it");
  TORCH_CHECK_VALUE(random || !in.projection, "fast_weight_attention: projection is for feature_map = favor+");
  TORCH_CHECK_VALUE(!o.causal || extent(in.q, 2) == extent(in.k, 2), "fast_weight_attention: causal needs as many queries as keys, got ",
                    extent(in.q, 2), " and ", extent(in.k, 2));
  Tensor W = in.q.new_empty({0, 0});
  if (random) {
    W = in.projection ? *in.projection : past.projection.defined() ? past.projection : draw_columns(plain_extent(in.q, 3), o.m, in.q.options());
  }
  const Tensor q = features(in.q, o, W), k = features(in.k, o, W), v = in.v.to(q.scalar_type());
  auto [out, S, z] = delta ? write_delta(o, q, k, v, in.beta->to(q.scalar_type()), in.key_mask, past) : write_sum(o, q, k, v, in.key_mask, past);
  if (o.output_scale != 1) out = out * o.output_scale;
  return {out.to(in.q.scalar_type()), State{.S = std::move(S), .z = std::move(z), .projection = W}};
}

Tensor Function::forward(const Options& o, const Parameters& p, const Inputs& in) { return step(o, p, in, {}).first; }

FOVEATE_MECHANISM(FastWeightAttention)

namespace {

int64_t head_width(const FastWeightLayer::Options& o) { return o.d_head.value_or(o.d_model / o.n_head); }

Function::Options function_options(const FastWeightLayer::Options& o) {
  return {.update = o.update,
          .feature_map = o.feature_map,
          .nu = o.nu,
          .m = o.m,
          .kernel_eps = o.kernel_eps,
          .sum_norm = o.sum_norm,
          .attention_norm = o.attention_norm,
          .eps = o.eps,
          .output_scale = o.output_scale.value_or(1 / std::sqrt(static_cast<double>(head_width(o))))};
}

}  // namespace

void FastWeightLayer::check(const Options& o) {
  TORCH_CHECK_VALUE(o.d_model > 0, "fast_weight_layer: d_model must be positive, got ", o.d_model);
  TORCH_CHECK_VALUE(o.n_head > 0, "fast_weight_layer: n_head must be positive, got ", o.n_head);
  TORCH_CHECK_VALUE(o.d_head || o.d_model % o.n_head == 0, "fast_weight_layer: n_head must divide d_model unless d_head is given, got ", o.n_head,
                    " and ", o.d_model);
  TORCH_CHECK_VALUE(o.d_head.value_or(1) > 0, "fast_weight_layer: d_head must be positive, got ", *o.d_head);
  layers::check_dropout("fast_weight_layer", "dropout", o.dropout);
  check_memory("fast_weight_layer", function_options(o));
}

FastWeightLayer::Parameters FastWeightLayer::init(const Options& o) {
  const int64_t d = head_width(o), each = o.update == FastWeightUpdate::delta ? 3 * d + 1 : 3 * d;
  Parameters p{.qkvb = layers::Linear::init(o.d_model, o.n_head * each, /*bias=*/false),
               .out = layers::Linear::init(o.n_head * d, o.d_model, /*bias=*/false),
               .norm = layers::LayerNorm::init(o.d_model)};
  if (o.feature_map == FastWeightFeatures::favor_plus) p.projection = draw_columns(d, o.m, p.qkvb.weight.options()).contiguous();
  return p;
}

std::pair<Tensor, FastWeightLayer::State> FastWeightLayer::step(const Options& o, const Parameters& p, const Inputs& in, State&& past,
                                                                bool training) {
  const int64_t d = head_width(o);
  const bool delta = o.update == FastWeightUpdate::delta;
  const Tensor h = o.pre_lnorm ? p.norm(in.x, o.layer_norm_eps) : in.x;
  const Tensor heads = split_heads(p.qkvb(h), o.n_head);  // [B,H,N,3d+1]
  const auto part = [&](int64_t i) { return heads.narrow(-1, i * d, d); };
  Function::Inputs tokens{.q = part(0), .k = part(1), .v = part(2), .key_mask = in.key_mask};
  if (delta) tokens.beta = heads.select(-1, 3 * d).sigmoid();
  // In training the function draws a projection of its own, and keeps it in the state.
  if (!(training && o.redraw)) tokens.projection = p.projection;
  auto [read, state] = Function::step(function_options(o), {}, tokens, std::move(past));
  const Tensor sum = h + layers::dropout(p.out(merge_heads(read)), o.dropout, in.dropout_keep, training);
  return {o.pre_lnorm ? sum : p.norm(sum, o.layer_norm_eps), std::move(state)};
}

Tensor FastWeightLayer::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) { return step(o, p, in, {}, training).first; }

FOVEATE_MECHANISM(FastWeightLayer)

}  // namespace foveate
