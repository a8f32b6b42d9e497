"""The softmax engine against what a user would pick instead: `make bench-softmax`.

One process; the contestants of a row, and a large matrix product, take turns. For each row: median milliseconds of the peer and of
foveate, how many times faster foveate is (median of the ratios of a round), and the share of the matrix product's speed that the
useful work of each comes to: 4 D operations for each query and key that meet, and 10 D more for the backward. Where work is bound by
memory, the share is of the speed at which a sum reads it.

    python bench/softmax.py [--threads 1] [--dtype float32] [--rounds 7] [--only window] [--flex]
"""

import argparse
import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from contest import D, H, Row, backward, heads, run
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

import foveate
from foveate import patterns

PAIR = 4.0 * H * D  # operations of the forward for each query and key that meet


def chunked(q: Tensor, k: Tensor, v: Tensor, w: int) -> Tensor:
    """A window of w keys on both sides, the way people write it: chunks of w queries before 3 w keys each, in torch's attention."""
    _, H, N, _ = q.shape
    blocks = N // w
    keys, values = (pad(x, (0, 0, w, w)).unfold(2, 3 * w, w).transpose(-1, -2) for x in (k, v))  # [B,H,blocks,3w,D]
    i, j = torch.arange(w)[:, None], torch.arange(3 * w) - w
    band = (j >= i - w) & (j <= i + w)
    at = torch.arange(blocks)[:, None, None] * w + j
    mask = band & (at >= 0) & (at < N)  # [blocks,w,3w]
    out = scaled_dot_product_attention(
        q.unflatten(2, (blocks, w)).flatten(1, 2), keys.flatten(1, 2), values.flatten(1, 2), attn_mask=mask.repeat(H, 1, 1)
    )
    return out.unflatten(1, (H, blocks)).flatten(2, 3)


def with_relative_rows(q: Tensor, k: Tensor, v: Tensor, rows: Tensor) -> Tensor:
    """Transformer-XL's scores as its authors compute them: all products with the rows, then the shift."""
    B, H, N, D = q.shape
    by_row = pad(q @ rows.transpose(-1, -2), (1, 0)).view(B, H, N + 1, N)[:, :, 1:]  # left shift of [B,H,N,N]
    return scaled_dot_product_attention(q, k, v, attn_mask=by_row / math.sqrt(D))


def within(b: Tensor, h: Tensor, i: Tensor, j: Tensor, w: int) -> Tensor:
    return (i - j).abs() <= w


def flex(pattern_mask: Callable[..., Tensor], N: int) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = create_block_mask(pattern_mask, None, None, N, N, device="cpu")
    compiled = torch.compile(flex_attention)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask)


def dense(dtype: torch.dtype) -> Iterator[Row]:
    for N, causal in ((2048, False), (512, True), (2048, True)):
        seen, name = (N * (N + 1) / 2, "causal") if causal else (N * N, "dense")
        exact = partial(scaled_dot_product_attention, is_causal=causal)
        ours = partial(foveate.attention, causal=causal)
        x, y = heads(N, dtype), heads(N, dtype, grad=True)
        yield Row(f"{name} forward N={N}", partial(exact, *x), partial(ours, *x), PAIR * seen)
        yield Row(f"{name} backward N={N}", backward(exact, y), backward(ours, y), 2.5 * PAIR * seen)


def windows(dtype: torch.dtype, with_flex: bool) -> Iterator[Row]:
    for N, w in ((4096, 128), (4096, 256), (16384, 128), (16384, 256)):
        work = PAIR * (N * (2 * w + 1) - w * (w + 1))
        ours = partial(foveate.sparse_attention, pattern=patterns.sliding_window(w, w))
        by_hand = partial(chunked, w=w)
        x, y = heads(N, dtype), heads(N, dtype, grad=True)
        yield Row(f"window {w} forward N={N}, by hand", partial(by_hand, *x), partial(ours, *x), work)
        if with_flex:
            yield Row(f"window {w} forward N={N}, Flex", partial(flex(partial(within, w=w), N), *x), partial(ours, *x), work)
        yield Row(f"window {w} backward N={N}, by hand", backward(by_hand, y), backward(ours, y), 2.5 * work)
        yield Row(f"window {w} both N={N}, by hand", backward(by_hand, y, True), backward(ours, y, True), 3.5 * work)


def blocks(dtype: torch.dtype, with_flex: bool) -> Iterator[Row]:
    N = 4096
    here = torch.arange(N // 64)
    bigbird = (here[:, None] - here).abs() <= 1
    bigbird[:, 0] = bigbird[:, -1] = True
    bigbird.scatter_(1, patterns.draw_blocks(N // 64, 3, heads=1, seed=0)[0].long(), True)
    here = torch.arange(N // 16)
    fixed = (here[:, None] // 8 == here // 8) | (here % 8 == 7)  # the Sparse Transformer's layout: its stride of blocks, and summaries
    for name, layout, block in (("BigBird blocks of 64", bigbird, 64), ("fixed blocks of 16", fixed, 16)):
        work = PAIR * layout.sum().item() * block**2
        ours = partial(foveate.sparse_attention, pattern=patterns.from_blocks(layout, block))
        masked = partial(scaled_dot_product_attention, attn_mask=layout.repeat_interleave(block, 0).repeat_interleave(block, 1))
        x, y = heads(N, dtype), heads(N, dtype, grad=True)
        yield Row(f"{name} forward N={N}, masked", partial(masked, *x), partial(ours, *x), work)
        if with_flex and block == 64:
            flexed = flex(lambda b, h, i, j, layout=layout: layout[i // 64, j // 64], N)
            yield Row(f"{name} forward N={N}, Flex", partial(flexed, *x), partial(ours, *x), work)
        yield Row(f"{name} backward N={N}, masked", backward(masked, y), backward(ours, y), 2.5 * work)


def relative(dtype: torch.dtype) -> Iterator[Row]:
    N = 2048
    table = torch.randn(1, N, D, dtype=dtype)
    published = partial(with_relative_rows, rows=table)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.ops.foveate._attention(q, k, v, [], rows=table, origin=N - 1, scale=D**-0.5)[0]  # type: ignore[no-any-return]

    x, y = heads(N, dtype), heads(N, dtype, grad=True)
    work = PAIR * N * N
    yield Row(f"XL rows forward N={N}, as published", partial(published, *x), partial(ours, *x), work)
    yield Row(f"XL rows backward N={N}, as published", backward(published, y), backward(ours, y), 2.5 * work)
    yield Row(f"XL rows forward N={N}, over dense", partial(foveate.attention, *x), partial(ours, *x), work)
    yield Row(f"XL rows backward N={N}, over dense", backward(foveate.attention, y), backward(ours, y), 2.5 * work)


def decoding(dtype: torch.dtype) -> Iterator[Row]:
    M, Hk = 65536, 2
    q, (k, v) = torch.randn(1, H, 1, D, dtype=dtype), torch.randn(2, 1, Hk, M, D, dtype=dtype)
    exact = partial(scaled_dot_product_attention, q, k, v, enable_gqa=True)
    yield Row(f"decode 8 over 2 heads M={M}", exact, partial(foveate.attention, q, k, v), 2.0 * M * Hk * D * k.element_size(), "read")


def rows(dtype: torch.dtype, given: argparse.Namespace) -> Iterator[Row]:
    yield from dense(dtype)
    yield from windows(dtype, given.flex)
    yield from blocks(dtype, given.flex)
    yield from relative(dtype)
    yield from decoding(dtype)


if __name__ == "__main__":
    run(__doc__, rows, ("--flex", "compile FlexAttention, too (minutes)"))
