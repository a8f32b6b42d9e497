#include <foveate/position_lambda.h>

#include "kernels/dispatch.h"
#include "kernels/position_lambda.h"

#include <foveate/op.h>
#include <foveate/prepared.h>

#include <algorithm>

namespace foveate::ops {
namespace {

Tensor position_lambda_formula(const Tensor& q, const Tensor& v, const Tensor& weight, const optional<Tensor>& bias, int64_t padding) {
  const auto each = [&](int64_t value) { return std::vector<int64_t>(static_cast<std::size_t>(weight.dim() - 2), value); };
  const Tensor images = v.transpose(1, 2).flatten(0, 1);                                                             // [B V,U,*R]
  const Tensor lambdas = at::convolution(images, weight, bias, each(1), each(padding), each(1), false, each(0), 1);  // [B V,K,*S]
  return (q.unsqueeze(2) * lambdas.unflatten(0, {q.size(0), v.size(2)}).unsqueeze(1)).sum(3);
}

Tensor position_lambda_meta(const Tensor& q, const Tensor& v, const Tensor&, const optional<Tensor>&, int64_t) {
  auto shape = q.sym_sizes().vec();
  shape[2] = extent(v, 2);
  return q.new_empty_symint(shape);
}

template <class scalar> const kernels::PositionLambdaEngine<scalar>& engine() {
  if constexpr (std::is_same_v<scalar, double>) return *cpu_kernels().position_lambda_double;
  else return *cpu_kernels().position_lambda_float;
}

/// As the kernels take them: features last, filled up to whole vectors; rows of values between margins.
template <class scalar> struct Prepared : Alive {
  kernels::PositionLambda<scalar> a{};
  int64_t K;

  Prepared(const Tensor& q, const Tensor& v, const Tensor& weight, const optional<Tensor>& bias, int64_t padding) : Alive(q), K(q.size(2)) {
    const bool line = weight.dim() == 3;
    const auto along = [&](int64_t d, int64_t pad) {
      return kernels::Window{.queries = q.size(d), .values = v.size(d), .taps = weight.size(d - 1), .padding = pad};
    };
    a.down = line ? kernels::Window{.queries = 1, .values = 1, .taps = 1, .padding = 0} : along(3, padding);
    a.across = along(q.dim() - 1, padding);
    a.B = q.size(0);
    a.H = q.size(1);
    a.U = v.size(1);
    a.V = v.size(2);
    a.features = padded(K, engine<scalar>().vector);
    a.margin = engine<scalar>().margin;
    a.row_of_values = a.across.values + 2 * a.margin;
    a.row_of_lambdas = a.across.queries + 2 * a.margin;
    a.q = numbers<scalar>(filled(q.flatten(3).permute({0, 3, 1, 2})));
    a.values = numbers<scalar>(at::constant_pad_nd(v.to(options.dtype()).transpose(1, 2), {a.margin, a.margin}));
    a.weight = numbers<scalar>(filled(weight.flatten(2).permute({1, 2, 0})));
    a.bias = bias ? numbers<scalar>(filled(*bias)) : nullptr;
  }

  Tensor filled(const Tensor& x) const { return at::constant_pad_nd(x.to(options.dtype()), {0, a.features - K}); }
  template <class F> void with_scratch(int64_t tasks, const F& f) const { in_parallel<scalar>(a, 0, tasks, engine<scalar>().tile * a.features, f); }
  template <class F> void each(int64_t tasks, const F& f) const {
    at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) { f(a, begin, end); });
  }
};

template <class scalar> Tensor forward(const Tensor& q, const Tensor& v, const Tensor& weight, const optional<Tensor>& bias, int64_t padding) {
  Prepared<scalar> p(q, v, weight, bias, padding);
  const Tensor out = at::empty(position_lambda_meta(q, v, weight, bias, padding).sizes(), p.options);
  p.a.out = out.mutable_data_ptr<scalar>();
  p.with_scratch(p.a.B * p.a.V * p.a.down.queries, engine<scalar>().forward);
  return out.to(q.scalar_type());
}

bool empty(const Tensor& q, const Tensor& v) { return q.numel() == 0 || v.numel() == 0; }

Tensor position_lambda_cpu(const Tensor& q, const Tensor& v, const Tensor& weight, const optional<Tensor>& bias, int64_t padding) {
  if (empty(q, v)) return position_lambda_formula(q, v, weight, bias, padding).contiguous();
  return q.scalar_type() == at::kDouble ? forward<double>(q, v, weight, bias, padding) : forward<float>(q, v, weight, bias, padding);
}

/// As many images together as gradients of lambdas stay in a cache: those of values and taps read them again and again.
template <class scalar> int64_t images_together(const kernels::PositionLambda<scalar>& a) {
  constexpr int64_t numbers = int64_t{1} << 18;
  return std::clamp<int64_t>(numbers / (a.down.queries * a.row_of_lambdas * a.features), 1, a.B * a.V);
}

