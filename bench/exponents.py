"""How time and memory grow with the number of positions, beside what a mechanism's card claims of its cost.

Forward and backward together, float32. The exponent is the slope of a line through the logarithms of at least four sizes; the claim is that of
the card's formula with the sizes of the layer put in, fitted over the same positions, so that terms which still count have their part.

    python bench/exponents.py [--threads 1] [--only ccnet] [--rounds 3] [--markdown]
"""

import argparse
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from contest import both, first
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import foveate
from foveate.compare.measure import interleaved_times, peak_extra_bytes

ALLOWED = 0.15
E, C = 64, 64


@dataclass
class Growth:
    """A layer at several sizes: what it is given at each, and the card's formulas of its time and memory there, up to a factor."""

    slug: str
    sizes: Sequence[int]  # lengths of sequences, or sides of square maps
    make: Callable[[int], tuple[nn.Module, tuple[Tensor, ...]]]
    cost: Callable[[float], float]  # of the number of positions
    memory: Callable[[float], float] = float
    maps: bool = True

    def positions(self, size: int) -> int:
        return size**2 if self.maps else size


def layer(form: str, shape: Callable[[int], tuple[int, ...]], **options: Any) -> Callable[[int], tuple[nn.Module, tuple[Tensor, ...]]]:
    """Options that are functions depend on the size."""

    def make(size: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        chosen = {name: value(size) if callable(value) else value for name, value in options.items()}
        return getattr(foveate.nn, form)(**chosen).eval(), (torch.randn(shape(size)),)

    return make


def sequence(n: int) -> tuple[int, ...]:
    return (1, n, E)


def square(n: int) -> tuple[int, ...]:
    return (1, C, n, n)


def compressed(n: float) -> float:
    return n * E * (4 * E + 2 * n / 3)


def quadratic(n: float) -> float:
    return n**2


def table(n: float) -> float:
    """The gradient of the table of two heads, and what is kept and made for tokens."""
    return 2 * n**2 + 24 * n * E


def growths() -> Iterator[Growth]:
    sides, lengths, short = (96, 128, 192, 256), (4096, 8192, 16384, 32768), (1024, 1536, 2048, 3072)  # calls of milliseconds, not of overhead
    same, size = int, {"embed_dim": E, "num_heads": 2}
    yield Growth("nystromformer", lengths, layer("Nystromformer", sequence, **size), float, maps=False)
    yield Growth("synthesizer", short, layer("Synthesizer", sequence, max_len=same, kinds=["random"], **size), quadratic, table, maps=False)
    yield Growth("input-independent", short, layer("InputIndependentAttention", sequence, max_len=same, **size), quadratic, table, maps=False)
    yield Growth(
        "kronecker-attention",
        sides,
        layer("KroneckerAttention", square, in_channels=C, num_heads=2, head_dim=16, variant="kv"),
        lambda n: n * C * (C + 2 * n**0.5),
    )
    yield Growth("memory-compressed", lengths, layer("MemoryCompressedAttention", sequence, **size), compressed, maps=False)
    yield Growth("lambda-networks", sides, layer("LambdaLayer", square, in_channels=C, r=7), float)
    yield Growth("gcnet", sides, layer("GlobalContextBlock", square, in_channels=C), float)
    yield Growth("emanet", sides, layer("EMAU", square, in_channels=C), float)
    yield Growth("ccnet", sides, layer("CrissCrossAttention", square, channels=C), lambda n: n * C * (2.25 * C + 2.25 * n**0.5))
    widths = {"in_channels": C, "key_channels": C // 2, "value_channels": C, "out_channels": C}
    yield Growth("interlaced-sparse", sides, layer("InterlacedSparseBlock", square, **widths), lambda n: n * C * (4 * C + 1.5 * (n / 64 + 64)))
    yield Growth("axial", sides, layer("AxialAttention", square, dim=C, num_heads=2, dim_index=1), lambda n: n * C * (8 * C + 4 * n**0.5))
    yield Growth("autonl", sides, layer("LightNonLocalBlock", square, in_channels=C), float)
    yield Growth("tensor-low-rank", sides, layer("TensorLowRankGate", square, channels=C, height=same, width=same), lambda n: n * (C + 2) + C**2)
    yield Growth("fractal-tanimoto", sides, layer("FractalAttention", square, channels=C), float)


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of the straight line through the logarithms."""
    fit = statistics.linear_regression([math.log(x) for x in xs], [math.log(y) for y in ys])
    return fit.slope


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="mechanisms whose name holds this")
    parser.add_argument("--markdown", action="store_true", help="a table for a page")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    claims = {card.slug: card.cost for card in foveate.catalog()}
    table = Table(box=box.MARKDOWN if given.markdown else box.HEAVY_HEAD)
    for column in ("mechanism", "card", "positions", "time", "claimed", "memory", "claimed", "within 0.15"):
        table.add_column(column)
    for growth in growths():
        if given.only.lower() not in growth.slug:
            continue
        calls = {}
        for size in growth.sizes:
            made, inputs = growth.make(size)
            side = partial(first, made)
            calls[str(size)] = both(side, list(made.parameters()), inputs, torch.ones_like(side(*inputs)))
        places = [float(growth.positions(size)) for size in growth.sizes]
        times = interleaved_times(calls, str(growth.sizes[0]), given.rounds, seed=0)
        fitted = [
            (slope(places, [times[name].low_ms for name in calls]), slope(places, [growth.cost(n) for n in places])),
            (slope(places, [peak_extra_bytes(call) for call in calls.values()]), slope(places, [growth.memory(n) for n in places])),
        ]
        agree = ["yes" if abs(found - claimed) <= ALLOWED else "no" for found, claimed in fitted]
        numbers = [f"{x:.2f}" for pair in fitted for x in pair]
        table.add_row(growth.slug, claims[growth.slug], f"{places[0]:.0f} to {places[-1]:.0f}", *numbers, f"time {agree[0]}, memory {agree[1]}")
    Console().print(table)


if __name__ == "__main__":
    main()
