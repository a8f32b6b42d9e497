#include <foveate/attention_formula.h>
#include <foveate/context_pool.h>
#include <foveate/op.h>

namespace foveate::ops {
namespace {

using Result = std::tuple<Tensor, Tensor>;  // c [B,C], and the weights [B,1,N]

Result context_pool_formula(const Tensor& x_given, const Tensor& w, const optional<Tensor>& bias, const optional<Tensor>& seen) {
  const auto type = accumulation_type(x_given.scalar_type());
  const Tensor x = x_given.to(type);
  Tensor scores = at::matmul(w.to(type), x);  // [B,1,N]
  if (bias) scores = scores + bias->to(type);
  if (seen) scores = scores.masked_fill(seen->logical_not().unsqueeze(1), std::numeric_limits<float>::lowest());
  Tensor weights = scores.softmax(-1);
  if (seen) weights = weights * seen->unsqueeze(1).to(type);  // where all is hidden, nothing is left
  return {at::bmm(x, weights.transpose(1, 2)).squeeze(2).to(x_given.scalar_type()), weights};
}

Result context_pool_meta(const Tensor& x, const Tensor&, const optional<Tensor>&, const optional<Tensor>&) {
  return {x.new_empty_symint({extent(x, 0), extent(x, 1)}),
          x.new_empty_symint({extent(x, 0), 1, extent(x, 2)}, x.options().dtype(accumulation_type(x.scalar_type())))};
}

Gradients context_pool_backward(const Backward& call, Tensor x_given, Tensor w_given, optional<Tensor> bias, optional<Tensor>) {
  if (!call.gradients[0].defined() || call.gradients[1].defined() || x_given.numel() == 0) return std::nullopt;
  const auto type = accumulation_type(x_given.scalar_type());
  const Tensor x = x_given.to(type), w = w_given.to(type), c = call.results[0].to(type), a = call.results[1];
  const Tensor g = call.gradients[0].to(type);  // [B,C]
  // The mean of d_a under the weights is g.c: no second reading of the map.
  const Tensor d_score = a * (at::bmm(g.unsqueeze(1), x) - (g * c).sum(1, true).unsqueeze(2));  // [B,1,N]
  Wanted wanted(call);
  std::vector<Tensor> found;
  give(found, wanted(x_given), x_given, [&] { return at::bmm(at::stack({g, w.expand_as(g)}, 2), at::cat({a, d_score}, 1)); });  // g a + w d_score
  give(found, wanted(w_given), w_given, [&] { return at::bmm(d_score, x.transpose(1, 2)).sum(0); });
  give(found, wanted(bias), bias, [&] { return d_score.sum().view({1}); });
  return found;
}

}  // namespace

FOVEATE_OP(context_pool, "_context_pool(Tensor x, Tensor w, Tensor? bias, Tensor? seen) -> (Tensor c, Tensor weights)",
           {.formula = &context_pool_formula,
            .meta = &context_pool_meta,
            .cpu = &context_pool_formula,
            .cpu_backward = &context_pool_backward,
            .any_device = true})

Tensor context_pool(const Tensor& x, const Tensor& w, const optional<Tensor>& bias, const optional<Tensor>& seen) {
  TORCH_CHECK_VALUE(x.dim() == 3 && w.dim() == 2 && extent(w, 1) == extent(x, 1), "context_pool: x must be [B,C,N] and w [1,C], got ", x.sym_sizes(),
                    " and ", w.sym_sizes());
  return std::get<0>(primitive<Result(const Tensor&, const Tensor&, const optional<Tensor>&, const optional<Tensor>&)>("foveate::_context_pool")
                         .call(x, w, bias, seen));
}

}  // namespace foveate::ops
