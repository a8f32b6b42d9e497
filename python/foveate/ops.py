"""The primitives that mechanisms are made of. q [B,H,N,D], k [B,Hk,M,D], v [B,Hk,M,Dv]; Hk divides H (grouped queries).

A query that sees nothing gives zeros, lse -inf, and passes no gradient. Half precision accumulates in float32.
"""

from typing import Any, NamedTuple

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
    window: int | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
    return_lse: bool = False,
) -> Any:
    """Exact softmax attention: softmax(scale q k^T + bias) v.

    mask: bool, broadcastable to [B,H,N,M], True where a key takes part; key_mask: bool [B,M]; key_lengths: int [B].
    causal: query i sees keys up to i + M - N, so that the last query meets the last key. window: and no key this many positions before
    that one, or more. bias: added after scaling. scale: default 1/sqrt(D). softcap: scaled products become softcap tanh(product / softcap).
    dropout: probability of dropping a weight; which ones depends on `seed` alone (default: from torch's generator).
    Returns out [B,H,N,Dv], with return_lse also the log-sum-exp [B,H,N].

    >>> q = k = v = torch.randn(1, 2, 8, 4)
    >>> foveate.attention(q, k, v, causal=True).shape
    torch.Size([1, 2, 8, 4])
    """
    out, lse = torch.ops.foveate.attention(
        q, k, v, mask=mask, key_mask=key_mask, key_lengths=key_lengths, causal=causal, window=window, bias=bias, scale=scale, softcap=softcap,
        dropout=dropout, dropout_seed=_seed(dropout, seed, q),
    )  # fmt: skip
    return (out, lse) if return_lse else out


