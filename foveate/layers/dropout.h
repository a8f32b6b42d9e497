// Dropout: in training, or where a draw is given, entries become zero with a probability and the others grow by 1 / (1 - probability).
#pragma once
#include <foveate/attention.h>

namespace foveate::layers {

/// The draw, True where an entry is kept: the given one, in training a fresh one from the global generator, else none.
FOVEATE_API optional<Tensor> keep(at::SymIntArrayRef shape, double probability, const optional<Tensor>& given, bool training, at::Device device);

/// x with that draw applied.
FOVEATE_API Tensor dropout(const Tensor& x, double probability, const optional<Tensor>& given, bool training);

/// Dropout of attention weights by a seed: the given one, in training a fresh one, else none. Nothing of size N x M is drawn.
class FOVEATE_API WeightDropout {
 public:
  WeightDropout() = default;
  WeightDropout(double probability, const optional<Tensor>& seed, bool training, const Tensor& like);
  /// What a call of attention takes besides; calls that are joined are parts of one attention and have draws of their own.
  ops::Attention with(ops::Attention call, int64_t part = 0) const;

 private:
  double probability_ = 0;
  optional<Tensor> seed_ = {};
};

/// Refuses probabilities outside [0, 1), naming form and option.
FOVEATE_API void check_dropout(const char* form, const char* option, double probability);

}  // namespace foveate::layers
