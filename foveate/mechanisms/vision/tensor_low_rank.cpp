#include <foveate/init.h>
#include <foveate/means.h>
#include <foveate/tensor_low_rank.h>

namespace foveate {
namespace {

/// sigmoid(w_i m) for every rank: m [B,n], w [r,n,n] -> [B,r,n]
Tensor factors(const Tensor& m, const Tensor& w) { return at::matmul(m, w.flatten(0, 1).t()).unflatten(1, {w.size(0), -1}).sigmoid(); }

}  // namespace

void TensorLowRankGate::check(const Options& o) {
  TORCH_CHECK_VALUE(o.channels > 0 && o.height > 0 && o.width > 0 && o.rank > 0,
                    "tensor_low_rank_gate: channels, height, width and rank must be positive, got ", o.channels, ", ", o.height, ", ", o.width,
                    " and ", o.rank);
  TORCH_CHECK_VALUE(o.axes == RecoAxes::paper || o.height == o.width, "tensor_low_rank_gate: axes code needs height = width, got ", o.height, " and ",
                    o.width);
}

TensorLowRankGate::Parameters TensorLowRankGate::init(const Options& o) {
  // Kaiming-normal over what leaves.
  const auto draw = [&](int64_t n) { return layers::normal({o.rank, n, n}, std::sqrt(2 / static_cast<double>(n))); };
  return {.channel = draw(o.channels), .row = draw(o.height), .column = draw(o.width), .lam = layers::ones({o.rank})};
}

Tensor TensorLowRankGate::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const Tensor& x = in.x;
  TORCH_CHECK_VALUE(extent(x, 1) == o.channels && extent(x, 2) == o.height && extent(x, 3) == o.width,
                    "tensor_low_rank_gate: x must be [B,C,H,W] with ", o.channels, ", ", o.height, " and ", o.width, ", got ", x.sym_sizes());
  const Tensor of_rows = layers::mean_over(x, {3});                                             // [B,C,H]
  const Tensor rows = layers::mean_over(of_rows, {1}), columns = layers::mean_over(x, {1, 2});  // [B,H], [B,W]
  const bool swapped = o.axes == RecoAxes::code;
  const Tensor c = factors(layers::mean_over(of_rows, {2}), p.channel);  // [B,r,C]
  const Tensor h = factors(swapped ? columns : rows, p.row);             // [B,r,H]
  const Tensor w = factors(swapped ? rows : columns, p.column);          // [B,r,W]
  const Tensor lambda = o.weights == RecoWeights::softmax ? p.lam.softmax(0) : p.lam;

  const Tensor planes = (h.unsqueeze(-1) * w.unsqueeze(-2)).flatten(2);                // [B,r,H W]
  const Tensor gate = at::matmul((c * lambda.unsqueeze(-1)).transpose(1, 2), planes);  // [B,C,H W]
  const Tensor gated = x * gate.unflatten(2, {o.height, o.width});
  return o.output == RecoOutput::product ? gated : at::cat({x, gated.relu()}, 1);
}

FOVEATE_MECHANISM(TensorLowRankGate)

}  // namespace foveate
