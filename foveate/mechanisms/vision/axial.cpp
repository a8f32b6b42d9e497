#include <foveate/attention.h>
#include <foveate/axial.h>
#include <foveate/init.h>
#include <foveate/op.h>
#include <foveate/reversible.h>

namespace foveate {

// --- along one axis ----------------------------------------------------------------------------------------------------------

namespace detail {

Tensor attend_along(int64_t axis, const Tensor& q, const Tensor& k, const Tensor& v, bool causal, const optional<double>& scale,
                    const optional<Tensor>& key_mask) {
  // [B,before...,L,behind...,H,D] -> [B before,behind H,L,D]
  const auto lines = [axis](const Tensor& x) { return x.flatten(0, axis - 1).flatten(2, -2).transpose(1, 2); };
  ops::Attention how{.causal = causal, .scale = scale};
  if (key_mask) {
    const Tensor each = key_mask->unsqueeze(-1).unsqueeze(-1).expand_symint([&] {
      auto shape = k.sym_sizes().vec();
      shape.back() = 1;
      return shape;
    }());
    how.mask = lines(each).transpose(2, 3);  // [B before,behind H,1,L]
  }
  const Tensor out = ops::attention(lines(q), lines(k), lines(v), how).out;
  auto shape = q.sym_sizes().vec();
  shape.back() = extent(v, -1);
  return out.transpose(1, 2).reshape_symint(shape);
}

}  // namespace detail

Tensor AxisAttention::forward(const Options& o, const Parameters&, const Inputs& in) {
  const int64_t d = in.q.dim();
  TORCH_CHECK_VALUE(d >= 4 && d <= 6 && in.k.dim() == d && in.v.dim() == d,
                    "axis_attention: q, k and v must be [B,*S,H,D] with one to three axes S, got ", in.q.sym_sizes(), ", ", in.k.sym_sizes(), " and ",
                    in.v.sym_sizes());
  TORCH_CHECK_VALUE(o.axis >= 1 && o.axis < d - 2, "axis_attention: axis must be 1 to ", d - 3, " for q ", in.q.sym_sizes(), ", got ", o.axis);
  for (int64_t i = 0; i < d; ++i) {
    const bool alike = (i == o.axis || extent(in.k, i) == extent(in.q, i)) && (i == d - 1 || extent(in.v, i) == extent(in.k, i));
    TORCH_CHECK_VALUE(alike, "axis_attention: q, k and v may differ along axis ", o.axis, ", and v in width; got ", in.q.sym_sizes(), ", ",
                      in.k.sym_sizes(), " and ", in.v.sym_sizes());
  }
  TORCH_CHECK_VALUE(!in.key_mask || in.key_mask->dim() == d - 2, "axis_attention: key_mask must be [B,*S] as k, got ",
                    in.key_mask ? in.key_mask->sym_sizes() : in.k.sym_sizes(), " beside ", in.k.sym_sizes());
  return detail::attend_along(o.axis, in.q, in.k, in.v, o.causal, o.scale, in.key_mask);
}

FOVEATE_MECHANISM(AxisAttention)

// --- along every axis --------------------------------------------------------------------------------------------------------

namespace {

layers::Heads projections(const auto& o) {
  const int64_t inner = o.num_heads * o.head_dim.value_or(o.dim / o.num_heads);
  return layers::Heads::init({.width = o.dim, .keys = inner, .values = inner, .bias = false, .out_bias = true});
}

/// x [B,*S,C]
Tensor attend(const layers::Heads& heads, const Tensor& x, int64_t axis, int64_t num_heads, const optional<Tensor>& key_mask = {}) {
  const auto split = [&](const layers::Linear& map) { return map(x).unflatten(-1, {num_heads, -1}); };
  return heads.out(detail::attend_along(axis, split(heads.query), split(heads.key), split(heads.value), false, {}, key_mask).flatten(-2));
}

void check_channels(const char* form, const auto& o) {
  layers::check_heads(form, o.dim, o.num_heads);
  TORCH_CHECK_VALUE(!o.head_dim || *o.head_dim > 0, form, ": head_dim must be positive, got ", o.head_dim.value_or(0));
}

/// Where the channels stand, counted from the front.
int64_t channels_at(const char* form, const Tensor& x, int64_t dim_index, int64_t dim, int64_t axes) {
  const int64_t at = dim_index < 0 ? dim_index + x.dim() : dim_index;
  TORCH_CHECK_VALUE(x.dim() == axes + 2 && at > 0 && at < x.dim() && extent(x, at) == dim, form, ": x must have ", axes,
                    " axes besides batch and dim = ", dim, " channels at dim_index = ", dim_index, ", got ", x.sym_sizes());
  return at;
}

}  // namespace

void AxialAttention::check(const Options& o) {
  check_channels("axial_attention", o);
  TORCH_CHECK_VALUE(o.num_dimensions >= 1 && o.num_dimensions <= 3, "axial_attention: num_dimensions must be 1, 2 or 3, got ", o.num_dimensions);
  TORCH_CHECK_VALUE(o.dim_index != 0, "axial_attention: dim_index must not be 0, which is the batch");
}

AxialAttention::Parameters AxialAttention::shape(const Options& o) {
  Parameters p;
  p.axes.resize(static_cast<std::size_t>(o.num_dimensions));
  return p;
}

AxialAttention::Parameters AxialAttention::init(const Options& o) {
  Parameters p = shape(o);
  for (auto& heads : p.axes) heads = projections(o);
  return p;
}

Tensor AxialAttention::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const int64_t at = channels_at("axial_attention", in.x, o.dim_index, o.dim, o.num_dimensions);
  const Tensor x = in.x.movedim(at, -1);  // [B,*S,C]
  Tensor out = x;
  for (int64_t a = 0; a < o.num_dimensions; ++a) {
    const Tensor read = attend(p.axes[static_cast<std::size_t>(a)], o.sum_axial_out ? x : out, a + 1, o.num_heads, in.key_mask);
    out = o.sum_axial_out && a > 0 ? out + read : read;
  }
  return out.movedim(-1, at);
}

