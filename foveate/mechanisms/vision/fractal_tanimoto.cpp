#include <foveate/attention_formula.h>
#include <foveate/conv_norm_relu.h>
#include <foveate/fractal_tanimoto.h>
#include <foveate/init.h>
#include <foveate/inner_sums.h>
#include <foveate/norm.h>

#include <algorithm>

namespace foveate {
namespace {

constexpr double momentum = 0.1, eps = 1e-5;

/// FT over positions [B,C,1,1], channels [B,1,H,W] or all [B,1,1,1]. The sums of p and l and those of their complements are two of a kind.
Tensor similarity(const Tensor& p, const Tensor& l, FractalOver over, int64_t depth, double smooth) {
  const bool of_channels = over != FractalOver::channels;
  Tensor sums = ops::inner_sums(p, l, of_channels).unflatten(0, {2, 2});  // [2,2,B,C] or [2,2,B,H,W]
  if (over == FractalOver::all) sums = sums.sum(3, true);
  const Tensor pl = sums.select(1, 0), squares = sums.select(1, 1);  // [2,B,...]
  const int64_t terms = std::max<int64_t>(depth, 1);
  Tensor total;
  for (int64_t d = 0; d < terms; ++d) {
    const double sharp = std::exp2(static_cast<double>(d));
    const Tensor term = (pl + smooth) / (sharp * squares - (2 * sharp - 1) * pl + smooth);
    total = d == 0 ? term : total + term;
  }
  const Tensor mean = total.mean(0) / static_cast<double>(terms);  // [B,...]
  return of_channels ? mean.unsqueeze(-1).unsqueeze(-1) : mean.unsqueeze(1);
}

FractalNormalisation::Plan plan(const auto& o) { return {.kind = o.norm, .groups = o.norm_groups}; }

Tensor through(const FractalConvolution& c, const auto& o, const Tensor& x, bool training) {
  const layers::Convolution::Steps steps{.padding = c.conv.weight.size(2) / 2, .groups = o.num_heads};
  if (o.norm == FractalNorm::batch) return layers::normalised(c.conv, c.norm.of_batches(), x, training, momentum, eps, steps);
  return c.norm(c.conv(x, steps), plan(o), training);
}

Tensor attend(const auto& o, const FractalAttention::Parameters& p, const Tensor& x, const Tensor& key, const Tensor& value, bool training) {
  const Tensor q = through(p.q, o, x, training).sigmoid();
  const Tensor k = through(p.k, o, key, training).sigmoid();
  const Tensor v = through(p.v, o, value, training).sigmoid();
  const auto type = ops::accumulation_type(q.scalar_type());
  const auto gate = [&](FractalOver over) { return similarity(q.to(type), k.to(type), over, o.depth, o.smooth).to(q.scalar_type()) / 2; };
  return p.out(v * (gate(FractalOver::positions) + gate(FractalOver::channels)), plan(o), training);
}

layers::Convolution convolution(int64_t in, int64_t out, int64_t taps, int64_t groups, bool bias) {
  const std::vector<int64_t> window{taps, taps};
  return layers::Convolution::init(in / groups, out, window, bias);
}

FractalConvolution normalised(const auto& o, int64_t in, int64_t out) {
  return {.conv = convolution(in, out, o.kernel_size, o.num_heads, false), .norm = FractalNormalisation::init(plan(o), out)};
}

FractalAttention::Parameters attention(const auto& o, int64_t in, int64_t out) {
  return {.q = normalised(o, in, out), .k = normalised(o, in, out), .v = normalised(o, in, out), .out = FractalNormalisation::init(plan(o), out)};
}

void check_options(const char* form, const auto& o, int64_t in) {
  TORCH_CHECK_VALUE(o.channels > 0 && in > 0, form, ": channels must be positive, got ", o.channels);
  TORCH_CHECK_VALUE(o.num_heads > 0 && o.channels % o.num_heads == 0 && in % o.num_heads == 0, form, ": num_heads must divide channels, got ",
                    o.num_heads, " and ", o.channels);
  TORCH_CHECK_VALUE(o.norm != FractalNorm::group || (o.norm_groups > 0 && o.channels % o.norm_groups == 0), form,
                    ": norm_groups must divide channels, got ", o.norm_groups, " and ", o.channels);
  TORCH_CHECK_VALUE(o.depth >= 0, form, ": depth must not be negative, got ", o.depth);
  TORCH_CHECK_VALUE(o.kernel_size > 0 && o.kernel_size % 2 == 1, form, ": kernel_size must be odd, got ", o.kernel_size);
}

void check_map(const char* form, const char* name, const Tensor& x, int64_t width) {
  TORCH_CHECK_VALUE(extent(x, 1) == width, form, ": ", name, " must have ", width, " channels, got ", x.sym_sizes());
}

}  // namespace

FractalNormalisation FractalNormalisation::init(const Plan& plan, int64_t width) {
  const int64_t count = plan.kind == FractalNorm::group ? plan.groups : width;
  FractalNormalisation made{.weight = layers::ones({count}), .bias = layers::zeros({count})};
  if (plan.kind == FractalNorm::batch) {
    made.running_mean = layers::zeros({width});
    made.running_var = layers::ones({width});
  }
  return made;
}

layers::BatchNorm FractalNormalisation::of_batches() const {
  TORCH_CHECK_VALUE(running_mean && running_var, "fractal normalisation: running_mean and running_var are needed where norm is batch");
  return {.weight = weight, .bias = bias, .running_mean = *running_mean, .running_var = *running_var};
}

Tensor FractalNormalisation::operator()(const Tensor& x, const Plan& plan, bool training) const {
  const auto standard = [&](const Tensor& t, at::IntArrayRef over) {
    return (t - t.mean(over, true)) / (t.var(over, /*unbiased=*/false, /*keepdim=*/true) + eps).sqrt();
  };
  const auto scaled = [&](const Tensor& t) { return t * weight.view({-1, 1, 1}) + bias.view({-1, 1, 1}); };
  switch (plan.kind) {
    case FractalNorm::batch: return of_batches()(x, training, momentum, eps);
    case FractalNorm::group: {
      const Tensor grouped = standard(x.unflatten(1, {plan.groups, -1}), {2, 3, 4});  // [B,groups,C/groups,H,W]
      return (grouped * weight.view({-1, 1, 1, 1}) + bias.view({-1, 1, 1, 1})).flatten(1, 2);
    }
    case FractalNorm::instance: return scaled(standard(x, {2, 3}));
    case FractalNorm::layer: return scaled(standard(x, {1}));
  }
  TORCH_CHECK(false, "unreachable");
}

void TanimotoSimilarity::check(const Options& o) {
  TORCH_CHECK_VALUE(o.depth >= 0, "tanimoto_similarity: depth must not be negative, got ", o.depth);
}

Tensor TanimotoSimilarity::forward(const Options& o, const Parameters&, const Inputs& in) {
  const auto type = ops::accumulation_type(in.p.scalar_type());
  return similarity(in.p.to(type), in.l.to(type), o.over, o.depth, o.smooth).to(in.p.scalar_type());
}

FOVEATE_MECHANISM(TanimotoSimilarity)

void FractalAttention::check(const Options& o) { check_options("fractal_attention", o, o.in_channels.value_or(o.channels)); }

FractalAttention::Parameters FractalAttention::init(const Options& o) { return attention(o, o.in_channels.value_or(o.channels), o.channels); }

Tensor FractalAttention::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  const Tensor key = in.key.value_or(in.x), value = in.value.value_or(key);
  const int64_t width = o.in_channels.value_or(o.channels);
  check_map("fractal_attention", "x", in.x, width);
  return attend(o, p, in.x, key, value, training);
}

