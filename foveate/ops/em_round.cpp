#include <foveate/em_round.h>

#include "kernels/dispatch.h"
#include "kernels/em_round.h"

#include <foveate/op.h>
#include <foveate/prepared.h>

namespace foveate::ops {
namespace {

using Result = std::tuple<Tensor, Tensor, Tensor>;

Result em_round_formula(const Tensor& f, const Tensor& bases, const optional<Tensor>& mask, bool keep_z) {
  Tensor z = at::matmul(f.transpose(1, 2), bases).softmax(-1);
  if (mask) z = z * mask->to(f.scalar_type()).unsqueeze(-1);
  return {at::matmul(f, z), z.sum(1, true), (keep_z ? z : z.narrow(1, 0, 0)).contiguous()};
}

Result em_round_meta(const Tensor& f, const Tensor& bases, const optional<Tensor>&, bool keep_z) {
  const Size B = extent(f, 0), K = extent(bases, 2);
  return {f.new_empty_symint({B, extent(f, 1), K}), f.new_empty_symint({B, 1, K}), f.new_empty_symint({B, keep_z ? extent(f, 2) : Size(0), K})};
}

template <class scalar> const kernels::EmRoundEngine<scalar>& engine() {
  if constexpr (std::is_same_v<scalar, double>) return *cpu_kernels().em_round_double;
  else return *cpu_kernels().em_round_float;
}

template <class scalar> Result run(const Tensor& f, const Tensor& bases, const optional<Tensor>& mask, bool keep_z) {
  constexpr int64_t tokens_a_part = 512, most_parts = 8;
  const int64_t B = f.size(0), C = f.size(1), N = f.size(2), K = bases.size(2), width = padded(K, engine<scalar>().vector);
  const int64_t parts = std::clamp<int64_t>(N / tokens_a_part, 1, most_parts);
  Alive alive(f);
  const Tensor z = at::empty({B, keep_z ? N : 0, K}, f.options());
  const Tensor sums = at::zeros({parts, B, C, width}, f.options()), mass = at::zeros({parts, B, width}, f.options());
  const kernels::EmRound<scalar> a{.f = alive.numbers<scalar>(f),
                                   .bases = alive.numbers<scalar>(at::constant_pad_nd(bases, {0, width - K})),
                                   .mask = alive.bytes(mask),
                                   .z = keep_z ? z.mutable_data_ptr<scalar>() : nullptr,
                                   .sums = sums.mutable_data_ptr<scalar>(),
                                   .mass = mass.mutable_data_ptr<scalar>(),
                                   .B = B,
                                   .C = C,
                                   .N = N,
                                   .K = K,
                                   .padded = width,
                                   .parts = parts};
  alive.in_parallel<scalar>(a, 0, B * parts, engine<scalar>().room(a), engine<scalar>().run);
  return {sums.sum(0).narrow(2, 0, K).contiguous(), mass.sum(0).narrow(1, 0, K).unsqueeze(1).contiguous(), z};
}

Result em_round_cpu(const Tensor& f, const Tensor& bases, const optional<Tensor>& mask, bool keep_z) {
  if (f.numel() == 0 || bases.numel() == 0) return em_round_formula(f, bases, mask, keep_z);
  return f.scalar_type() == at::kDouble ? run<double>(f, bases, mask, keep_z) : run<float>(f, bases, mask, keep_z);
}

}  // namespace

FOVEATE_OP(em_round, "_em_round(Tensor f, Tensor bases, Tensor? mask, bool keep_z) -> (Tensor sums, Tensor mass, Tensor z)",
           {.formula = &em_round_formula, .meta = &em_round_meta, .cpu = &em_round_cpu})

EmSums em_round(const Tensor& f, const Tensor& bases, const optional<Tensor>& mask, bool keep_z) {
  TORCH_CHECK_TYPE((f.scalar_type() == at::kFloat || f.scalar_type() == at::kDouble) && bases.scalar_type() == f.scalar_type(),
                   "em_round: f and bases must be float32 or float64, both alike, got ", f.scalar_type(), " and ", bases.scalar_type());
  TORCH_CHECK_VALUE(f.dim() == 3 && bases.dim() == 3 && extent(f, 0) == extent(bases, 0) && extent(f, 1) == extent(bases, 1),
                    "em_round: f must be [B,C,N] and bases [B,C,K], got ", f.sym_sizes(), " and ", bases.sym_sizes());
  TORCH_CHECK_VALUE(!mask || (mask->dim() == 2 && extent(*mask, 0) == extent(f, 0) && extent(*mask, 1) == extent(f, 2)),
                    "em_round: mask must be [B,N] beside f ", f.sym_sizes());
  const auto [sums, mass, z] = primitive<decltype(em_round_formula)>("foveate::_em_round").call(f, bases, mask, keep_z);
  return {.sums = sums, .mass = mass, .z = z};
}

}  // namespace foveate::ops
