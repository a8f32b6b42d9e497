"""KVCache: keys and values of a sequence that arrives piece by piece."""

from typing import Any

import torch
from torch import Tensor

from foveate.patterns import Pattern


class KVCache:
    """The keys and values so far, for decoding with any causal attention.

    Tokens are written behind those that are there, into room that doubles when it is used up: a token costs what it writes, and what its
    pattern reads. Numbers are kept in the type they come in (bfloat16 halves the memory). No graph is kept: training takes `forward` or
    `step` of a layer.

    window: a token sees this many, itself among them, and older ones are dropped; default None keeps all.

    >>> cache = foveate.KVCache()
    >>> q, k, v = torch.randn(3, 1, 2, 10, 4)
    >>> prompt = cache.attend(q[:, :, :9], k[:, :, :9], v[:, :, :9])
    >>> token = cache.attend(q[:, :, 9:], k[:, :, 9:], v[:, :, 9:])
    >>> torch.testing.assert_close(torch.cat([prompt, token], 2), foveate.attention(q, k, v, causal=True))
    >>> len(cache)
    10
    """

    def __init__(self, window: int | None = None) -> None:
        self._held: Any = torch.classes.foveate.KVCache(window)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pattern: Pattern | None = None,
        *,
        key_mask: Tensor | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        slopes: Tensor | None = None,
    ) -> Tensor:
        """Appends k [B,Hk,n,D] and v [B,Hk,n,Dv]; gives the attention of q [B,H,n,D], the same tokens, to all that they may see.

        pattern: who attends to whom, by positions in the whole sequence; what lies ahead of a token is hidden in any case.
        key_mask: bool [B,kept + n], True where a key takes part. scale: default 1/sqrt(D). softcap: see `attention`.
        slopes: [H], ALiBi. Raises ValueError where k or v does not fit what is kept.
        """
        expression, tables = (pattern.expression, list(pattern.tables)) if pattern is not None else (None, [])
        out: Tensor = self._held.attend(q, k, v, expression, tables, key_mask, scale, softcap, slopes)
        return out

    def append(self, k: Tensor, v: Tensor) -> None:
        """Adds tokens without attending to anything."""
        self._held.append(k, v)

    def evict(self, keep: int) -> None:
        """Drops all but the last `keep` tokens."""
        self._held.evict(keep)

    def rewind(self, count: int) -> None:
        """Forgets the last `count` tokens, as after a rejected draft."""
        self._held.rewind(count)

    def reorder(self, index: Tensor) -> None:
        """Batch rows index[0], index[1], ... become rows 0, 1, ...: for beam search. index: int [B']."""
        self._held.reorder(index)

    def __len__(self) -> int:
        """Tokens so far, dropped ones among them."""
        return int(self._held.length())

    @property
    def first(self) -> int:
        """The position of the first token that is kept."""
        return int(self._held.first())

    @property
    def keys(self) -> Tensor:
        """[B,Hk,kept,D], a view."""
        keys: Tensor = self._held.keys()
        return keys

    @property
    def values(self) -> Tensor:
        """[B,Hk,kept,Dv], a view."""
        values: Tensor = self._held.values()
        return values

    def __repr__(self) -> str:
        return f"KVCache({len(self)} tokens)"
