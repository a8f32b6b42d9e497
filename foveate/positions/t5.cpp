#include <foveate/init.h>
#include <foveate/t5.h>
#include <torch/library.h>

namespace foveate {
namespace {

void check_buckets(const char* form, const positions::T5Buckets& o) {
  const int64_t least = o.bidirectional ? 4 : 2;
  TORCH_CHECK_VALUE(o.buckets >= least, form, ": buckets must be ", least, " or more, got ", o.buckets);
  const int64_t exact = (o.bidirectional ? o.buckets / 2 : o.buckets) / 2;
  TORCH_CHECK_VALUE(o.max_distance > exact, form, ": max_distance must exceed the ", exact, " distances with a bucket of their own, got ",
                    o.max_distance);
}

}  // namespace

Tensor positions::t5_buckets(const Tensor& relative, const T5Buckets& o) {
  const int64_t n = o.bidirectional ? o.buckets / 2 : o.buckets;  // buckets of one direction
  const int64_t exact = n / 2;
  const Tensor distance = o.bidirectional ? relative.abs() : relative.neg().clamp_min(0);
  // Logarithmic buckets, in float32 and truncated: weights were trained with these.
  const double range = std::log(static_cast<double>(o.max_distance) / static_cast<double>(exact));
  const Tensor log_ratio = (distance.clamp_min(1).to(at::kFloat) / exact).log();
  const Tensor far = exact + (log_ratio / range * (n - exact)).to(relative.scalar_type());
  const Tensor bucket = at::where(distance < exact, distance, far.clamp_max(n - 1));
  return o.bidirectional ? bucket + (relative > 0).to(relative.scalar_type()) * n : bucket;
}

ops::ScoreBias positions::t5(const Tensor& bias_table, const T5Buckets& o) {
  const Tensor relative = at::arange(-o.max_distance, o.max_distance + 1, bias_table.options().dtype(at::kLong));
  return {.table = bias_table.index_select(0, t5_buckets(relative, o)).t(), .origin = o.max_distance};  // [H,2 max_distance + 1]
}

void T5Attention::check(const Options& o) {
  TORCH_CHECK_VALUE(o.num_heads > 0, "t5_attention: num_heads must be positive, got ", o.num_heads);
  TORCH_CHECK_VALUE(o.model_dim > 0, "t5_attention: model_dim must be positive, got ", o.model_dim);
  check_buckets("t5_attention", {.bidirectional = o.bidirectional, .buckets = o.buckets, .max_distance = o.max_distance});
}

T5Attention::Parameters T5Attention::init(const Options& o) {
  return {.bias_table = layers::normal({o.buckets, o.num_heads}, 1 / std::sqrt(static_cast<double>(o.model_dim)))};
}

Tensor T5Attention::forward(const Options& o, const Parameters& p, const Inputs& in) {
  TORCH_CHECK_VALUE(extent(p.bias_table, 0) == o.buckets, "t5_attention: bias_table must be [buckets,H] with buckets = ", o.buckets, ", got ",
                    p.bias_table.sym_sizes());
  const auto position = positions::t5(p.bias_table, {.bidirectional = o.bidirectional, .buckets = o.buckets, .max_distance = o.max_distance});
  return ops::attention(in.q, in.k, in.v, {.key_mask = in.key_mask, .causal = o.causal, .scale = o.scale, .position = position}).out;
}

std::pair<Tensor, T5Attention::State> T5Attention::step(const Options& o, const Parameters& p, const Inputs& in, State&& past) {
  return layers::step_with_cache<T5Attention>("t5_attention", o, p, in, past);
}

FOVEATE_MECHANISM(T5Attention)

TORCH_LIBRARY_FRAGMENT(foveate, m) {
  m.def("t5_buckets(Tensor relative, *, bool bidirectional=True, int buckets=32, int max_distance=128) -> Tensor",
        [](const Tensor& relative, bool bidirectional, int64_t buckets, int64_t max_distance) {
          const positions::T5Buckets o{.bidirectional = bidirectional, .buckets = buckets, .max_distance = max_distance};
          check_buckets("t5_buckets", o);
          TORCH_CHECK_TYPE(at::isIntegralType(relative.scalar_type(), /*includeBool=*/false), "t5_buckets: relative must be an integer tensor, got ",
                           relative.scalar_type());
          return positions::t5_buckets(relative, o);
        });
}

}  // namespace foveate
