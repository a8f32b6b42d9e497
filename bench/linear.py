"""The linear engine against what a user would pick instead: `make bench-linear`.

Causal attention on features (elu + 1): against the same in chunks of 64 written in torch, against torch's exact attention, and without
causality against the two products of matrices that it comes to. See contest.py for what the columns say.

    python bench/linear.py [--threads 1] [--dtype float32] [--rounds 7] [--only causal]
"""

import argparse
from collections.abc import Iterator
from functools import partial

import torch
from contest import D, H, Row, backward, heads, run
from torch import Tensor
from torch.nn.functional import elu, scaled_dot_product_attention

import foveate

CHUNK = 64


def chunked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Ten lines of torch: within a chunk all pairs, before it the running sums."""
    q, k, v = (x.unflatten(2, (-1, CHUNK)) for x in (q, k, v))  # [B,H,chunks,C,D]
    sums = (k.transpose(-1, -2) @ v).cumsum(2)
    before = torch.cat([torch.zeros_like(sums[:, :, :1]), sums[:, :, :-1]], 2)
    keys = k.sum(3, keepdim=True).cumsum(2)
    keys_before = torch.cat([torch.zeros_like(keys[:, :, :1]), keys[:, :, :-1]], 2)
    scores = (q @ k.transpose(-1, -2)).tril()
    out = scores @ v + q @ before
    total = scores.sum(-1, keepdim=True) + q @ keys_before.transpose(-1, -2)
    return (out / (total + 1e-6)).flatten(2, 3)


def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Not causal: two products."""
    return q @ (k.transpose(-1, -2) @ v) / (q @ k.sum(2).unsqueeze(-1) + 1e-6)


def featured(x: list[Tensor]) -> list[Tensor]:
    """q and k as elu(x) + 1, leaves of their own."""
    made = [elu(x[0].detach()) + 1, elu(x[1].detach()) + 1, x[2].detach()]
    return [t.requires_grad_(given.requires_grad) for t, given in zip(made, x, strict=True)]


def rows(dtype: torch.dtype, given: argparse.Namespace) -> Iterator[Row]:
    ours = partial(foveate.linear_attention, causal=True)
    exact = partial(scaled_dot_product_attention, is_causal=True)
    for N in (512, 4096):
        x, y = featured(heads(N, dtype)), featured(heads(N, dtype, grad=True))
        work = H * (N // CHUNK) * (2.0 * CHUNK**2 * D + 4.0 * CHUNK * D * D)  # half of the pairs of each chunk, and the sums
        yield Row(f"causal forward N={N}, chunks in torch", partial(chunked, *x), partial(ours, *x), work)
        yield Row(f"causal both N={N}, chunks in torch", backward(chunked, y, True), backward(ours, y, True), 3.5 * work)
        yield Row(f"causal forward N={N}, exact attention", partial(exact, *x), partial(ours, *x), work)
        yield Row(f"causal both N={N}, exact attention", backward(exact, y, True), backward(ours, y, True), 3.5 * work)
    x, y = featured(heads(4096, dtype)), featured(heads(4096, dtype, grad=True))
    work = H * 4.0 * 4096 * D * D
    yield Row("whole forward N=4096, two products", partial(whole, *x), partial(foveate.linear_attention, *x), work)
    yield Row("whole both N=4096, two products", backward(whole, y, True), backward(foveate.linear_attention, y, True), 3 * work)


if __name__ == "__main__":
    run(__doc__, rows)
