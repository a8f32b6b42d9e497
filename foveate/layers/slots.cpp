#include <foveate/slots.h>

namespace foveate::layers {

Tensor map_slots(const Tensor& w, const Tensor& x) { return at::bmm(x, w.transpose(0, 1).unsqueeze(0).expand_symint({extent(x, 0), -1, -1})); }

Tensor convolve_slots(const Convolution& conv, const Tensor& x) {
  const int64_t c = conv.weight.size(2), width = conv.weight.size(1), groups = plain_extent(x, 2) / width;
  const Tensor runs = ops::whole_slots(x, c);                                          // [B,K,c,E]
  const Tensor w = conv.weight.unflatten(0, {groups, -1}).transpose(2, 3).flatten(2);  // [groups,out,c width]
  Tensor out;                                                                          // [B,K,O]
  if (groups == 1) {
    out = map_slots(w.squeeze(0), runs.flatten(2));
  } else {
    const Tensor parts = runs.unflatten(3, {groups, width}).permute({0, 3, 1, 2, 4}).flatten(3);  // [B,groups,K,c width]
    out = at::matmul(parts, w.transpose(1, 2)).transpose(1, 2).flatten(2);
  }
  return conv.bias ? out + *conv.bias : out;
}

}  // namespace foveate::layers
