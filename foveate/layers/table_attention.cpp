#include <foveate/attention.h>
#include <foveate/attention_formula.h>
#include <foveate/table_attention.h>

namespace foveate::layers {

Tensor causal_mask(const Tensor& scores) {
  const Size N = extent(scores, -2), M = extent(scores, -1);
  const auto places = [&](const Size& count) { return at::ones_symint({count}, scores.options().dtype(at::kLong)).cumsum(0); };
  return places(M) <= (places(N) + (M - N)).unsqueeze(-1);
}

Tensor table_attention(const Tensor& scores, const Tensor& v, bool causal, const optional<Tensor>& key_mask) {
  const bool alike = scores.dim() == 3;  // for every sequence
  if (!alike || key_mask) {              // each sequence has a softmax of its own: scores are what is added to products of nothing
    const auto nothing = [&](const Size& length) { return v.new_zeros_symint({extent(v, 0), extent(v, 1), length, 1}); };
    const Tensor bias = alike ? scores.unsqueeze(0) : scores;
    return ops::attention(nothing(extent(scores, -2)), nothing(extent(v, 2)), v, {.key_mask = key_mask, .causal = causal, .bias = bias}).out;
  }
  const auto type = ops::accumulation_type(scores.scalar_type());
  Tensor s = scores.to(type);
  if (causal) s = s.masked_fill(causal_mask(s).logical_not(), -std::numeric_limits<double>::infinity());
  const Tensor weights = s.softmax(-1).to(v.scalar_type());        // [H,N,M], once for the batch
  const Tensor side_by_side = v.permute({1, 2, 0, 3}).flatten(2);  // [H,M,B Dv]
  const Tensor out = at::matmul(weights, side_by_side);            // [H,N,B Dv]
  return out.unflatten_symint(2, {extent(v, 0), extent(v, 3)}).permute({2, 0, 1, 3});
}

}  // namespace foveate::layers
