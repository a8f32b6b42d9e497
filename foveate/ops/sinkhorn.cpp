#include <foveate/attention_formula.h>
#include <foveate/op.h>
#include <foveate/sinkhorn.h>

namespace foveate::ops {
namespace {

Tensor sinkhorn_formula(const Tensor& logits, int64_t iterations) {
  Tensor t = logits.to(accumulation_type(logits.scalar_type()));
  if (t.numel() == 0) return t.exp().to(logits.scalar_type());
  for (int64_t it = 0; it < iterations; ++it) {
    t = t - t.logsumexp(-1, true);
    t = t - t.logsumexp(-2, true);
  }
  return t.exp().to(logits.scalar_type()).contiguous();
}

Tensor sinkhorn_meta(const Tensor& logits, int64_t) { return logits.new_empty_symint(logits.sym_sizes()); }

}  // namespace

FOVEATE_OP(sinkhorn, "_sinkhorn(Tensor logits, int iterations) -> Tensor", {.formula = &sinkhorn_formula, .meta = &sinkhorn_meta})

Tensor sinkhorn(const Tensor& logits, int64_t iterations) {
  TORCH_CHECK_VALUE(logits.dim() >= 2, "sinkhorn: logits must be [...,R,C], got ", logits.sym_sizes());
  TORCH_CHECK_VALUE(iterations >= 0, "sinkhorn: iterations must not be negative, got ", iterations);
  return primitive<decltype(sinkhorn_formula)>("foveate::_sinkhorn").call(logits, iterations);
}

}  // namespace foveate::ops
