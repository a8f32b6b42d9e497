"""KVCache: token by token and in chunks it equals the parallel form, for every causal pattern; what a token costs follows the pattern."""

import random
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate import patterns
from foveate.patterns import Pattern

causal = patterns.causal()
PATTERNS: dict[str, Pattern] = {
    "causal": causal,
    "window": patterns.sliding_window(20, 0),
    "window and globals": (patterns.sliding_window(9, 0) | patterns.keys(0, 3)) & causal,
    "strided": (patterns.sliding_window(8, 0) | patterns.strided(8)) & causal,
    "fixed": (patterns.block_diagonal(16) | patterns.fixed(16, 2)) & causal,
    "dilated": patterns.dilated(5, 0, 7),
    "blocks": patterns.block_window(12, 12, 0) & causal,
    "random blocks": patterns.random_blocks(16, patterns.draw_blocks(12, 2, heads=4, seed=3)) & causal,
    "heads apart": (patterns.heads(0, 2) & patterns.sliding_window(6, 0)) | (patterns.heads(1, 2) & patterns.strided(9) & causal),
}


def tokens(N: int, dtype: torch.dtype = torch.float64, B: int = 2, Hk: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(N)
    draw = lambda heads, width: torch.randn(B, heads, N, width, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    return draw(4, 8), draw(Hk, 8), draw(Hk, 6)


def decoded(cache: foveate.KVCache, given: tuple[Tensor, Tensor, Tensor], sizes: list[int], **options: Any) -> Tensor:
    parts = zip(*(x.split(sizes, dim=2) for x in given), strict=True)
    return torch.cat([cache.attend(*part, **options) for part in parts], 2)


def chunks(N: int, seed: int) -> list[int]:
    draw, sizes = random.Random(seed), []
    while sum(sizes) < N:
        sizes.append(min(draw.choice([1, 1, 2, 5, 30]), N - sum(sizes)))
    return sizes


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_pieces_equal_the_whole(name: str, seed: int | None) -> None:
    given = tokens(150)
    sizes = [1] * 150 if seed is None else chunks(150, seed)
    want = foveate.sparse_attention(*given, PATTERNS[name])
    torch.testing.assert_close(decoded(foveate.KVCache(), given, sizes, pattern=PATTERNS[name]), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", [None, 2])
def test_a_window_drops_what_it_no_longer_reaches(seed: int | None) -> None:
    given = tokens(300)
    cache = foveate.KVCache(window=32)
    out = decoded(cache, given, [1] * 300 if seed is None else chunks(300, seed))
    torch.testing.assert_close(out, foveate.attention(*given, causal=True, window=32), rtol=1e-10, atol=1e-12)
    assert (len(cache), cache.first, cache.keys.shape[2]) == (300, 268, 32)
    assert cache.keys.untyped_storage().nbytes() <= 4 * 32 * given[1][:, :, :1].nbytes


@pytest.mark.parametrize("name", ["window", "fixed", "dilated", "blocks", "random blocks"])
def test_patterns_keep_their_positions_when_tokens_are_dropped(name: str) -> None:
    pattern = PATTERNS[name] & patterns.sliding_window(39, 0)
    given = tokens(150)
    want = foveate.sparse_attention(*given, pattern)
    torch.testing.assert_close(decoded(foveate.KVCache(window=40), given, chunks(150, 5), pattern=PATTERNS[name]), want, rtol=1e-10, atol=1e-12)


def test_beams_are_reordered() -> None:
    q, k, v = tokens(40)
    cache, order = foveate.KVCache(), torch.tensor([1, 1, 0])
    cache.append(k[:, :, :39], v[:, :, :39])
    cache.reorder(order)
    last = [x[order][:, :, 39:] for x in (q, k, v)]
    want = foveate.attention(q[order], k[order], v[order], causal=True)[:, :, 39:]
    torch.testing.assert_close(cache.attend(*last), want, rtol=1e-10, atol=1e-12)


def test_rejected_tokens_are_forgotten() -> None:
    q, k, v = tokens(30)
    cache = foveate.KVCache()
    cache.append(k[:, :, :20], v[:, :, :20])
    cache.append(torch.full_like(k[:, :, :7], 9), torch.full_like(v[:, :, :7], 9))
    cache.rewind(7)
    got = cache.attend(q[:, :, 20:], k[:, :, 20:], v[:, :, 20:])
    torch.testing.assert_close(got, foveate.attention(q, k, v, causal=True)[:, :, 20:], rtol=1e-10, atol=1e-12)


def test_bfloat16_is_kept_as_it_is() -> None:
    given = tokens(90, torch.bfloat16)
    cache = foveate.KVCache()
    out = decoded(cache, given, chunks(90, 3))
    assert out.dtype == cache.keys.dtype == torch.bfloat16
    want = foveate.attention(*(x.double() for x in given), causal=True)
    torch.testing.assert_close(out.double(), want, rtol=1e-2, atol=1e-2)


def test_room_is_made_ahead_and_not_token_by_token() -> None:
    given = tokens(1300, torch.float32, B=1)
    cache = foveate.KVCache()
    cache.append(*(x[:, :, :900] for x in given[1:]))
    places = []
    for at in range(900, 1300):
        cache.attend(*(x[:, :, at : at + 1] for x in given), pattern=PATTERNS["window"])
        places.append(cache.keys.data_ptr())
    assert sum(a != b for a, b in pairwise(places)) == 1


def test_what_does_not_fit_is_refused() -> None:
    q, k, v = tokens(4)
    with pytest.raises(ValueError, match="window must be positive, got 0"):
        foveate.KVCache(window=0)
    cache = foveate.KVCache()
    with pytest.raises(ValueError, match="append tokens first"):
        _ = cache.keys
    cache.attend(q, k, v)
    with pytest.raises(ValueError, match=r"k must be Double .* like the keys before, got Float"):
        cache.append(k.float(), v.float())
    with pytest.raises(ValueError, match="count must lie in"):
        cache.rewind(5)
    with pytest.raises(ValueError, match="keeps no graph"):
        cache.attend(q, k.clone().requires_grad_(), v)
    with pytest.raises(ValueError, match="the same new tokens"):
        cache.attend(q[:, :, :2], k, v)


def test_a_refused_call_leaves_the_cache_as_it_was() -> None:
    q, k, v = tokens(12)
    cache = foveate.KVCache(window=5)
    cache.attend(q, k, v)
    with pytest.raises(TypeError, match="v must be Double"):
        cache.attend(q, k, v.float())
    assert (len(cache), cache.first) == (12, 7)
    cache.append(k, v)
    assert cache.keys.shape[2] == 5
