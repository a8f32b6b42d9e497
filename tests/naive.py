"""Attention pair by pair in memory, for the tests of single mechanisms."""

import torch
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None, *, times: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Softmax attention over the pairs that are seen, bool broadcastable to [B,H,N,M]; each counts `times`. Zeros where nothing is seen."""
    weights = torch.exp((scale or q.shape[-1] ** -0.5) * (q @ k.transpose(-1, -2)))
    if seen is not None:
        weights = weights * seen
    if times is not None:
        weights = weights * times
    total = weights.sum(-1, keepdim=True)
    return weights @ v / total.where(total > 0, 1)
