#include <foveate/dropout.h>

namespace foveate::layers {

optional<Tensor> keep(at::SymIntArrayRef shape, double probability, const optional<Tensor>& given, bool training, at::Device device) {
  if (given || !training || probability == 0) return given;
  return at::rand_symint(shape, at::TensorOptions().dtype(at::kFloat).device(device)) >= probability;
}

Tensor dropout(const Tensor& x, double probability, const optional<Tensor>& given, bool training) {
  const auto kept = keep(x.sym_sizes(), probability, given, training, x.device());
  return kept ? x * kept->to(x.scalar_type()) / (1 - probability) : x;
}

WeightDropout::WeightDropout(double probability, const optional<Tensor>& seed, bool training, const Tensor& like)
    : probability_(probability), seed_(seed) {
  if (!seed_ && training && probability > 0) seed_ = ops::draw_seed(like);
}

ops::Attention WeightDropout::with(ops::Attention call, int64_t part) const {
  if (!seed_) return call;
  call.dropout = probability_;
  call.dropout_seed = part == 0 ? *seed_ : *seed_ + part;
  return call;
}

void check_dropout(const char* form, const char* option, double probability) {
  TORCH_CHECK_VALUE(probability >= 0 && probability < 1, form, ": ", option, " must lie in [0, 1), got ", probability);
}

}  // namespace foveate::layers
