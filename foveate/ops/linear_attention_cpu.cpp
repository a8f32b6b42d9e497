#include <foveate/linear_attention_cpu.h>

#include "kernels/linear.h"

#include <foveate/delta_attention_formula.h>
#include <foveate/linear_attention.h>
#include <foveate/linear_attention_formula.h>
#include <foveate/prepared.h>

namespace foveate::ops {
namespace {

template <class scalar> const kernels::LinearEngine<scalar>& engine() {
  if constexpr (std::is_same_v<scalar, double>) return *cpu_kernels().linear_double;
  else return *cpu_kernels().linear_float;
}

struct Arguments {
  Tensor q, k, v;
  optional<Tensor> key_mask, log_decay, beta, S, z;
  int64_t offset;
  std::string_view normalizer;
  double eps;
};

template <class scalar> kernels::Linear<scalar> prepared(const Arguments& c, Alive& alive) {
  const auto divisor = registry::find_choice("linear_attention: normalizer", c.normalizer, names<Normalizer>.data(), names<Normalizer>.size());
  static_assert(static_cast<int>(kernels::Divisor::guard) == static_cast<int>(Normalizer::guard));
  return {.B = c.q.size(0),
          .H = c.q.size(1),
          .Hk = c.k.size(1),
          .N = c.q.size(2),
          .M = c.k.size(2),
          .F = c.k.size(3),
          .Dv = c.v.size(3),
          .q = alive.kept_rows(c.q),
          .k = alive.kept_rows(c.k),
          .v = alive.kept_rows(c.v),
          .offset = c.offset,
          .key_mask = alive.bytes(c.key_mask),
          .log_decay = alive.numbers<scalar>(c.log_decay),
          .beta = alive.numbers<scalar>(c.beta),
          .S = alive.numbers<scalar>(c.S),
          .z = alive.numbers<scalar>(c.z),
          .divisor = static_cast<kernels::Divisor>(divisor),
          .eps = static_cast<scalar>(c.eps)};
}

template <class scalar> std::tuple<Tensor, Tensor, Tensor> forward(const Arguments& c) {
  Alive alive(c.q);
  auto a = prepared<scalar>(c, alive);
  const Tensor out = at::empty({a.B, a.H, a.N, a.Dv}, alive.options), S = at::empty({a.B, a.Hk, a.F, a.Dv}, alive.options),
               z = c.beta ? Tensor() : at::empty({a.B, a.Hk, a.F}, alive.options);
  a.out = out.mutable_data_ptr<scalar>();
  a.S_after = S.mutable_data_ptr<scalar>();
  a.z_after = c.beta ? nullptr : z.mutable_data_ptr<scalar>();
  const auto& run = engine<scalar>();
  alive.in_parallel<scalar>(a, 0, a.B * a.Hk, run.forward_room(a), run.forward);
  return {out.to(c.q.scalar_type()), S, z};
}

/// Gradients of the arguments; undefined where one is absent.
struct Found {
  Tensor q, k, v, log_decay, beta, S, z;
};

template <class scalar> Found backward(const Backward& call, const Arguments& c, bool wants_decay) {
  Alive alive(c.q);
  auto a = prepared<scalar>(c, alive);
  const auto& run = engine<scalar>();
  const auto zeros_like = [&](const Tensor& t) { return at::zeros(t.sizes(), alive.options); };
  const Tensor &out = call.results[0], &S = call.results[1];
  a.out = const_cast<scalar*>(alive.numbers<scalar>(out));    // NOLINT: read only in the backward
  a.S_after = const_cast<scalar*>(alive.numbers<scalar>(S));  // NOLINT
  const auto given = [](const Tensor& t) { return t.defined() ? optional(t) : std::nullopt; };
  a.d_out = alive.kept_rows(call.gradients[0].defined() ? call.gradients[0] : zeros_like(out));
  a.d_S_after = alive.numbers<scalar>(given(call.gradients[1]));
  const auto room_like = [&](const Tensor& t) { return at::empty(t.sizes(), alive.options); };
  const Found found{.q = room_like(c.q),
                    .k = room_like(c.k),
                    .v = room_like(c.v),
                    .log_decay = wants_decay ? room_like(*c.log_decay) : Tensor(),
                    .beta = c.beta ? room_like(*c.beta) : Tensor(),
                    .S = room_like(S),
                    .z = c.beta ? Tensor() : room_like(call.results[2])};
  if (!c.beta) {
    a.z_after = const_cast<scalar*>(alive.numbers<scalar>(call.results[2]));  // NOLINT
    a.d_z_after = alive.numbers<scalar>(given(call.gradients[2]));
  }
  const auto numbers = [](const Tensor& t) { return t.defined() ? t.mutable_data_ptr<scalar>() : nullptr; };
  a.d_q = numbers(found.q);
  a.d_k = numbers(found.k);
  a.d_v = numbers(found.v);
  a.d_S = numbers(found.S);
  a.d_z = numbers(found.z);
  a.d_log_decay = numbers(found.log_decay);
  a.d_beta = numbers(found.beta);
  a.d_sums = alive.room<scalar>({a.B, a.H, a.N, padded(c.beta ? a.Dv : a.Dv + 1, run.vector)});
  alive.in_parallel<scalar>(a, 0, a.B * a.Hk, run.backward_room(a), run.backward);
  return found;
}

/// Where keys are walked in order.
std::vector<Tensor> ordered_backward(const Backward& call, const Arguments& c) {
  Wanted before(call);
  for (const auto& t : {optional(c.q), optional(c.k), optional(c.v), c.beta, c.key_mask}) before(t);
  const bool wants_decay = before(c.log_decay);
  const auto d = c.q.scalar_type() == at::kDouble ? backward<double>(call, c, wants_decay) : backward<float>(call, c, wants_decay);
  Wanted wanted(call);
  std::vector<Tensor> found;
  const auto add = [&](const optional<Tensor>& argument, const Tensor& gradient) {
    give(found, wanted(argument), argument, [&] { return gradient; });
  };
  add(c.q, d.q);
  add(c.k, d.k);
  add(c.v, d.v);
  if (c.beta) add(c.beta, d.beta);
  add(c.key_mask, {});
  add(c.log_decay, d.log_decay);
  add(c.S, d.S);
  add(c.z, d.z);
  return found;
}

/// Without causality: products of matrices. Hidden keys, and what they hold, are 0.
std::vector<Tensor> whole_backward(const Backward& call, const Arguments& c) {
  const auto type = accumulation_type(c.q.scalar_type());
  const auto normalizer = static_cast<Normalizer>(
      registry::find_choice("linear_attention: normalizer", c.normalizer, names<Normalizer>.data(), names<Normalizer>.size()));
  const int64_t Hk = c.k.size(1);
  const auto grouped = [&](const Tensor& x) { return x.to(type).unflatten(1, {Hk, -1}).flatten(2, 3); };  // [B,Hk,G*N,*]
  const auto shown = [&](const Tensor& x) {
    return c.key_mask ? x.to(type).masked_fill(c.key_mask->logical_not().unsqueeze(1).unsqueeze(3), 0) : x.to(type);
  };
  const Tensor q = grouped(c.q), k = shown(c.k), v = shown(c.v), out = grouped(call.results[0]);
  const Tensor S = call.results[1].to(type), z = call.results[2].to(type).unsqueeze(-1);  // after all keys: what every query sees
  const Tensor d_out = call.gradients[0].defined() ? grouped(call.gradients[0]) : at::zeros_like(out);
  // out = q S / d(q z): the gradients of q S, and of q z.
  const auto [divided, slope] = divisor_and_slope(at::matmul(q, z), normalizer, c.eps);  // [B,Hk,G*N,1]
  const Tensor d_n = normalizer == Normalizer::none ? d_out : d_out / divided;
  const Tensor d_z = normalizer == Normalizer::none ? Tensor() : (d_n * out).sum(-1, true).neg_() * slope;
  Tensor d_q = at::matmul(d_n, S.transpose(-1, -2)), d_S = at::matmul(q.transpose(-1, -2), d_n), d_keys = at::zeros_like(z);
  if (d_z.defined()) {
    d_q = d_q + d_z * z.transpose(-1, -2);
    d_keys = at::matmul(q.transpose(-1, -2), d_z);
  }
  if (call.gradients[1].defined()) d_S = d_S + call.gradients[1];
  if (call.gradients[2].defined()) d_keys = d_keys + call.gradients[2].unsqueeze(-1);
  Wanted wanted(call);
  std::vector<Tensor> found;
  const auto add = [&](const optional<Tensor>& argument, const auto& gradient) { give(found, wanted(argument), argument, gradient); };
  add(c.q, [&] { return d_q.unflatten(2, {c.q.size(1) / Hk, -1}).flatten(1, 2); });
  add(c.k, [&] { return shown(at::matmul(v, d_S.transpose(-1, -2)) + d_keys.transpose(-1, -2)); });
  add(c.v, [&] { return shown(at::matmul(k, d_S)); });
  add(c.key_mask, [] { return Tensor(); });
  add(c.S, [&] { return d_S; });
  add(c.z, [&] { return d_keys.squeeze(-1); });
  return found;
}

/// The delta rule writes in order in any case: without `causal` the first query stands behind the last key.
Arguments delta_arguments(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta, const optional<Tensor>& key_mask,
                          const optional<Tensor>& state, const Size& offset, bool causal) {
  return {.q = q,
          .k = k,
          .v = v,
          .key_mask = key_mask,
          .log_decay = {},
          .beta = beta,
          .S = state,
          .z = {},
          .offset = causal ? offset.expect_int() : k.size(2),
          .normalizer = "none",
          .eps = 0};
}

bool empty(const Arguments& c) { return c.q.numel() == 0 || c.k.numel() == 0 || c.v.numel() == 0; }

}  // namespace

std::tuple<Tensor, Tensor, Tensor> linear_attention_cpu(const Tensor& q, const Tensor& k, const Tensor& v, const optional<Tensor>& key_mask,
                                                        const optional<Tensor>& log_decay, const optional<Tensor>& S, const optional<Tensor>& z,
                                                        Size offset, bool causal, std::string_view normalizer, double eps) {
  const Arguments c{.q = q,
                    .k = k,
                    .v = v,
                    .key_mask = key_mask,
                    .log_decay = log_decay,
                    .beta = {},
                    .S = S,
                    .z = z,
                    .offset = offset.expect_int(),
                    .normalizer = normalizer,
                    .eps = eps};
  if (!causal || empty(c)) return linear_attention_formula(q, k, v, key_mask, log_decay, S, z, offset, causal, normalizer, eps);
  return q.scalar_type() == at::kDouble ? forward<double>(c) : forward<float>(c);
}

Gradients linear_attention_backward_cpu(const Backward& call, Tensor q, Tensor k, Tensor v, optional<Tensor> key_mask, optional<Tensor> log_decay,
                                        optional<Tensor> S, optional<Tensor> z, Size offset, bool causal, const std::string& normalizer, double eps) {
  const Arguments c{.q = std::move(q),
                    .k = std::move(k),
                    .v = std::move(v),
                    .key_mask = std::move(key_mask),
                    .log_decay = std::move(log_decay),
                    .beta = {},
                    .S = std::move(S),
                    .z = std::move(z),
                    .offset = offset.expect_int(),
                    .normalizer = normalizer,
                    .eps = eps};
  if (empty(c)) return std::nullopt;
  return causal ? ordered_backward(call, c) : whole_backward(call, c);
}

std::tuple<Tensor, Tensor> delta_attention_cpu(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                                               const optional<Tensor>& key_mask, const optional<Tensor>& state, Size offset, bool causal) {
  const auto c = delta_arguments(q, k, v, beta, key_mask, state, offset, causal);
  if (empty(c)) return delta_attention_formula(q, k, v, beta, key_mask, state, offset, causal);
  auto [out, S, z] = q.scalar_type() == at::kDouble ? forward<double>(c) : forward<float>(c);
  return {std::move(out), std::move(S)};
}

Gradients delta_attention_backward_cpu(const Backward& call, Tensor q, Tensor k, Tensor v, Tensor beta, optional<Tensor> key_mask,
                                       optional<Tensor> state, Size offset, bool causal) {
  const auto c = delta_arguments(q, k, v, beta, key_mask, state, offset, causal);
  return empty(c) ? Gradients() : ordered_backward(call, c);
}

}  // namespace foveate::ops
