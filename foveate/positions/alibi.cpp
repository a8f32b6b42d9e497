#include <ATen/OpMathType.h>
#include <foveate/alibi.h>
#include <torch/library.h>

#include <bit>

namespace foveate {

Tensor positions::alibi_slopes(int64_t heads, double bias_max, const at::TensorOptions& options) {
  const auto power = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(heads)));
  const double rate = -bias_max / static_cast<double>(power);  // log2 of the ratio of neighbours
  const Tensor whole = at::arange(1, power + 1, options), between = at::arange(heads - power, options) + 0.5;
  return at::cat({whole, between}).mul(rate).exp2();
}

ops::ScoreBias positions::alibi(const Tensor& q, double bias_max) {
  const int64_t heads = extent(q, 1).guard_int(__FILE__, __LINE__);
  return {.slopes = alibi_slopes(heads, bias_max, q.options().dtype(at::toOpMathType(q.scalar_type())))};
}

void AlibiAttention::check(const Options& o) { TORCH_CHECK_VALUE(o.bias_max > 0, "alibi_attention: bias_max must be positive, got ", o.bias_max); }

Tensor AlibiAttention::forward(const Options& o, const Parameters&, const Inputs& in) {
  auto position = positions::alibi(in.q, o.bias_max);
  if (!o.symmetric && !o.causal) {  // m_h j: of a query's keys only the differences matter
    const Tensor column = *position.slopes * at::arange(extent(in.k, 2), position.slopes->options()).unsqueeze(1);  // [M,H]
    return ops::attention(in.q, in.k, in.v, {.key_mask = in.key_mask, .bias = column.t().unsqueeze(1).to(in.q.scalar_type()), .scale = o.scale}).out;
  }
  return ops::attention(in.q, in.k, in.v, {.key_mask = in.key_mask, .causal = o.causal, .scale = o.scale, .position = position}).out;
}

std::pair<Tensor, AlibiAttention::State> AlibiAttention::step(const Options& o, const Parameters& p, const Inputs& in, State&& past) {
  return layers::step_with_cache<AlibiAttention>("alibi_attention", o, p, in, past);
}

FOVEATE_MECHANISM(AlibiAttention)

TORCH_LIBRARY_FRAGMENT(foveate, m) {
  m.def("alibi_slopes(int heads, *, float bias_max=8.0, ScalarType? dtype=None, Device? device=None) -> Tensor",
        [](int64_t heads, double bias_max, optional<at::ScalarType> dtype, optional<at::Device> device) {
          TORCH_CHECK_VALUE(heads > 0, "alibi_slopes: heads must be positive, got ", heads);
          TORCH_CHECK_VALUE(bias_max > 0, "alibi_slopes: bias_max must be positive, got ", bias_max);
          const auto type = dtype.value_or(at::typeMetaToScalarType(at::get_default_dtype()));
          return positions::alibi_slopes(heads, bias_max, at::TensorOptions().dtype(type).device(device));
        });
}

}  // namespace foveate