def _seed(dropout: float, seed: int | Tensor | None, like: Tensor) -> Tensor | None:
    """The seed of dropout as the operator wants it, int []; None where nothing is dropped."""
    if dropout == 0:
        return None
    if seed is None:
        return torch.randint(1 << 32, (), device=like.device)
    return torch.as_tensor(seed, device=like.device)


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
    mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
    bias: Tensor | None = None,
    slopes: Tensor | None = None,
    table: Tensor | None = None,
    rows: Tensor | None = None,
    origin: int = 0,
    q_index: Tensor | None = None,
    k_index: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
    return_lse: bool = False,
) -> Any:
    """Softmax attention in which a pattern says who attends to whom; its cost follows the pattern.

    pattern: made by `foveate.patterns`, for every length; the last query meets the last key. mask: bool, broadcastable to [B,H,N,M],
    key_mask: bool [B,M], both True where a key takes part; key_lengths: int [B]. query_mask: bool [B,N], False where a query gets zeros.
    Tiles of 64 keys or queries that are masked whole cost nothing. bias: broadcastable to [B,H,N,M], added after scaling.
    What a key's distance delta = j - i (from the query's place among the keys) counts for: slopes [H] subtracts slope |delta| (ALiBi);
    table [H,L] adds table[h, delta + origin] (T5); rows [H or 1,L,D] adds scale q_i . rows[h, delta + origin] (Shaw, Transformer-XL);
    distances beyond a table use its ends. q_index int64 [B or 1,H or 1,N'] and k_index [B or 1,Hk or 1,M'] put queries and keys in a line of
    their own, sorted or in clusters, and -1 nothing: pattern, masks and biases then go by places in line, key_mask by keys, and the result
    is in line; nothing is copied. scale: default 1/sqrt(D). softcap, dropout, seed: see `attention`.
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
        q, k, v, pattern.expression, list(pattern.tables), mask=mask, key_mask=key_mask, query_mask=query_mask, key_lengths=key_lengths, bias=bias,
        slopes=slopes,
        table=table, rows=rows, origin=origin, q_index=q_index, k_index=k_index, scale=scale, softcap=softcap, dropout=dropout,
        dropout_seed=_seed(dropout, seed, q),
    )  # fmt: skip
    return (out, lse) if return_lse else out


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    key_mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
    normalizer: str = "add",
    eps: float = 1e-6,
    log_decay: Tensor | None = None,
    offset: int | None = None,
    state: tuple[Tensor, Tensor] | None = None,
    return_state: bool = False,
) -> Any:
    """Attention whose weights are products of features: out_i = q_i S_i / d(q_i . z_i) with S = sum k v^T and z = sum k, at O(N F Dv).

    q [B,H,N,F] and k [B,Hk,M,F] are features already, such as `elu(x) + 1`; v [B,Hk,M,Dv]. key_mask: bool [B,M], True where a key
    takes part; key_lengths: int [B].
    causal: S and z of query i hold keys up to i + offset; by default offset = M - N, so that the last query meets the last key.
    normalizer: the denominator d(z). none: 1; add: z + eps; clamp: max(z, eps); clamp_abs: max(|z|, eps); guard: z, but z + 2 eps where
    |z| <= eps. Where it would be exactly 0 it is 1, so that a query that sees nothing gives zeros.
    log_decay [B,Hk,M]: with causal, S_j = exp(log_decay_j) S_{j-1} + k_j v_j^T, and z likewise; hidden keys do not decay.
    state: S [B,Hk,F,Dv] and z [B,Hk,F] of what came before, float32 for half precision; with return_state the result is out and the
    state after all keys, so that a sequence can be given in pieces.

    >>> q, k = torch.nn.functional.elu(torch.randn(2, 1, 2, 8, 4)) + 1
    >>> v = torch.randn(1, 2, 8, 3)
    >>> whole = foveate.linear_attention(q, k, v, causal=True)
    >>> left, state = foveate.linear_attention(q[:, :, :5], k[:, :, :5], v[:, :, :5], causal=True, return_state=True)
    >>> right = foveate.linear_attention(q[:, :, 5:], k[:, :, 5:], v[:, :, 5:], causal=True, state=state)
    >>> torch.testing.assert_close(torch.cat([left, right], 2), whole)
    """
    S, z = state or (None, None)
    out, S, z = torch.ops.foveate.linear_attention(
        q, k, v, key_mask=key_mask, key_lengths=key_lengths, log_decay=log_decay, state=S, key_sum=z, causal=causal, normalizer=normalizer,
        eps=eps, offset=offset,
    )  # fmt: skip
    return (out, (S, z)) if return_state else out


def random_projection(
    features: int,
    dim: int,
    *,
    orthogonal: bool = True,
    row_norm: str = "gaussian",
    rotation: str = "uniform",
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draws the projection W [features, dim] of random features, from the global generator by default.

    orthogonal: rows are orthogonal within blocks of dim, uniform in direction, else independent and standard normal. row_norm: how long
    orthogonal rows are. gaussian: as independent standard normal rows; sqrt_dim: sqrt(dim). rotation: how each block is drawn. uniform: of all
    rotations and reflections; hadamard: three Hadamard matrices with random signs, dim a power of two; givens: dim log2(dim) rotations of
    two coordinates by random angles.

    >>> W = foveate.random_projection(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> products = W[:4] @ W[:4].T
    >>> torch.testing.assert_close(products, products.diagonal().diag())
    """
    place = None if device is None else torch.device(device)
    W: Tensor = torch.ops.foveate.random_projection(
        features, dim, orthogonal=orthogonal, row_norm=row_norm, rotation=rotation, generator=generator, dtype=dtype, device=place
    )
    return W


class ProductKeyUsage(NamedTuple):
    """How evenly the slots of a memory are read."""

    used: float
    """Share of the slots that were read at least once."""
    kl: float
    """log S + sum p log p, where p is the share of all reads that a slot has: 0 where all are read alike."""
    gini: float
    """0 where all slots are read alike, nearly 1 where one has all reads."""
    holding: dict[int, int]
    """The fewest slots that have 50, 90 and 99 percent of the reads."""


def product_key_usage(indices: Tensor, scores: Tensor | None = None, *, slots: int) -> ProductKeyUsage:
    """How evenly the slots of a product-key memory are read, from the indices that its layers give, and their scores as weights.

    indices int64 [...], below slots; scores [...], by default each read counts as one. Several calls are counted together by `torch.cat`.

    >>> usage = foveate.product_key_usage(torch.arange(8), slots=16)
    >>> usage.used, usage.gini, usage.holding
    (0.5, 0.5, {50: 4, 90: 8, 99: 8})
    """
    used, kl, gini, holding = torch.ops.foveate.product_key_usage(indices, scores, slots)
    return ProductKeyUsage(float(used), float(kl), float(gini), dict(zip((50, 90, 99), holding.tolist(), strict=True)))
