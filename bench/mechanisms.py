"""Every mechanism against its paper's equations written straight in torch: `make bench-mechanisms`.

Forward and backward together, of inputs and weights, in float32, in turns within each round; the two must agree before they are measured.
The last columns say how much memory each holds at once beyond what it was given. The last line is the geometric mean over the rows. With
--exact every mechanism that takes queries, keys and values at N=4096 runs beside torch's exact attention instead.

    python bench/mechanisms.py [--threads 1] [--rounds 5] [--only CCNet] [--exact]
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import eager
import torch
from contest import Duel, duels
from torch import Tensor, nn

import foveate
from foveate.compare.contestants import SDPA, choose
from foveate.compare.inputs import Size

E, HEADS, N = 512, 8, 4096
LAYER = {"embed_dim": E, "num_heads": HEADS}
MAP = (2, 64, 64, 64)  # B, C, H, W

Eager = Callable[[Any, Tensor], Tensor]


def duel(name: str, form: str, by_hand: Eager, shape: tuple[int, ...], **options: Any) -> Duel:
    """A layer with its defaults and these options, evaluated, beside the same by hand on the same weights."""
    layer = getattr(foveate.nn, form)(**options).eval()
    with torch.no_grad():
        for weight in layer.parameters():  # gates that start at zero would hide what they gate
            weight.add_(0.02 * torch.randn_like(weight))
    return Duel(name, partial(by_hand, layer), partial(_first, layer), (torch.randn(shape),), (list(layer.parameters()),) * 2)


def _first(layer: nn.Module, *inputs: Tensor) -> Tensor:
    out = layer(*inputs)
    return out if isinstance(out, Tensor) else out[0]


def mechanisms() -> Iterator[Callable[[], Duel]]:
    """Against the equations by hand."""
    sequence = (1, N, E)
    shorter = (1, 1024, E)
    make = partial(partial, duel)
    yield make("Nystromformer, 64 landmarks", "Nystromformer", eager.nystromformer, sequence, **LAYER)
    yield make("Synthesizer, dense, N=1024", "Synthesizer", eager.synthesizer, shorter, max_len=1024, **LAYER)
    yield make("Synthesizer, random, N=1024", "Synthesizer", eager.synthesizer, shorter, max_len=1024, kinds=["random"], **LAYER)
    yield make(
        "Synthesizer, factorised random, N=1024", "Synthesizer", eager.synthesizer, shorter, max_len=1024, kinds=["factorized_random"], **LAYER
    )
    yield make("Input-independent, N=1024", "InputIndependentAttention", eager.input_independent, shorter, max_len=1024, **LAYER)
    yield make("Memory-compressed, 3 tokens a slot", "MemoryCompressedAttention", eager.memory_compressed, sequence, left_padded=True, **LAYER)
    for variant in ("qkv", "kv"):
        yield make(f"Kronecker attention, {variant}", "KroneckerAttention", eager.kronecker, MAP, in_channels=MAP[1], variant=variant)
    yield make("Global context block", "GlobalContextBlock", eager.global_context, MAP, in_channels=MAP[1])
    yield make("EMA unit, 64 bases", "EMAU", eager.ema_unit, MAP, in_channels=MAP[1])


def beside_exact() -> Iterator[Callable[[], Duel]]:
    """Each contestant of `foveate compare` on queries, keys and values beside torch's exact attention."""
    size = Size(N, HEADS, E // HEADS)
    qkv = tuple(torch.randn(1, HEADS, N, E // HEADS) for _ in range(3))
    for contestant in choose(["qkv"], None)[0]:
        if not contestant.baseline:
            yield lambda each=contestant: _beside(each, size, qkv)  # type: ignore[misc]


def _beside(contestant: Any, size: Size, qkv: tuple[Tensor, ...]) -> Duel:
    ours, exact = (each.build(size, torch.float32) for each in (contestant, SDPA))
    return Duel(contestant.name, exact, ours, qkv, ([], list(ours.parameters())), same=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exact", action="store_true", help="beside torch's exact attention")
    duels(parser, lambda given: beside_exact() if given.exact else mechanisms(), f"B=1 N={N} E={E} H={HEADS}; maps {list(MAP)}")


if __name__ == "__main__":
    main()