FOVEATE_MECHANISM(AxialAttention)

// --- the stack ---------------------------------------------------------------------------------------------------------------

namespace {

AxialStep step(const AxialImageTransformer::Options& o) { return {.norm = layers::LayerNorm::init(o.dim), .heads = projections(o)}; }

AxialConvolutions convolutions(int64_t C) {
  const std::vector<int64_t> taps{3, 3};
  return {.gain = layers::ones({1, C, 1, 1}),
          .shift = layers::zeros({1, C, 1, 1}),
          .up = layers::Convolution::init(C, 4 * C, taps),
          .down = layers::Convolution::init(4 * C, C, taps)};
}

/// x [B,C,H,W]; here the deviation, not the variance, is kept from zero.
Tensor through(const AxialConvolutions& p, const Tensor& x) {
  const Tensor centred = x - x.mean(1, true);
  const Tensor deviation = centred.square().mean(1, true).sqrt();
  const Tensor normed = centred / (deviation + 1e-5) * p.gain + p.shift;
  return p.down(at::leaky_relu(p.up(normed, {.padding = 1}), 0.01), {.padding = 1});
}

Tensor through(const AxialStep& p, const Tensor& x, int64_t axis, int64_t num_heads) {
  return attend(p.heads, p.norm(x.movedim(1, -1)), axis, num_heads).movedim(-1, 1);
}

// The reversible stack as a primitive: for gradients it keeps its two streams as they came out, and makes those inside again from them.

struct ReversibleStack {
  Tensor x;
  std::vector<Tensor> parameters;  // of every pair, those of f and those of g
  int64_t num_heads = 1;

