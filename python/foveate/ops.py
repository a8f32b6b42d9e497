"""The primitives that mechanisms are made of. q [B,H,N,D], k [B,Hk,M,D], v [B,Hk,M,Dv]; Hk divides H (grouped queries).

A query that sees nothing gives zeros, lse -inf, and passes no gradient. Half precision accumulates in float32.
"""

from typing import Any

import torch
from torch import Tensor

from foveate.patterns import Pattern


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
    causal: bool = False,
    bias: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    """Exact softmax attention: softmax(scale q k^T + bias) v.

    mask: bool, broadcastable to [B,H,N,M], True where a key takes part; key_mask: bool [B,M]; key_lengths: int [B].
    causal: query i sees keys up to i + M - N, so that the last query meets the last key. bias: added after scaling.
    scale: default 1/sqrt(D). Returns out [B,H,N,Dv], with return_lse also the log-sum-exp [B,H,N].

    >>> q = k = v = torch.randn(1, 2, 8, 4)
    >>> foveate.attention(q, k, v, causal=True).shape
    torch.Size([1, 2, 8, 4])
    """
    out, lse = torch.ops.foveate.attention(
        q, k, v, mask=mask, key_mask=key_mask, key_lengths=key_lengths, causal=causal, bias=bias, scale=scale
    )
    return (out, lse) if return_lse else out


def merge_attention(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """Joins partial attentions over disjoint sets of keys by their log-sum-exp.

    outs [P,...,Dv], lses [P,...] -> out [...,Dv], lse [...]. The neutral part has out 0 and lse -inf.

    >>> q, k, v = torch.randn(3, 1, 2, 8, 4)
    >>> parts = [foveate.attention(q, k[:, :, s], v[:, :, s], return_lse=True) for s in (slice(0, 3), slice(3, 8))]
    >>> out, lse = foveate.merge_attention(*(torch.stack(x) for x in zip(*parts)))
    >>> torch.testing.assert_close(out, foveate.attention(q, k, v))
    """
    out, lse = torch.ops.foveate.merge_attention(outs, lses)
    return out, lse


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    key_mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    """Softmax attention in which a pattern says who attends to whom; its cost follows the pattern.

    pattern: made by `foveate.patterns`, for every length; the last query meets the last key. key_mask: bool [B,M], True where a key
    takes part; key_lengths: int [B]. bias: broadcastable to [B,H,N,M], added after scaling. scale: default 1/sqrt(D).
    Returns out [B,H,N,Dv], with return_lse also the log-sum-exp [B,H,N].

    >>> from foveate.patterns import causal, global_tokens, sliding_window
    >>> q = k = v = torch.randn(1, 2, 512, 16)
    >>> pattern = (sliding_window(32, 0) | global_tokens(4)) & causal()
    >>> foveate.sparse_attention(q, k, v, pattern).shape
    torch.Size([1, 2, 512, 16])
    """
    if not isinstance(pattern, Pattern):
        raise TypeError(f"sparse_attention: pattern must be a foveate.patterns.Pattern, got {type(pattern).__name__}")
    out, lse = torch.ops.foveate.sparse_attention(
        q,
        k,
        v,
        pattern.expression,
        list(pattern.tables),
        key_mask=key_mask,
        key_lengths=key_lengths,
        bias=bias,
        scale=scale,
    )
    return (out, lse) if return_lse else out


def linear_attention(): ...
