#include <foveate/attention.h>
#include <foveate/table_attention.h>

namespace foveate::layers {

Tensor causal_mask(const Tensor& scores) {
  const Size N = extent(scores, -2), M = extent(scores, -1);
  const auto places = [&](const Size& count) { return at::ones_symint({count}, scores.options().dtype(at::kLong)).cumsum(0); };
  return places(M) <= (places(N) + (M - N)).unsqueeze(-1);
}

Tensor part_of(const Tensor& table, int64_t dim, const Size& start, const Size& length) {
  const auto first = start.maybe_as_int(), count = length.maybe_as_int();
  return first && count && *first == 0 && extent(table, dim) == *count ? table : table.narrow_symint(dim, start, length);
}

Tensor table_attention(const Tensor& scores, const Tensor& v, bool causal, const optional<Tensor>& key_mask) {
  const bool alike = scores.dim() == 3;  // for every sequence
  const Tensor bias = alike ? scores.unsqueeze(0) : scores;
  const Size N = extent(scores, -2), M = extent(v, 2), B = extent(v, 0), H = extent(v, 1);
  // Scores are what is added to products of nothing.
  const auto attend = [&](const Tensor& values, const Size& sequences) {
    const auto nothing = [&](const Size& length) { return v.new_zeros_symint({sequences, H, length, 1}); };
    return ops::attention(nothing(N), nothing(M), values, {.key_mask = key_mask, .causal = causal, .bias = bias}).out;
  };
  if (!alike || key_mask) return attend(v, B);                                  // each sequence has a softmax of its own
  const Tensor side_by_side = v.permute({1, 2, 0, 3}).flatten(2).unsqueeze(0);  // [1,H,M,B Dv]: one softmax for the batch
  return attend(side_by_side, 1).squeeze(0).unflatten_symint(2, {B, extent(v, 3)}).permute({2, 0, 1, 3});
}

}  // namespace foveate::layers
