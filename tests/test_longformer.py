"""What is peculiar to Longformer: global tokens anywhere, the roads to them, the released code's empty keys, a state that stays small."""

from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from tests.naive import attend

B, H, N, D = 3, 2, 23, 4


def qkv(n: int = N, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, H, n, D, generator=generator, dtype=torch.float64) for _ in range(3)]


def marked(*rows: list[int]) -> Tensor:
    mask = torch.zeros(B, N, dtype=torch.bool)
    for row, places in zip(mask, rows, strict=False):
        row[places] = True
    return mask


def sees(window: int, globals_: Tensor, real: Tensor, causal: bool) -> Tensor:
    """bool [B,1,N,N], pair by pair."""
    pairs = torch.zeros(B, N, N, dtype=torch.bool)
    for b in range(B):
        for i in range(N):
            for j in range(N):
                near = abs(i - j) <= window or bool(globals_[b, j]) or bool(globals_[b, i])
                pairs[b, i, j] = near and bool(real[b, j]) and bool(real[b, i]) and (j <= i or not causal)
    return pairs[:, None]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("max_globals", [None, 2, 5])
def test_global_tokens_may_stand_anywhere_and_differ_in_number(causal: bool, max_globals: int | None) -> None:
    q, k, v = qkv()
    global_mask, real = marked([0, 7, 22], [11], []), torch.ones(B, N, dtype=torch.bool)
    real[0, 5:8] = real[1, 17:] = False
    real[2] = False  # all padding
    found = foveate.longformer_attention(q, k, v, key_mask=real, global_mask=global_mask, window=2, max_globals=max_globals, causal=causal)
    torch.testing.assert_close(found, attend(q, k, v, sees(2, global_mask & real, real, causal)))
    assert (found[2] == 0).all()


def test_tokens_beyond_the_room_count_as_local() -> None:
    q, k, v = qkv()
    everything = {"window": 2, "key_mask": torch.ones(B, N, dtype=torch.bool)}
    found = foveate.longformer_attention(q, k, v, global_mask=marked([3, 9, 15], [1], [22, 4]), max_globals=2, **everything)
    want = foveate.longformer_attention(q, k, v, global_mask=marked([3, 9], [1], [22, 4]), **everything)
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("count", [1, 4, N, N + 5])
def test_first_tokens_are_a_global_mask_of_known_places(causal: bool, count: int) -> None:
    q, k, v = qkv()
    own = dict(zip(("q_global", "k_global", "v_global"), qkv(seed=1), strict=True))
    mask = torch.arange(N).expand(B, N) < count
    found = foveate.longformer_attention(q, k, v, window=3, global_tokens=count, causal=causal, **own)
    want = foveate.longformer_attention(q, k, v, window=3, global_mask=mask, causal=causal, **own)
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize("options", [{"window": 100}, {"window": 0}, {"window": 4, "dilation": [9, 1]}, {"window": 64, "window_kind": "chunks"}])
@pytest.mark.parametrize("n", [1, 2, 17])
def test_a_sequence_may_be_shorter_than_the_window(options: dict[str, Any], n: int) -> None:
    q, k, v = qkv(n)
    found = foveate.longformer_attention(q, k, v, **options)
    i, dilation = torch.arange(n), torch.tensor(options.get("dilation", [1, 1]))[:, None, None]
    distance = i - i[:, None]
    seen = (distance.abs() <= options["window"] * dilation) & (distance % dilation == 0)
    torch.testing.assert_close(found, attend(q, k, v, seen))


@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_the_empty_keys_of_the_released_code(chunks: int) -> None:
    window, n = 5, 5 * chunks
    q, k, v = qkv(n)
    found = foveate.longformer_attention(q, k, v, window=window, window_kind="chunks_as_released")
    # Keys of zeros in front and behind: token i of the first chunk sees i of them, the last chunk is its mirror image.
    padded_k, padded_v = (torch.nn.functional.pad(x, (0, 0, window, window)) for x in (k, v))
    i, j = torch.arange(n)[:, None], torch.arange(n + 2 * window)[None] - window
    chunk = (j // window - i // window).abs() <= 1
    empty = (j < 0) | (j >= n)
    torch.testing.assert_close(found, attend(q, padded_k, padded_v, chunk & (~empty | ((j >= -i) & (j - n + 1 <= n - 1 - i)))))
    intended = foveate.longformer_attention(q, k, v, window=window, window_kind="chunks")
    torch.testing.assert_close(intended, attend(q, padded_k, padded_v, chunk & ~empty))
    assert not torch.allclose(found[:, :, 1], intended[:, :, 1])


def test_the_state_holds_no_more_than_later_windows_reach() -> None:
    layer = foveate.nn.LongformerSelfAttention(embed_dim=8, num_heads=2, window=3, dilation=[1, 2], causal=True, global_tokens=2, dtype=torch.float64)
    x = torch.randn(2, 40, 8, dtype=torch.float64)
    real = torch.rand(2, 40) < 0.8
    state, pieces = None, []
    for end in range(5, 41, 5):
        piece, state = layer.step(x[:, end - 5 : end], key_mask=real[:, :end], state=state)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, 1), layer(x, key_mask=real))
    assert [t.shape[2] for t in state] == [8, 8, 2, 2]


def test_global_tokens_are_named_in_one_way() -> None:
    q, k, v = qkv()
    with pytest.raises(ValueError, match="global_mask and global_tokens exclude each other"):
        foveate.longformer_attention(q, k, v, global_mask=marked([0]), global_tokens=1)
    with pytest.raises(ValueError, match="one for each of 2 heads, got 3"):
        foveate.longformer_attention(q, k, v, dilation=[1, 2, 3])
    with pytest.raises(ValueError, match="dilation 1"):
        foveate.longformer_attention(q, k, v, window_kind="chunks", dilation=[2])
    with pytest.raises(ValueError, match="causal must be True"):
        foveate.longformer_attention_step(q, k, v)


@pytest.mark.parametrize("options", [{}, {"global_tokens": 3}, {"max_globals": 2}], ids=["local", "prefix", "marked"])
def test_dropped_weights_average_to_those_kept(options: dict[str, Any]) -> None:
    """Over many seeds the mean of the results is the result without dropout; one seed gives one result."""
    q, k, v = qkv()
    given = {"global_mask": marked([0, 7], [11], [])} if "max_globals" in options else {}
    whole = foveate.longformer_attention(q, k, v, window=5, **given, **options)

    def dropped(seed: int) -> Tensor:
        return foveate.longformer_attention(q, k, v, window=5, dropout=0.3, dropout_seed=torch.tensor(seed), **given, **options)  # type: ignore[no-any-return]

    assert torch.equal(dropped(1), dropped(1))
    assert not torch.equal(dropped(1), dropped(2))
    mean = torch.stack([dropped(seed) for seed in range(600)]).mean(0)
    assert (mean - whole).norm() < 0.06 * whole.norm()


def test_the_layer_drops_in_training_only() -> None:
    layer = foveate.nn.LongformerSelfAttention(embed_dim=8, num_heads=2, window=3, dropout=0.5)
    x = torch.randn(1, 20, 8)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))