  void fields(auto&& f) {
    f("x", x, "map [B,C,H,W]");
    f("parameters", parameters, "of the pairs");
    f("num_heads", num_heads, "heads");
  }
};

const Tensor& needed(const optional<Tensor>& bias) {
  TORCH_CHECK_VALUE(bias, "axial_image_transformer: a reversible stack needs the biases of its output projections and convolutions");
  return *bias;
}

std::vector<Tensor> listed(const AxialStep& p) {
  return {p.norm.weight, p.norm.bias, p.heads.query.weight, p.heads.key.weight, p.heads.value.weight, p.heads.out.weight, needed(p.heads.out.bias)};
}
std::vector<Tensor> listed(const AxialConvolutions& p) {
  return {p.gain, p.shift, p.up.weight, needed(p.up.bias), p.down.weight, needed(p.down.bias)};
}

Tensor step_from(std::span<const Tensor> p, const Tensor& x, int64_t axis, int64_t num_heads) {
  return through(AxialStep{.norm = {.weight = p[0], .bias = p[1]},
                           .heads = {.query = {.weight = p[2], .bias = {}},
                                     .key = {.weight = p[3], .bias = {}},
                                     .value = {.weight = p[4], .bias = {}},
                                     .out = {.weight = p[5], .bias = p[6]}}},
                 x, axis, num_heads);
}
Tensor convolutions_from(std::span<const Tensor> p, const Tensor& x) {
  return through(AxialConvolutions{.gain = p[0], .shift = p[1], .up = {.weight = p[2], .bias = p[3]}, .down = {.weight = p[4], .bias = p[5]}}, x);
}

/// Pairs of attention and pairs of convolutions take turns.
std::vector<ops::ReversibleLayer> sublayers(const ReversibleStack& stack) {
  constexpr std::size_t of_attention = 7, of_convolutions = 6;
  std::vector<ops::ReversibleLayer> pairs;
  std::size_t next = 0;
  const auto sublayer = [&](std::size_t count, const auto& add) {
    const auto first = stack.parameters.begin() + static_cast<std::ptrdiff_t>(next);
    next += count;
    return ops::Sublayer{.parameters = {first, first + static_cast<std::ptrdiff_t>(count)}, .add = add};
  };
  const auto attention = [&](int64_t axis) {
    return sublayer(of_attention,
                    [axis, heads = stack.num_heads](const Tensor& x, std::span<const Tensor> p) { return step_from(p, x, axis, heads); });
  };
  const auto network = [&] { return sublayer(of_convolutions, [](const Tensor& x, std::span<const Tensor> p) { return convolutions_from(p, x); }); };
  while (next < stack.parameters.size()) {
    pairs.push_back({.f = attention(1), .g = attention(2)});
    pairs.push_back({.f = network(), .g = network()});
  }
  return pairs;
}

using Streams = std::tuple<Tensor, Tensor>;

Streams stack_formula(const ReversibleStack& stack) {
  const auto [one, two] = ops::run_reversible(sublayers(stack), {.one = stack.x, .two = stack.x});
  return {one.contiguous(), two.contiguous()};
}

Streams stack_meta(const ReversibleStack& stack) {
  return {stack.x.new_empty_symint(stack.x.sym_sizes()), stack.x.new_empty_symint(stack.x.sym_sizes())};
}

ops::Gradients stack_backward(const ops::Backward& call, const ReversibleStack& stack) {
  const auto gradient = [&](std::size_t i) { return call.gradients[i].defined() ? call.gradients[i] : at::zeros_like(stack.x); };
  const auto found =
      ops::reversible_gradients(sublayers(stack), {.one = call.results[0], .two = call.results[1]}, {.one = gradient(0), .two = gradient(1)});
  std::vector<Tensor> wanted_ones;
  ops::Wanted wanted(call);
  ops::give(wanted_ones, wanted(stack.x), stack.x, [&] { return found.x.one + found.x.two; });
  for (std::size_t i = 0; i < stack.parameters.size(); ++i) {
    ops::give(wanted_ones, wanted(stack.parameters[i]), stack.parameters[i], [&] { return found.parameters[i]; });
  }
  return wanted_ones;
}

FOVEATE_OP(axial_stack, ops::schema_of<ReversibleStack>("_axial_stack") + " -> (Tensor one, Tensor two)",
           {.formula = ops::structured<&stack_formula>(),
            .meta = ops::structured<&stack_meta>(),
            .cpu = ops::structured<&stack_formula>(),
            .cpu_backward = &stack_backward,
            .any_device = true})

/// The mean of both streams.
Tensor reversible(const Tensor& x, const std::vector<AxialPair>& pairs, int64_t num_heads) {
  ReversibleStack stack{.x = x, .num_heads = num_heads};
  const auto add = [&](const auto& part) {
    const auto all = listed(*part);
    stack.parameters.insert(stack.parameters.end(), all.begin(), all.end());
  };
  for (const auto& pair : pairs) {
    if (pair.down) {
      add(pair.down);
      add(pair.across);
    } else {
      add(pair.first);
      add(pair.second);
    }
  }
  auto results = ops::call("foveate::_axial_stack", std::move(stack));
  return (results[0].toTensor() + results[1].toTensor()) / 2;
}

}  // namespace

