"""What is peculiar to BigBird: lists of blocks that count repeats, draws that never fail and can be repeated, any length."""

import pytest
import torch
from torch import Tensor

import foveate
from tests.naive import attend

H, D = 2, 4


def qkv(n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    return [torch.randn(2, H, n, D, generator=generator, dtype=torch.float64) for _ in range(3)]


def counts(table: Tensor, n: int, block: int) -> Tensor:
    """How often each token sees each other one, by the lists of the paper's construction ITC: [H,n,n]."""
    blocks = -(-n // block)
    times = torch.zeros(H, blocks, blocks, dtype=torch.float64)
    for head in range(H):
        for i in range(blocks):
            inner = 0 < i < blocks - 1
            seen = {0, i - 1, i, i + 1, blocks - 1} if inner else set(range(blocks))
            for j in [*seen, *(table[head % len(table), i - 1].tolist() if inner else [])]:
                times[head, i, j] += 1
    return times.repeat_interleave(block, 1).repeat_interleave(block, 2)[:, :n, :n]


@pytest.mark.parametrize("n", [1, 4, 7, 9, 13, 29, 40])
def test_lists_of_blocks_are_multisets_at_any_length(n: int) -> None:
    block, blocks = 4, -(-n // 4)
    q, k, v = qkv(n)
    table = torch.randint(blocks, (H, max(0, blocks - 2), 3), generator=torch.Generator().manual_seed(0))
    key_mask = torch.rand(2, n, generator=torch.Generator().manual_seed(1)) < 0.7
    key_mask[1] = False  # all padding
    times, seen = counts(table, n, block), key_mask[:, None, None] & key_mask[:, None, :, None]
    found = foveate.big_bird_attention(q, k, v, key_mask=key_mask, random_blocks=table, block=block)
    torch.testing.assert_close(found, attend(q, k, v, seen, times=times))
    once = foveate.big_bird_attention(q, k, v, key_mask=key_mask, random_blocks=table, block=block, repeats=False)
    torch.testing.assert_close(once, attend(q, k, v, seen, times=times.clamp(max=1)))


@pytest.mark.parametrize("n", [1, 5, 12, 40])
def test_block_zero_drawn_each_time(n: int) -> None:
    q, k, v = qkv(n)
    zeros = torch.zeros(1, max(0, -(-n // 4) - 2), 3, dtype=torch.int64)
    want = foveate.big_bird_attention(q, k, v, random_blocks=zeros, block=4)
    torch.testing.assert_close(foveate.big_bird_attention(q, k, v, draw="zero", block=4), want)


def drawn(n: int, **options: object) -> Tensor:
    """Which blocks see which, [H,T,T], read off the result: the value of a token is its number, one-hot."""
    q = torch.zeros(1, H, n, D)
    v = torch.eye(n).expand(1, H, n, n)
    seen = foveate.big_bird_attention(q, q, v, block=1, **options) > 0
    return seen[0]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 9, 30])
@pytest.mark.parametrize("r", [1, 3])
def test_a_draw_takes_different_blocks_outside_window_and_globals(n: int, r: int) -> None:
    i, j = torch.arange(n)[:, None], torch.arange(n)
    ends = (i == 0) | (i == n - 1) | (j == 0) | (j == n - 1)
    own = ((i - j).abs() <= 1) | ends
    for seed in range(3):
        seen = drawn(n, num_random_blocks=r, seed=seed)
        assert (seen | ~own).all()
        free = (~own).sum(-1)
        assert torch.equal((seen & ~own).sum(-1), free.clamp(max=r).expand(H, n))


def test_draws_repeat_by_seed_and_differ_otherwise() -> None:
    one, same, other = (drawn(40, num_random_blocks=3, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(one, same) and not torch.equal(one, other) and not torch.equal(one[0], one[1])
    torch.manual_seed(0)
    first, second = drawn(40), drawn(40)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(first, drawn(40))


def test_draws_are_spread_evenly() -> None:
    hits = sum(drawn(42, num_random_blocks=2, seed=seed)[:, 20].double() for seed in range(200)).sum(0)
    free = hits[[*range(1, 19), *range(22, 41)]]  # 800 draws among 37 blocks
    assert free.sum() == 800 and free.min() > 5 and free.max() < 45


def test_a_range_keeps_draws_near_the_front() -> None:
    seen = drawn(40, num_random_blocks=3, seed=0, random_range=11)
    assert not seen[:, 15:38, 11:13].any() and (seen[:, 15:38, 1:10].sum(-1) == 3).all()


@pytest.mark.parametrize("globals_", [0, 3, 20])
@pytest.mark.parametrize("n", [3, 4, 17, 20])
def test_extra_globals_at_any_length(globals_: int, n: int) -> None:
    q, k, v = qkv(n)
    blocks = max(0, -(-(n - globals_) // 4))
    table = torch.randint(blocks, (H, blocks, 2)) if blocks else torch.zeros(H, 0, 2, dtype=torch.int64)
    found = foveate.big_bird_attention(q, k, v, random_blocks=table, construction="etc", block=4, num_extra_globals=globals_)
    i, j = torch.arange(n)[:, None] - globals_, torch.arange(n) - globals_
    seen = ((i // 4 - j // 4).abs() <= 1).repeat(H, 1, 1)
    for head in range(H):
        for row in range(max(0, n - globals_)):
            for column in range(max(0, n - globals_)):
                seen[head, globals_ + row, globals_ + column] |= column // 4 in table[head, row // 4].tolist()
    torch.testing.assert_close(found, attend(q, k, v, seen | (i < 0) | (j < 0)))


def test_short_sequences_in_full() -> None:
    q, k, v = qkv(24)
    full = foveate.big_bird_attention(q, k, v, block=2, seed=0, full_up_to=24)
    torch.testing.assert_close(full, attend(q, k, v))
    assert not torch.allclose(full, foveate.big_bird_attention(q, k, v, block=2, seed=0, full_up_to=23))


def test_a_table_of_the_wrong_shape_is_refused() -> None:
    q, k, v = qkv(24)
    with pytest.raises(ValueError, match=r"random_blocks must be \[2 or 1, 4, r\], got \[2, 6, 3\]"):
        foveate.big_bird_attention(q, k, v, random_blocks=torch.zeros(2, 6, 3, dtype=torch.int64), block=4)
    with pytest.raises(ValueError, match="needs random_blocks of the whole sequence, or a seed"):
        foveate.big_bird_block_attention_step(q, k, v, causal=True)


def test_the_layout_of_deepspeed_streams_with_a_table() -> None:
    q, k, v = qkv(24)
    table = torch.randint(6, (1, 6, 1))
    options = {"block": 4, "causal": True, "random_blocks": table}
    whole = foveate.big_bird_block_attention(q, k, v, **options).out
    state, pieces = None, []
    for at in range(0, 24, 3):
        piece = (x[:, :, at : at + 3] for x in (q, k, v))
        out, _, state = foveate.big_bird_block_attention_step(*piece, state=state, **options)
        pieces.append(out)
    torch.testing.assert_close(torch.cat(pieces, 2), whole)
