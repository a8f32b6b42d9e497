// Dropout: in training, or where a draw is given, entries become zero with a probability and the others grow by 1 / (1 - probability).
#pragma once
#include <foveate/tensor.h>

namespace foveate::layers {

/// The draw, True where an entry is kept: the given one, in training a fresh one from the global generator, else none.
FOVEATE_API optional<Tensor> keep(at::SymIntArrayRef shape, double probability, const optional<Tensor>& given, bool training, at::Device device);

/// x with that draw applied.
FOVEATE_API Tensor dropout(const Tensor& x, double probability, const optional<Tensor>& given, bool training);

/// Refuses probabilities outside [0, 1), naming form and option.
FOVEATE_API void check_dropout(const char* form, const char* option, double probability);

}  // namespace foveate::layers