template <class scalar> std::vector<Tensor> backward(const Backward& call, const Tensor& q, const Tensor& v, const Tensor& weight,
                                                     const optional<Tensor>& bias, int64_t padding) {
  Prepared<scalar> p(q, v, weight, bias, padding);
  kernels::PositionLambda<scalar>& a = p.a;
  const auto& run = engine<scalar>();
  const Tensor given = call.gradients[0].to(p.options.dtype()).contiguous();  // [B,h,V,*S]
  a.d_out = given.template const_data_ptr<scalar>();
  Wanted wanted(call);
  const bool of_q = wanted(q), of_v = wanted(v), of_weight = wanted(weight), of_bias = wanted(bias);
  Tensor d_q, d_v, d_weight;
  if (of_q) {
    d_q = at::zeros({a.B, a.down.queries * a.across.queries, a.H, a.features}, p.options);
    a.d_q = d_q.template mutable_data_ptr<scalar>();
    p.with_scratch(a.B * a.down.queries, run.backward_q);
  }
  if (of_v || of_weight) {
    const int64_t together = images_together(a);
    a.d_lambdas = p.template room<scalar>({together, a.down.queries, a.row_of_lambdas, a.features});
    d_v = at::empty({a.B, a.V, a.U, v.numel() / (a.B * a.V * a.U)}, p.options);
    d_weight = at::zeros({a.U, a.down.taps * a.across.taps, a.features}, p.options);
    a.d_values = d_v.template mutable_data_ptr<scalar>();
    a.d_weight = d_weight.template mutable_data_ptr<scalar>();
    for (a.first = 0; a.first < a.B * a.V; a.first += together) {
      a.images = std::min<int64_t>(together, a.B * a.V - a.first);
      p.each(a.images * a.down.queries, run.backward_lambdas);
      if (of_v) p.each(a.images * a.U * a.down.values, run.backward_values);
      if (of_weight) p.each(a.U * a.down.taps, run.backward_weight);
    }
  }
  std::vector<Tensor> found;
  give(found, of_q, q, [&] { return d_q.narrow(3, 0, p.K).permute({0, 2, 3, 1}).reshape(q.sizes()); });
  give(found, of_v, v, [&] { return d_v.transpose(1, 2).reshape(v.sizes()); });
  give(found, of_weight, weight, [&] { return d_weight.narrow(2, 0, p.K).permute({2, 0, 1}).reshape(weight.sizes()); });
  give(found, of_bias, bias, [&] {  // lambda has the bias everywhere: sum over places of q and of the gradients of all values
    return at::matmul(q.to(p.options.dtype()).flatten(3), given.sum(2).flatten(2).unsqueeze(-1)).sum({0, 1}).squeeze(-1);
  });
  return found;
}

Gradients position_lambda_backward(const Backward& call, Tensor q, Tensor v, Tensor weight, optional<Tensor> bias, int64_t padding) {
  if (!call.gradients[0].defined() || empty(q, v)) return std::nullopt;
  return q.scalar_type() == at::kDouble ? backward<double>(call, q, v, weight, bias, padding) : backward<float>(call, q, v, weight, bias, padding);
}

}  // namespace

FOVEATE_OP(
    position_lambda, "_position_lambda(Tensor q, Tensor v, Tensor weight, Tensor? bias, int padding) -> Tensor",
    {.formula = &position_lambda_formula, .meta = &position_lambda_meta, .cpu = &position_lambda_cpu, .cpu_backward = &position_lambda_backward})

Tensor position_lambda(const Tensor& q, const Tensor& v, const Tensor& weight, const optional<Tensor>& bias, int64_t padding) {
  const int64_t taps = weight.dim() - 2;
  TORCH_CHECK_VALUE((taps == 1 || taps == 2) && q.dim() == taps + 3 && v.dim() == taps + 3,
                    "position_lambda: q must be [B,h,K,*S], v [B,U,V,*R] and weight [K,U,*taps] of one or two dimensions, got ", q.sym_sizes(), ", ",
                    v.sym_sizes(), " and ", weight.sym_sizes());
  TORCH_CHECK_VALUE(extent(q, 2) == extent(weight, 0) && extent(v, 1) == extent(weight, 1) && extent(q, 0) == extent(v, 0),
                    "position_lambda: q, v and weight must agree on B, K and U, got ", q.sym_sizes(), ", ", v.sym_sizes(), " and ",
                    weight.sym_sizes());
  for (int64_t d = 0; d < taps; ++d) {
    TORCH_CHECK_VALUE(extent(q, 3 + d) == extent(v, 3 + d) + 2 * padding + 1 - extent(weight, 2 + d), "position_lambda: q must have ",
                      "the positions that the convolution of v leaves, got ", q.sym_sizes(), " of ", v.sym_sizes());
  }
  return primitive<decltype(position_lambda_formula)>("foveate::_position_lambda").call(q, v, weight, bias, padding);
}

}  // namespace foveate::ops
