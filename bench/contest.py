"""What the benchmarks share: rows of contestants that take turns with what limits them, and the table of their times.

For each row: median milliseconds of the peer and of foveate, how many times faster foveate is (median of the ratios of a round), and
the share of the limit's speed that the useful work of each comes to. The limit is a large product of matrices, or, where work is bound
by memory, a sum that reads it.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from foveate.compare.measure import Call, interleaved_times

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


def run(description: str | None, rows: Callable[[torch.dtype, argparse.Namespace], Iterator[Row]], *flags: tuple[str, str]) -> None:
    """The program: reads the command line, measures, prints the table. `flags` are further switches and their help."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16", "float64"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--markdown", action="store_true", help="a table for a page")
    for flag, meaning in flags:
        parser.add_argument(flag, action="store_true", help=meaning)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    a, b = torch.randn(2, 1024, 1024)
    stream = torch.randn(1 << 25)  # 128 MiB
    limits: dict[str, tuple[Call, float]] = {"gemm": (lambda: a @ b, 2.0 * 1024**3), "read": (stream.sum, 4.0 * stream.numel())}
    title = f"{torch.backends.cpu.get_cpu_capability()}, {given.threads} threads, {given.dtype}, B=1 H={H} D={D}"
    table = Table(title=title, box=box.MARKDOWN if given.markdown else box.HEAVY_HEAD)
    for column in ("figure", "peer ms", "foveate ms", "times faster", "peer's share", "our share"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    chosen = [row for row in rows(getattr(torch, given.dtype), given) if given.only in row.name]
    for row in track(chosen, description="measuring", console=Console(stderr=True)):
        limit, amount = limits[row.limit]
        times = interleaved_times({"limit": limit, "ours": row.ours, "peer": row.peer}, "ours", given.rounds, seed=0)
        speed = amount / times["limit"].median_ms  # at the limit, per millisecond
        shares = [f"{100 * row.work / times[name].median_ms / speed:.0f} %" for name in ("peer", "ours")]
        table.add_row(row.name, f"{times['peer'].median_ms:.1f}", f"{times['ours'].median_ms:.1f}", f"{times['peer'].ratio:.2f}", *shares)
    Console().print(table)
