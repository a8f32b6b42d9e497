// Attention by a table: scores are given, for each head or for each head of each sequence.
#pragma once
#include <foveate/contract.h>

namespace foveate::layers {

/// scores [H,N,M], or [B,H,N,M]; v [B,H,M,Dv], key_mask [B,M] True where a key takes part; causal hides j > i + M - N -> [B,H,N,Dv].
FOVEATE_API Tensor table_attention(const Tensor& scores, const Tensor& v, bool causal, const optional<Tensor>& key_mask);

/// Some rows or columns of a table: itself where they are all, so that its gradient is not copied into another.
FOVEATE_API Tensor part_of(const Tensor& table, int64_t dim, const Size& start, const Size& length);

/// bool [N,M], True where j <= i + M - N.
FOVEATE_API Tensor causal_mask(const Tensor& scores);

}  // namespace foveate::layers