void AxialImageTransformer::check(const Options& o) {
  check_channels("axial_image_transformer", o);
  TORCH_CHECK_VALUE(o.depth > 0, "axial_image_transformer: depth must be positive, got ", o.depth);
  TORCH_CHECK_VALUE(o.dim_index != 0, "axial_image_transformer: dim_index must not be 0, which is the batch");
  TORCH_CHECK_VALUE(o.axial_pos_emb_shape.empty() || o.axial_pos_emb_shape.size() == 2,
                    "axial_image_transformer: axial_pos_emb_shape must be height and width, got ", o.axial_pos_emb_shape.size(), " numbers");
}

AxialImageTransformer::Parameters AxialImageTransformer::shape(const Options& o) {
  Parameters p;
  p.pairs.resize(2 * static_cast<std::size_t>(o.depth));
  for (std::size_t i = 0; i < p.pairs.size(); ++i) {
    if (i % 2 == 0) p.pairs[i] = {.down = AxialStep{}, .across = AxialStep{}, .first = {}, .second = {}};
    else p.pairs[i] = {.down = {}, .across = {}, .first = AxialConvolutions{}, .second = AxialConvolutions{}};
  }
  return p;
}

AxialImageTransformer::Parameters AxialImageTransformer::init(const Options& o) {
  Parameters p = shape(o);
  if (!o.axial_pos_emb_shape.empty()) {
    p.rows = layers::normal({1, o.dim, o.axial_pos_emb_shape[0], 1}, 1);
    p.columns = layers::normal({1, o.dim, 1, o.axial_pos_emb_shape[1]}, 1);
  }
  for (auto& pair : p.pairs) {
    for (auto* attention : {&pair.down, &pair.across}) {
      if (*attention) *attention = step(o);
    }
    for (auto* network : {&pair.first, &pair.second}) {
      if (*network) *network = convolutions(o.dim);
    }
  }
  return p;
}

Tensor AxialImageTransformer::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const int64_t at = channels_at("axial_image_transformer", in.x, o.dim_index, o.dim, 2);
  Tensor x = in.x.movedim(at, 1);  // [B,C,H,W]
  if (p.rows && p.columns) {
    TORCH_CHECK_VALUE(extent(x, 2) == extent(*p.rows, 2) && extent(x, 3) == extent(*p.columns, 3), "axial_image_transformer: x must be ",
                      extent(*p.rows, 2), " by ", extent(*p.columns, 3), " as axial_pos_emb_shape says, got ", in.x.sym_sizes());
    x = x + *p.rows + *p.columns;
  }
  if (o.reversible) return reversible(x, p.pairs, o.num_heads).movedim(1, at);
  for (const auto& pair : p.pairs) {
    if (pair.down) {
      x = x + through(*pair.down, x, 1, o.num_heads);
      x = x + through(*pair.across, x, 2, o.num_heads);
    } else {
      x = x + through(*pair.first, x);
      x = x + through(*pair.second, x);
    }
  }
  return x.movedim(1, at);
}

FOVEATE_MECHANISM(AxialImageTransformer)

}  // namespace foveate
