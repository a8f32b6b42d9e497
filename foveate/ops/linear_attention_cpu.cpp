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

template <class scalar> const kernels::WholeEngine<scalar>& whole_engine() {
  if constexpr (std::is_same_v<scalar, double>) return *cpu_kernels().linear_whole_double;
  else return *cpu_kernels().linear_whole_float;
}

struct Arguments {
  Tensor q, k, v;
  optional<Tensor> key_mask, log_decay, beta, S, z;
  int64_t offset;
  std::string_view normalizer;
  double eps;
  bool ordered;  // whether a query sees the keys up to its place, not all of them
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

/// Numbers of a tensor that is written, or of one that is only read; null where there is none.
template <class scalar> scalar* to_write(const Tensor& t) { return t.defined() ? t.mutable_data_ptr<scalar>() : nullptr; }
template <class scalar> scalar* to_read(const Tensor& t, Alive& alive) {
  return t.defined() ? const_cast<scalar*>(alive.numbers<scalar>(t)) : nullptr;  // NOLINT: the backward only reads what the forward wrote
}

int64_t parts_of(int64_t rows) { return kernels::tiles_of(rows, kernels::part_rows); }

/// Keys in order, the queries beside them.
template <class scalar> void run_forward(const kernels::Linear<scalar>& a, const Alive& alive) {
  const auto& run = engine<scalar>();
  alive.in_parallel<scalar>(a, 0, a.B * a.Hk, run.forward_room(a), run.forward);
}

template <class scalar> void run_backward(kernels::Linear<scalar>& a, Alive& alive) {
  const auto& run = engine<scalar>();
  if (!a.beta) {
    a.shares = alive.room<scalar>({a.B, a.H, a.N});
    a.d_z_of = alive.room<scalar>({a.B, a.H, a.N});
  }
  alive.in_parallel<scalar>(a, 0, a.B * a.Hk, run.backward_room(a), run.backward);
}

/// Without an order: `summed` rows of each head part by part, the parts together, and what reads the sums.
template <class scalar> void run_whole(kernels::Linear<scalar>& a, Alive& alive, int64_t summed, int64_t reading, const auto& sum, const auto& join,
                                       const auto& read) {
  const int64_t heads = a.B * a.Hk, room = whole_engine<scalar>().room(a);
  a.parts = alive.room<scalar>({heads, parts_of(summed), whole_engine<scalar>().sums(a)});
  alive.in_parallel<scalar>(a, 0, heads * parts_of(summed), room, sum);
  at::parallel_for(0, heads, 1, [&](int64_t begin, int64_t end) { join(a, begin, end); });
  alive.in_parallel<scalar>(a, 0, heads * parts_of(reading), room, read);
}

template <class scalar> void run_whole_forward(kernels::Linear<scalar>& a, Alive& alive) {
  const auto& run = whole_engine<scalar>();
  run_whole(a, alive, a.M, a.N, run.sum_keys, run.join_keys, run.read);
}

template <class scalar> void run_whole_backward(kernels::Linear<scalar>& a, Alive& alive) {
  const auto& run = whole_engine<scalar>();
  run_whole(a, alive, a.N, a.M, run.sum_queries, run.join_queries, run.give_to_keys);
}

template <class scalar> std::tuple<Tensor, Tensor, Tensor> forward(const Arguments& c) {
  Alive alive(c.q);
  auto a = prepared<scalar>(c, alive);
  const Tensor out = room_for({a.B, a.H, a.N, a.Dv}, alive.options), S = room_for({a.B, a.Hk, a.F, a.Dv}, alive.options),
               z = c.beta ? Tensor() : room_for({a.B, a.Hk, a.F}, alive.options);
  a.out = to_write<scalar>(out);
  a.S_after = to_write<scalar>(S);
  a.z_after = to_write<scalar>(z);
  if (c.ordered) run_forward(a, alive);
  else run_whole_forward(a, alive);
  return {out.to(c.q.scalar_type()), S, z};
}

/// Gradients of the arguments; undefined where one is absent.
struct Found {
  Tensor q, k, v, log_decay, beta, S, z;
};

template <class scalar> Found gradients(const Backward& call, const Arguments& c, bool wants_decay) {
  Alive alive(c.q);
  auto a = prepared<scalar>(c, alive);
  const Tensor &out = call.results[0], &S = call.results[1];
  const auto room_like = [&](const Tensor& t) { return room_for(t.sizes(), alive.options); };
  const Found found{.q = room_like(c.q),
                    .k = room_like(c.k),
                    .v = room_like(c.v),
                    .log_decay = wants_decay ? room_like(*c.log_decay) : Tensor(),
                    .beta = c.beta ? room_like(*c.beta) : Tensor(),
                    .S = room_like(S),
                    .z = c.beta ? Tensor() : room_like(call.results[2])};
  a.out = to_read<scalar>(out, alive);
  a.S_after = to_read<scalar>(S, alive);
  a.d_out = alive.kept_rows(call.gradients[0].defined() ? call.gradients[0] : at::zeros(out.sizes(), alive.options));
  a.d_S_after = to_read<scalar>(call.gradients[1], alive);
  if (!c.beta) {
    a.z_after = to_read<scalar>(call.results[2], alive);
    a.d_z_after = to_read<scalar>(call.gradients[2], alive);
  }
  a.d_q = to_write<scalar>(found.q);
  a.d_k = to_write<scalar>(found.k);
  a.d_v = to_write<scalar>(found.v);
  a.d_S = to_write<scalar>(found.S);
  a.d_z = to_write<scalar>(found.z);
  a.d_log_decay = to_write<scalar>(found.log_decay);
  a.d_beta = to_write<scalar>(found.beta);
  if (c.ordered) run_backward(a, alive);
  else run_whole_backward(a, alive);
  return found;
}

std::vector<Tensor> backward(const Backward& call, const Arguments& c) {
  Wanted before(call);
  for (const auto& t : {optional(c.q), optional(c.k), optional(c.v), c.beta, c.key_mask}) before(t);
  const bool wants_decay = before(c.log_decay);
  const auto d = c.q.scalar_type() == at::kDouble ? gradients<double>(call, c, wants_decay) : gradients<float>(call, c, wants_decay);
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
          .eps = 0,
          .ordered = true};
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
                    .eps = eps,
                    .ordered = causal};
  if (empty(c)) return linear_attention_formula(q, k, v, key_mask, log_decay, S, z, offset, causal, normalizer, eps);
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
                    .eps = eps,
                    .ordered = causal};
  if (empty(c)) return std::nullopt;
  return backward(call, c);
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
  return empty(c) ? Gradients() : backward(call, c);
}

}  // namespace foveate::ops
