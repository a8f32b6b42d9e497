"""Forward and backward of self-attention modules: Hugging Face's transformers beside foveate, with the same weights and inputs.

    python bench/bench_huggingface.py --length 4096 --rounds 5

Both run in turns, so that whatever else the machine does falls on both; the figures are medians, and the ratio is theirs over ours.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import BigBirdConfig, LongformerConfig
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

import foveate

E, HEADS = 768, 12
SHAPE = {"hidden_size": E, "num_attention_heads": HEADS, "attention_probs_dropout_prob": 0.0}
SIZE = {"embed_dim": E, "num_heads": HEADS}


@dataclass(frozen=True)
class Pair:
    """The same attention twice."""

    name: str
    theirs: Callable[[Tensor], Tensor]
    ours: Callable[[Tensor], Tensor]
    parameters: tuple[list[Tensor], list[Tensor]]


def longformer(n: int, batch: int, globals_: int, **options: int) -> Pair:
    """The base model's window of 256 on each side, with so many global tokens in front."""
    theirs = LongformerSelfAttention(LongformerConfig(attention_window=[512], **SHAPE), layer_id=0).eval()
    ours = foveate.nn.LongformerSelfAttention(window=256, **options, **SIZE)
    ours.load_state_dict(theirs.state_dict())
    chosen = torch.arange(n).expand(batch, n) < globals_
    extended = chosen.float() * 10000
    theirs_given = {"attention_mask": extended, "is_index_masked": extended < 0, "is_index_global_attn": chosen, "is_global_attn": globals_ > 0}
    mask = chosen if globals_ and "global_tokens" not in options else None
    how = "".join(f", {name}={value}" for name, value in options.items())
    return Pair(
        f"Longformer, {globals_} global{how}",
        lambda x: theirs(x, **theirs_given)[0],
        lambda x: ours(x, global_mask=mask),
        (list(theirs.parameters()), list(ours.parameters())),
    )


def bigbird(n: int, batch: int) -> Pair:
    """The released model's blocks of 64, 3 of them random; its table outside training."""
    theirs = BigBirdBlockSparseAttention(BigBirdConfig(block_size=64, num_random_blocks=3, **SHAPE), seed=0).eval()
    ours = foveate.nn.BigBirdSelfAttention(block=64, num_random_blocks=3, draw="zero", **SIZE)
    ours.load_state_dict(theirs.state_dict())
    blocked, band, rows, columns = BigBirdModel.create_masks_for_block_sparse_attn(torch.ones(batch, n), 64)
    return Pair(
        "BigBird, blocks of 64",
        lambda x: theirs(x, band, rows, columns, blocked, blocked)[0],
        ours,
        (list(theirs.parameters()), list(ours.parameters())),
    )


def pairs(n: int, batch: int) -> Iterator[Pair]:
    yield longformer(n, batch, 0)
    yield longformer(n, batch, 1, max_globals=1)
    yield longformer(n, batch, 1, global_tokens=1)
    yield longformer(n, batch, 64, max_globals=64)
    yield longformer(n, batch, 64, global_tokens=64)
    yield longformer(n, batch, 64)
    yield bigbird(n, batch)


def seconds(run: Callable[[Tensor], Tensor], x: Tensor, parameters: list[Tensor], cotangent: Tensor) -> tuple[float, Tensor]:
    """How long forward and backward take, and the output."""
    for parameter in parameters:
        parameter.grad = None
    leaf = x.clone().requires_grad_()
    start = time.perf_counter()
    out = run(leaf)
    out.backward(cotangent)
    return time.perf_counter() - start, out.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=4096, help="tokens, a multiple of 512")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help="part of the names of those to run")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    x, cotangent = torch.randn(2, asked.batch, asked.length, E)
    print(
        f"N = {asked.length}, B = {asked.batch}, E = {E}, H = {HEADS}, float32, {asked.threads} threads; forward + backward, median of {asked.rounds}"
    )
    print(f"{'':40}{'transformers':>14}{'foveate':>10}{'ratio':>8}")
    for pair in pairs(asked.length, asked.batch):
        if asked.only.lower() not in pair.name.lower():
            continue
        times: tuple[list[float], list[float]] = ([], [])
        for turn in range(asked.rounds + 1):  # the first warms up
            results = []
            for side, run in enumerate((pair.theirs, pair.ours)):
                took, out = seconds(run, x, pair.parameters[side], cotangent)
                results.append(out)
                if turn:
                    times[side].append(took)
            if not torch.allclose(*results, rtol=1e-3, atol=1e-4):
                sys.exit(f"{pair.name}: the two differ by {(results[0] - results[1]).abs().max():.2e}")
        theirs, ours = (statistics.median(side) for side in times)
        print(f"{pair.name:40}{theirs * 1e3:11.0f} ms{ours * 1e3:7.0f} ms{theirs / ours:7.1f}x", flush=True)


if __name__ == "__main__":
    main()