FOVEATE_MECHANISM(FractalAttention)

void FractalResidualUnit::check(const Options& o) {
  check_options("fractal_residual_unit", o, o.channels);
  TORCH_CHECK_VALUE(o.groups > 0 && o.channels % o.groups == 0, "fractal_residual_unit: groups must divide channels, got ", o.groups, " and ",
                    o.channels);
}

FractalResidualUnit::Parameters FractalResidualUnit::init(const Options& o) {
  const auto norm = [&] { return FractalNormalisation::init(plan(o), o.channels); };
  return {.norm1 = norm(),
          .conv1 = convolution(o.channels, o.channels, 3, o.groups, false),
          .norm2 = norm(),
          .conv2 = convolution(o.channels, o.channels, 3, o.groups, true),
          .attention = attention(o, o.channels, o.channels),
          .gamma = layers::zeros({1})};
}

Tensor FractalResidualUnit::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  check_map("fractal_residual_unit", "x", in.x, o.channels);
  const auto branch = [&](const FractalNormalisation& norm, const layers::Convolution& conv, const Tensor& x) {
    return conv(norm(x, plan(o), training).relu(), {.padding = conv.weight.size(2) / 2, .groups = o.groups});
  };
  const Tensor residual = branch(p.norm2, p.conv2, branch(p.norm1, p.conv1, in.x));
  return (in.x + residual) * (1 + p.gamma * attend(o, p.attention, in.x, in.x, in.x, training));
}

FOVEATE_MECHANISM(FractalResidualUnit)

void FractalFusion::check(const Options& o) { check_options("fractal_fusion", o, o.channels); }

FractalFusion::Parameters FractalFusion::init(const Options& o) {
  return {.by_second = attention(o, o.channels, o.channels),
          .by_first = attention(o, o.channels, o.channels),
          .fuse = normalised(o, 2 * o.channels, o.channels),
          .gamma1 = layers::zeros({1}),
          .gamma2 = layers::zeros({1})};
}

Tensor FractalFusion::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  check_map("fractal_fusion", "x1", in.x1, o.channels);
  const Tensor first = in.x1 * (1 + p.gamma1 * attend(o, p.by_second, in.x1, in.x2, in.x2, training));
  const Tensor second = in.x2 * (1 + p.gamma2 * attend(o, p.by_first, in.x2, in.x1, in.x1, training));
  return through(p.fuse, o, at::cat({first, second}, 1), training).relu();
}

FOVEATE_MECHANISM(FractalFusion)

}  // namespace foveate
