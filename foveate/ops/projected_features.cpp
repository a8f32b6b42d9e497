#include <foveate/projected_features.h>

#include "kernels/projected_features.h"

#include <foveate/attention.h>
#include <foveate/op.h>
#include <foveate/prepared.h>

namespace foveate::ops {
namespace {

using Results = std::tuple<Tensor, Tensor>;

/// The top of nothing: finite, so that differences are never NaN.
constexpr double lowest = -1e30;

template <class Choice> Choice choice(const char* what, std::string_view name) {
  return static_cast<Choice>(registry::find_choice(what, name, names<Choice>.data(), names<Choice>.size()));
}
Projected map_of(std::string_view name) { return choice<Projected>("projected_features: map", name); }
Top top_of(std::string_view name) { return choice<Top>("projected_features: top", name); }

bool trigonometric(Projected map) { return map == Projected::cos_sin || map == Projected::sin_cos || map == Projected::cos_phase; }

/// What tops are the maxima of: [B,H,N,1], from u [B,H,N,m] and h [B,H,N,1].
Tensor level(Projected map, const Tensor& u, const Tensor& h, bool bare) {
  if (trigonometric(map)) return h;
  if (map == Projected::hyperbolic && bare) return 2 * h;
  const Tensor most = (map == Projected::hyperbolic ? at::cat({u, -u}, -1) : u).amax(-1, /*keepdim=*/true);
  return bare ? most : most - h;
}

/// f(u) without the exponential, and what stands in its exponent beside h.
Tensor body(Projected map, const Tensor& u) {
  switch (map) {
    case Projected::cos_sin: return at::cat({u.cos(), u.sin()}, -1);
    case Projected::sin_cos: return at::cat({u.sin(), u.cos()}, -1);
    case Projected::cos_phase: return u.cos();
    case Projected::relu: return u.relu();
    case Projected::elu_plus_one: return u.clamp_max(0).exp() + u.relu();
    default: return {};
  }
}

Results projected_features_formula(const Tensor& x, const Tensor& W, const optional<Tensor>& phase, const optional<Tensor>& key_mask,
                                   const optional<Tensor>& past, std::string_view map_name, std::string_view top_name, bool bare, bool detach,
                                   double scale, double factor, double eps) {
  const auto map = map_of(map_name);
  const auto how = top_of(top_name);
  const auto type = accumulation_type(x.scalar_type());
  const Tensor y = x.to(type), product = at::matmul(y, W.transpose(-1, -2) * std::sqrt(scale)), u = phase ? product + *phase : product;
  const auto times_and_plus = [&](const Tensor& phi) {
    const Tensor scaled = factor == 1 ? phi : phi * factor;
    return eps == 0 ? scaled : scaled + eps;
  };
  const Tensor none = at::zeros({x.size(0), x.size(1), 0}, u.options());
  if (!exponential(map)) return {times_and_plus(body(map, u)), none};
  const Tensor h = y.square().sum(-1, /*keepdim=*/true) * (scale / 2);  // [B,H,N,1]
  const auto hidden = key_mask ? optional(key_mask->logical_not().unsqueeze(1).unsqueeze(-1)) : std::nullopt;
  const auto hide = [&](const Tensor& t) { return hidden ? t.masked_fill(*hidden, lowest) : t; };
  Tensor top = none;
  if (how != Top::none) {
    const Tensor levels = hide(level(map, u, h, bare)).squeeze(-1);  // [B,H,N]
    const Tensor before = (past ? *past : at::full({x.size(0), x.size(1)}, lowest, u.options())).unsqueeze(-1);
    const Tensor all = at::cat({before, levels}, -1);
    if (how == Top::own) top = levels;
    else if (how == Top::running) top = std::get<0>(all.cummax(-1)).narrow(-1, 1, x.size(2));
    else top = all.amax(-1, /*keepdim=*/true);
    if (detach) top = top.detach();
  }
  const Tensor sign = trigonometric(map) ? h : -h;
  const Tensor shift = hide(how == Top::none ? sign : sign - top.unsqueeze(-1));
  const Tensor beside = body(map, u);
  if (beside.defined()) return {times_and_plus(beside * shift.exp()), top};
  return {times_and_plus(((map == Projected::hyperbolic ? at::cat({u, -u}, -1) : u) + shift).exp()), top};
}

Results projected_features_meta(const Tensor& x, const Tensor& W, const optional<Tensor>&, const optional<Tensor>&, const optional<Tensor>&,
                                std::string_view map, std::string_view top, bool, bool, double, double, double) {
  const auto how = top_of(top);
  const Size B = extent(x, 0), H = extent(x, 1), N = extent(x, 2), m = extent(W, -2);
  const Size tops = how == Top::none || !exponential(map_of(map)) ? Size(0) : how == Top::whole ? Size(1) : N;
  const auto options = x.options().dtype(accumulation_type(x.scalar_type()));
  return {x.new_empty_symint({B, H, N, doubled(map_of(map)) ? m * 2 : m}, options), x.new_empty_symint({B, H, tops}, options)};
}

template <class scalar> const kernels::ProjectedFeaturesEngine<scalar>& engine() {
  if constexpr (std::is_same_v<scalar, double>) return *cpu_kernels().projected_features_double;
  else return *cpu_kernels().projected_features_float;
}

struct Arguments {
  Tensor x, W;
  optional<Tensor> phase, key_mask, past;
  Projected map;
  Top top;
  bool bare, detach;
  double scale, factor, eps;
};

template <class scalar> kernels::ProjectedFeatures<scalar> prepared(const Arguments& c, Alive& alive) {
  static_assert(static_cast<int>(kernels::Projected::elu_plus_one) == static_cast<int>(Projected::elu_plus_one));
  static_assert(static_cast<int>(kernels::Top::whole) == static_cast<int>(Top::whole));
  const int64_t vector = engine<scalar>().vector;
  const auto padded_rows = [&](const Tensor& t) { return at::constant_pad_nd(t, {0, padded(t.size(-1), vector) - t.size(-1)}); };
  const Tensor W = c.W.to(alive.options.dtype()) * std::sqrt(c.scale);
  return {.B = c.x.size(0),
          .H = c.x.size(1),
          .N = c.x.size(2),
          .D = c.x.size(3),
          .m = W.size(-2),
          .x = alive.kept_rows(c.x),
          .W = alive.numbers<scalar>(padded_rows(W)),
          .W_across = alive.numbers<scalar>(padded_rows(W.transpose(-1, -2))),
          .W_of_heads = W.dim() == 3,
          .phase = alive.numbers<scalar>(c.phase ? optional(padded_rows(*c.phase)) : std::nullopt),
          .key_mask = alive.bytes(c.key_mask),
          .past = alive.numbers<scalar>(c.past),
          .map = static_cast<kernels::Projected>(c.map),
          .top = exponential(c.map) ? static_cast<kernels::Top>(c.top) : kernels::Top::none,
          .bare = c.bare,
          .scale = static_cast<scalar>(c.scale),
          .factor = static_cast<scalar>(c.factor),
          .eps = static_cast<scalar>(c.eps)};
}

template <class scalar> Results forward(const Arguments& c) {
  Alive alive(c.x);
  auto a = prepared<scalar>(c, alive);
  const int64_t tops = a.top == kernels::Top::none ? 0 : a.top == kernels::Top::whole ? 1 : a.N;
  const Tensor phi = room_for({a.B, a.H, a.N, a.F()}, alive.options), top = at::empty({a.B, a.H, tops}, alive.options);
  a.phi = phi.mutable_data_ptr<scalar>();
  a.tops = top.mutable_data_ptr<scalar>();
  alive.in_parallel<scalar>(a, 0, a.tasks(), engine<scalar>().forward_room(a), engine<scalar>().forward);
  return {phi, top};
}

/// The sum of t's leading dimensions that `like` has not.
Tensor summed_to(const Tensor& t, const Tensor& like) { return t.dim() == like.dim() ? t : summed_to(t.sum(0), like); }

template <class scalar> std::vector<Tensor> backward(const Backward& call, const Arguments& c) {
  Alive alive(c.x);
  auto a = prepared<scalar>(c, alive);
  const int64_t vector = engine<scalar>().vector;
  Wanted wanted(call);
  const bool x = wanted(c.x), W = wanted(c.W), phase = wanted(c.phase), mask = wanted(c.key_mask), past = wanted(c.past);
  const auto given = [](const Tensor& t) { return t.defined() && t.numel() > 0 ? optional(t) : std::nullopt; };
  a.phi = const_cast<scalar*>(alive.numbers<scalar>(call.results[0]));   // NOLINT: read only in the backward
  a.tops = const_cast<scalar*>(alive.numbers<scalar>(call.results[1]));  // NOLINT
  a.through_top = !c.detach && a.top != kernels::Top::none;
  a.d_phi = alive.numbers<scalar>(call.gradients[0].defined() ? call.gradients[0] : at::zeros_like(call.results[0]));
  a.d_tops = a.through_top ? alive.numbers<scalar>(given(call.gradients[1])) : nullptr;
  Tensor d_x = room_for(c.x.sizes(), alive.options);
  Tensor d_W, d_phase, d_past;
  const auto zeros = [&](at::IntArrayRef shape, Tensor& made) {
    made = at::zeros(shape, alive.options);
    return made.template mutable_data_ptr<scalar>();
  };
  a.d_x = d_x.mutable_data_ptr<scalar>();
  a.d_W = W ? zeros({a.B, a.H, a.m, padded(a.D, vector)}, d_W) : nullptr;
  a.d_phase = phase ? zeros({a.B, a.H, padded(a.m, vector)}, d_phase) : nullptr;
  a.d_past = past ? zeros({a.B, a.H}, d_past) : nullptr;
  alive.in_parallel<scalar>(a, 0, a.B * a.H, engine<scalar>().backward_room(a), engine<scalar>().backward);
  if (past && !a.through_top) d_past.zero_();
  std::vector<Tensor> found;
  give(found, x, c.x, [&] { return d_x; });
  give(found, W, c.W, [&] { return summed_to(d_W, c.W).narrow(-1, 0, a.D) * std::sqrt(c.scale); });
  give(found, phase, c.phase, [&] { return summed_to(d_phase, *c.phase).narrow(-1, 0, a.m); });
  give(found, mask, c.key_mask, [&] { return at::zeros_like(*c.key_mask); });
  give(found, past, c.past, [&] { return d_past; });
  return found;
}

bool empty(const Arguments& c) { return c.x.numel() == 0 || c.W.numel() == 0; }

Results projected_features_cpu(const Tensor& x, const Tensor& W, const optional<Tensor>& phase, const optional<Tensor>& key_mask,
                               const optional<Tensor>& past, std::string_view map, std::string_view top, bool bare, bool detach, double scale,
                               double factor, double eps) {
  const Arguments c{x, W, phase, key_mask, past, map_of(map), top_of(top), bare, detach, scale, factor, eps};
  if (empty(c)) return projected_features_formula(x, W, phase, key_mask, past, map, top, bare, detach, scale, factor, eps);
  return x.scalar_type() == at::kDouble ? forward<double>(c) : forward<float>(c);
}

Gradients projected_features_backward_cpu(const Backward& call, Tensor x, Tensor W, optional<Tensor> phase, optional<Tensor> key_mask,
                                          optional<Tensor> past, const std::string& map, const std::string& top, bool bare, bool detach, double scale,
                                          double factor, double eps) {
  const Arguments c{std::move(x), std::move(W), std::move(phase), std::move(key_mask), std::move(past), map_of(map), top_of(top), bare, detach, scale,
                    factor,       eps};
  if (empty(c)) return std::nullopt;
  return c.x.scalar_type() == at::kDouble ? backward<double>(call, c) : backward<float>(call, c);
}

}  // namespace

FOVEATE_OP(projected_features,
           "_projected_features(Tensor x, Tensor projection, Tensor? phase, Tensor? key_mask, Tensor? past, str map, str top, bool bare, "
           "bool detach, float scale, float factor, float eps) -> (Tensor phi, Tensor top)",
           {.formula = &projected_features_formula,
            .meta = &projected_features_meta,
            .cpu = &projected_features_cpu,
            .cpu_backward = &projected_features_backward_cpu})

Projection projected_features(const Tensor& x, const Tensor& W, const ProjectedFeatures& o) {
  constexpr const char* op = "projected_features";
  const auto type = accumulation_type(x.scalar_type());
  TORCH_CHECK_VALUE(x.dim() == 4, op, ": x must be [B,H,N,D], got ", x.sym_sizes());
  TORCH_CHECK_VALUE(W.dim() == 2 || W.dim() == 3, op, ": projection must be [m,D] or [H,m,D], got ", W.sym_sizes());
  const Size B = extent(x, 0), H = extent(x, 1), m = extent(W, -2);
  if (W.dim() == 2) check_argument(op, "projection", "[m,D]", W, {m, extent(x, 3)}, type);
  else check_argument(op, "projection", "[H,m,D]", W, {H, m, extent(x, 3)}, type);
  TORCH_CHECK_VALUE(o.phase.has_value() == (o.map == Projected::cos_phase), op, ": phase is needed with cos_phase, and only then");
  if (o.phase) check_argument(op, "phase", "[m]", *o.phase, {m}, type);
  if (o.key_mask) check_argument(op, "key_mask", "[B,N]", *o.key_mask, {B, extent(x, 2)}, at::kBool);
  if (o.past) check_argument(op, "past", "[B,H]", *o.past, {B, H}, type);
  auto [phi, top] = primitive<decltype(projected_features_formula)>("foveate::_projected_features")
                        .call(x, W, o.phase, o.key_mask, o.past, names<Projected>[static_cast<std::size_t>(o.map)],
                              names<Top>[static_cast<std::size_t>(o.top)], o.bare, o.detach, o.scale, o.factor, o.eps);
  return {.phi = std::move(phi), .top = std::move(top)};
}

}  // namespace foveate::ops
