// segment_mean: a sequence cut into m segments of neighbours, each replaced by its mean.
//
//   uneven:       floor(N/m) tokens a segment, one more in each of the last N mod m
//   left_padded:  ceil(N/m) tokens a segment; zeros stand before the first token, and count
//
// whole_slots: the runs of c neighbours that a sequence fills, counted from its start; what fills none is left out.
#pragma once
#include <foveate/contract.h>

namespace foveate::ops {

enum class Segments { uneven, left_padded };

/// x [...,N,D] -> [...,m,D]; uneven segments need N >= m.
FOVEATE_API Tensor segment_mean(const Tensor& x, int64_t segments, Segments how = Segments::uneven);

/// x [B,N,...] -> [B,floor(N/c),c,...]
FOVEATE_API Tensor whole_slots(const Tensor& x, int64_t c);

}  // namespace foveate::ops

namespace foveate {
  template <> inline constexpr auto names<ops::Segments> = std::array<std::string_view, 2>{"uneven", "left_padded"}; }  // namespace foveate
