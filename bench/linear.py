"""The linear engine against what a user would pick instead: `make bench-linear`.

Causal attention on features (elu + 1): against the same in chunks of 64 written in torch, against torch's exact attention, and without
causality against the two products of matrices that it comes to. The delta rule: against the same in chunks of 64 written in torch.
Crossover: the length from which on linear attention, features and all, is faster than foveate's own causal softmax. Decoding: a thousand
tokens behind the hundredth, the peer, and behind the hundred thousandth.
Performer: against torch's exact attention, and, with --performer, against the package performer-pytorch (`pip install --no-deps
performer-pytorch einops local-attention axial-positional-embedding hyper-connections`). See contest.py for what the columns say.

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
from foveate.compare.measure import Call

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


def chunked_delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """The delta rule in torch: one triangular system for each chunk, all solved at once, then chunk by chunk."""
    q, k, v, beta = (x.unflatten(2, (-1, CHUNK)) for x in (q, k, v, beta.unsqueeze(-1)))  # [B,H,chunks,C,D], [B,H,chunks,C,1]
    system = (beta * (k @ k.transpose(-1, -2))).tril(-1)
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32  # torch solves no systems in half precision
    right = (beta * torch.cat([v, k], -1)).to(wide)
    solved = torch.linalg.solve_triangular(system.to(wide), right, upper=False, unitriangular=True).to(q.dtype)
    scores = (q @ k.transpose(-1, -2)).tril()
    memory, outs = k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1]), []
    sizes = [v.shape[-1], k.shape[-1]]
    for q_c, k_c, scores_c, solved_c in zip(*(x.unbind(2) for x in (q, k, scores, solved)), strict=True):  # [B,H,C,*]
        value, removed = solved_c.split(sizes, -1)
        write = value - removed @ memory
        outs.append(q_c @ memory + scores_c @ write)
        memory = memory + k_c.transpose(-1, -2) @ write
    return torch.cat(outs, 2)


def delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    out: Tensor = torch.ops.foveate._delta_attention(q, k, v, beta, None, None, 0, True)[0]
    return out


def corrected(x: list[Tensor]) -> list[Tensor]:
    """q and k as features that sum to one, and how strongly each token writes; leaves of their own."""
    q, k = ((elu(t.detach()) + 1) / (elu(t.detach()) + 1).sum(-1, keepdim=True) for t in x[:2])
    return [t.requires_grad_(x[0].requires_grad) for t in (q, k, x[2].detach(), torch.rand_like(x[2][..., 0]))]


def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Not causal: two products."""
    return q @ (k.transpose(-1, -2) @ v) / (q @ k.sum(2).unsqueeze(-1) + 1e-6)


def featured(x: list[Tensor]) -> list[Tensor]:
    """q and k as elu(x) + 1, leaves of their own."""
    made = [elu(x[0].detach()) + 1, elu(x[1].detach()) + 1, x[2].detach()]
    return [t.requires_grad_(given.requires_grad) for t, given in zip(made, x, strict=True)]


def performers(dtype: torch.dtype, with_package: bool, N: int = 4096, m: int = 256) -> Iterator[Row]:
    """Attention on 256 positive random features."""
    y = heads(N, dtype, grad=True)
    for causal in (False, True):
        ours = foveate.nn.PerformerAttention(nb_features=m, causal=causal).to(dtype)
        pairs = H * (N // CHUNK) * CHUNK**2 * (m + D) if causal else 0  # half of the pairs of each chunk, two products of them
        work = 3.0 * (pairs + H * N * (2 * 2.0 * m * D + 4.0 * m * D))  # the features of q and k, the sums, and the reading of them
        name = f"Performer, {m} features, {'' if causal else 'not '}causal, both N={N}"
        exact = partial(scaled_dot_product_attention, is_causal=causal)
        yield Row(f"{name}, exact attention", backward(exact, y, True), backward(ours, y, True), work)
        if with_package:
            from performer_pytorch import FastAttention

            theirs = FastAttention(dim_heads=D, nb_features=m, causal=causal).to(dtype)
            yield Row(f"{name}, performer-pytorch", backward(theirs, y, True), backward(ours, y, True), work)


def crossover(dtype: torch.dtype) -> Iterator[Row]:
    """Linear attention of q, k and v, features and all, beside our own causal softmax."""
    ours, softmax = (partial(f, causal=True) for f in (foveate.linear_transformer_attention, foveate.attention))
    for N in (256, 512, 1024):
        x, y = heads(N, dtype), heads(N, dtype, grad=True)
        work = H * (N // CHUNK) * (2.0 * CHUNK**2 * D + 4.0 * CHUNK * D * D)
        yield Row(f"crossover forward N={N}, foveate.attention", partial(softmax, *x), partial(ours, *x), work)
        yield Row(f"crossover both N={N}, foveate.attention", backward(softmax, y, True), backward(ours, y, True), 3.5 * work)


def decoding(dtype: torch.dtype, tokens: int = 1000) -> Iterator[Row]:
    """Token by token behind a long sequence; the peer does the same behind a short one."""
    step = partial(foveate.linear_transformer_attention_step, causal=True)
    state_bytes = 2.0 * H * (D + 1) * D * torch.finfo(dtype).bits / 8  # read and written

    def decode(position: int) -> Call:
        with torch.no_grad():
            start = step(*heads(position, dtype))[1]
        q, k, v = heads(1, dtype)

        def call() -> None:
            state = start
            with torch.no_grad():
                for _ in range(tokens):
                    state = step(q, k, v, state=state)[1]

        return call

    yield Row(f"decode {tokens} tokens at position 100000, at position 100", decode(100), decode(100_000), tokens * state_bytes, "read")


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
        x, y = corrected(heads(N, dtype)), corrected(heads(N, dtype, grad=True))
        work = H * (N // CHUNK) * (4.0 * CHUNK**2 * D + 6.0 * CHUNK * D * D)
        yield Row(f"delta rule forward N={N}, chunks in torch", partial(chunked_delta, *x), partial(delta, *x), work)
        yield Row(f"delta rule both N={N}, chunks in torch", backward(chunked_delta, y, True), backward(delta, y, True), 3.5 * work)
    yield from performers(dtype, given.performer)
    yield from crossover(dtype)
    yield from decoding(dtype)
    x, y = featured(heads(4096, dtype)), featured(heads(4096, dtype, grad=True))
    work = H * 4.0 * 4096 * D * D
    yield Row("whole forward N=4096, two products", partial(whole, *x), partial(foveate.linear_attention, *x), work)
    yield Row("whole both N=4096, two products", backward(whole, y, True), backward(foveate.linear_attention, y, True), 3 * work)


if __name__ == "__main__":
    run(__doc__, rows, ("--performer", "measure performer-pytorch, too; it is to be installed"))
