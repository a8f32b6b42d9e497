// window_sum: the sum of a window about each token whose ends are real numbers.
//
//   out_t = scale * integral from t - left_t to t + right_t + 1 of x_floor(u) du,   ends clamped to the tokens there are
//
// so that a token that the window covers in part counts in part. All channels of a head share its window. The gradient of an end is the
// token that it lies in, and zero where it lies between two tokens, as a clamped end does. Sums run over pieces of
// the sequence little longer than a window, long ones in float64: in float32 the relative error stays below 1e-5 anywhere in a sequence of any
// length, where nothing cancels within a window.
#pragma once
#include <foveate/contract.h>

namespace foveate::ops {

/// x [B,N,C], left and right [B,Q,H] in tokens, H a divisor of C -> [B,Q,C]. The last query stands at the last token; no `right` is zero.
FOVEATE_API Tensor window_sum(const Tensor& x, const Tensor& left, const optional<Tensor>& right, double scale = 1);

}  // namespace foveate::ops
