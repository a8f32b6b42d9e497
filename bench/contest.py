"""What the benchmarks share: contestants that take turns, and the table of their times.

`run` puts rows of calls beside what limits them. `duels` puts two writings of one layer beside each other, forward and backward.

For each row of `run`: median milliseconds of the peer and of foveate, how many times faster foveate is (median of the ratios of a round), and
the share of the limit's speed that the useful work of each comes to. The limit is a large product of matrices, or, where work is bound
by memory, a sum that reads it.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from foveate.compare.measure import Call, interleaved_times, peak_extra_bytes

H, D = 8, 64


@dataclass
class Row:
    """A figure: the peer's call and ours, how much useful work they do, and what limits them."""

    name: str
    peer: Call
    ours: Call
    work: float  # floating-point operations, or bytes
    limit: str = "gemm"  # or "read"


def heads(N: int, dtype: torch.dtype, H: int = H, grad: bool = False) -> list[Tensor]:
    """q, k and v, [1,H,N,D]."""
    return [torch.randn(1, H, N, D, dtype=dtype, requires_grad=grad) for _ in range(3)]


def backward(attend: Callable[..., Tensor], inputs: list[Tensor], forward_too: bool = False) -> Call:
    """The gradients of all inputs; alone, or with the forward."""
    if forward_too:
        weights = torch.randn_like(attend(*inputs))
        return lambda: torch.autograd.grad(attend(*inputs), inputs, weights)
    out = attend(*inputs)
    weights = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, inputs, weights, retain_graph=True)


@dataclass
class Duel:
    """The same layer twice: what a user has today, and ours."""

    name: str
    theirs: Callable[..., Tensor]
    ours: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    weights: tuple[list[nn.Parameter], list[nn.Parameter]]
    """Of theirs and of ours."""
    same: bool = True
    """Whether their results must agree."""


def duels(
    parser: argparse.ArgumentParser, makers: Callable[[argparse.Namespace], Iterator[Callable[[], Duel]]], sizes: str, tolerance: float = 1e-3
) -> None:
    """The program: reads the command line, runs each duel, prints the table and the geometric mean."""
    given = _given(parser)
    table = _table(f"forward and backward, float32, {sizes}", given, ("peer ms", "foveate ms", "times faster", "peer MB", "foveate MB"))
    ratios: list[float] = []
    try:
        for make in track(list(makers(given)), description="measuring", console=Console(stderr=True)):
            duel = make()
            if given.only.lower() in duel.name.lower():
                cells, ratio = _fought(duel, given.rounds, tolerance, _clock(given))
                table.add_row(duel.name, *cells)
                ratios.append(ratio)
    except KeyboardInterrupt:
        print("interrupted: what was measured until now", file=sys.stderr)
    Console().print(table)
    if ratios:
        print(f"geometric mean of {len(ratios)}: {statistics.geometric_mean(ratios):.2f} times faster, least {min(ratios):.2f}")


def _fought(duel: Duel, rounds: int, tolerance: float, clock: Callable[[], float]) -> tuple[list[str], float]:
    """The cells of a row, and how many times faster we are."""
    outs = [side(*duel.inputs).detach() for side in (duel.theirs, duel.ours)]
    if duel.same and not torch.allclose(*outs, rtol=tolerance, atol=tolerance * outs[0].abs().max().item()):
        sys.exit(f"{duel.name}: the two differ by {(outs[0] - outs[1]).abs().max():.2e}")
    cotangent = torch.randn_like(outs[0])
    calls = {name: both(*side, duel.inputs, cotangent) for name, side in _sides(duel).items()}
    memory = {name: peak_extra_bytes(call) / 1e6 for name, call in calls.items()}
    times = interleaved_times(calls, "ours", rounds, seed=0, clock=clock)
    ratio = times["theirs"].ratio or math.nan
    cells = [f"{times[side].median_ms:.1f}" for side in ("theirs", "ours")]
    return [*cells, f"{ratio:.2f}", f"{memory['theirs']:.0f}", f"{memory['ours']:.0f}"], ratio


def _sides(duel: Duel) -> dict[str, tuple[Callable[..., Tensor], list[nn.Parameter]]]:
    return {"theirs": (duel.theirs, duel.weights[0]), "ours": (duel.ours, duel.weights[1])}


def first(layer: nn.Module, *inputs: Tensor) -> Tensor:
    """The first result of a layer."""
    out = layer(*inputs)
    return out if isinstance(out, Tensor) else out[0]


def both(side: Callable[..., Tensor], weights: list[nn.Parameter], inputs: tuple[Tensor, ...], cotangent: Tensor) -> Call:
    """Forward, and the gradients of inputs and weights."""
    leaves = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    wanted: list[Tensor] = [x for x in (*leaves, *weights) if x.requires_grad]

    def call() -> object:
        return torch.autograd.grad(side(*leaves), wanted, cotangent, allow_unused=True)

    return call


def _given(parser: argparse.ArgumentParser) -> argparse.Namespace:
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--processor-time", action="store_true", help="instead of time on the clock: on a machine that others use, with one thread")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--markdown", action="store_true", help="a table for a page")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    return given


def _clock(given: argparse.Namespace) -> Callable[[], float]:
    return time.process_time if given.processor_time else time.perf_counter


def _table(title: str, given: argparse.Namespace, columns: Sequence[str]) -> Table:
    title = f"{torch.backends.cpu.get_cpu_capability()}, {given.threads} threads, {title}"
    table = Table(title=title, box=box.MARKDOWN if given.markdown else box.HEAVY_HEAD)
    for column in ("figure", *columns):
        table.add_column(column, justify="left" if column == "figure" else "right")
    return table


def run(description: str | None, rows: Callable[[torch.dtype, argparse.Namespace], Iterator[Row]], *flags: tuple[str, str]) -> None:
    """The program: reads the command line, measures, prints the table. `flags` are further switches and their help."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16", "float64"])
    for flag, meaning in flags:
        parser.add_argument(flag, action="store_true", help=meaning)
    given = _given(parser)
    a, b = torch.randn(2, 1024, 1024)
    stream = torch.randn(1 << 25)  # 128 MiB
    limits: dict[str, tuple[Call, float]] = {"gemm": (lambda: a @ b, 2.0 * 1024**3), "read": (stream.sum, 4.0 * stream.numel())}
    columns = ("peer ms", "foveate ms", "times faster", "peer's share", "our share")
    table = _table(f"{given.dtype}, B=1 H={H} D={D}", given, columns)
    chosen = [row for row in rows(getattr(torch, given.dtype), given) if given.only in row.name]
    for row in track(chosen, description="measuring", console=Console(stderr=True)):
        limit, amount = limits[row.limit]
        times = interleaved_times({"limit": limit, "ours": row.ours, "peer": row.peer}, "ours", given.rounds, seed=0, clock=_clock(given))
        speed = amount / times["limit"].median_ms  # at the limit, per millisecond
        shares = [f"{100 * row.work / times[name].median_ms / speed:.0f} %" for name in ("peer", "ours")]
        table.add_row(row.name, f"{times['peer'].median_ms:.1f}", f"{times['ours'].median_ms:.1f}", f"{times['peer'].ratio:.2f}", *shares)
    Console().print(table)
