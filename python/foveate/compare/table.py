"""The report in a terminal."""

from __future__ import annotations

from collections.abc import Callable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from foveate.compare.measure import Error, Time
from foveate.compare.results import Panel, Point, Report, Result

Cell = Callable[[Result, Point], str]
WIDE = 110  # characters across, from which on there is room for the spread of times
BUSY = 0.5  # load for each core, from which on times are in doubt
TITLES = {"qkv": "Attention over q, k, v", "vectors": "Layers on a sequence of vectors", "map": "Layers on feature maps"}


def show(report: Report, console: Console) -> None:
    """Answers, then one table per kind of input at the longest length measured."""
    for panel in report.panels:
        console.print()
        console.print(_table(panel, console.width))
        for sentence in panel.answer:
            console.print(Text(sentence, style="bold" if sentence is panel.answer[0] else ""))
    if report.sweeps:
        console.print()
        console.print(_sweeps(report))
    load, cores = report.machine["load"], report.machine["cores"]
    if load is not None and load > BUSY * cores:
        console.print(Text(f"the machine was busy (load {load} on {cores} cores): times may mislead", style="yellow"))
    if report.not_compared:
        left = ", ".join(f"{each['form']} ({each['why']})" for each in report.not_compared)
        console.print(Text(f"not compared: {left}", style="dim"))


def exponent_text(value: float | None) -> str:
    """As in N^1.02."""
    return "" if value is None else f"N^{value:.2f}"


def crossover_text(result: Result) -> str:
    """From which length on a contestant is faster than exact attention."""
    crossing = result.crossover
    if crossing is None:
        return ""
    return {
        "measured": str(crossing.length),
        "always": "any",
        "extrapolated": f"{crossing.length}?",
        "never": "-",
    }[crossing.kind]


def bytes_text(size: int | None) -> str:
    """As in 3.2 MB."""
    if size is None:
        return ""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.{0 if size >= 100 * scale else 1}f} {unit}"
    return f"{size / 1e3:.0f} kB"


def _table(panel: Panel, width: int) -> Table:
    length = max((point.length for result in panel.results for point in result.points), default=panel.lengths[-1])
    table = Table(
        title=f"{TITLES[panel.kind]}: {panel.subject}, N = {length}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1),
        collapse_padding=True,
    )
    table.add_column("mechanism", min_width=16, overflow="fold")
    columns = _columns(panel, wide=width >= WIDE)
    for heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True, vertical="bottom")
    rows = [(result, point) for result in panel.results if (point := result.at(length))]
    for result, point in sorted(rows, key=lambda row: row[1].forward.median_ms):
        style = "bold" if result.name == panel.baseline else ""
        table.add_row(result.name, *(cell(result, point) for _, cell in columns), style=style)
    return table


def _columns(panel: Panel, wide: bool) -> list[tuple[str, Cell]]:
    points = [point for result in panel.results for point in result.points]
    training = any(point.training for point in points)
    dense = "exact" if panel.kind == "qkv" else "dense"
    columns: list[tuple[str, Cell]] = [
        ("forward\nms", lambda result, point: _time_text(point.forward, wide)),
        (f"of\n{dense}", lambda result, point: _ratio_text(point.forward)),
    ]
    if training:
        columns += [
            ("fwd+bwd\nms", lambda result, point: _time_text(point.training, wide)),
            (f"of\n{dense}", lambda result, point: _ratio_text(point.training)),
        ]
    columns.append(("memory\n", lambda result, point: bytes_text(point.training_bytes or point.forward_bytes)))
    if any(point.error for point in points):
        columns.append(("error\n", lambda result, point: _error_text(point.error)))
    if wide or not training:
        columns.append(("time\ngrows", lambda result, point: exponent_text(result.exponents["forward"])))
    columns.append(("faster\nfrom N", lambda result, point: crossover_text(result)))
    return columns


def _time_text(time: Time | None, spread: bool) -> str:
    if time is None:
        return ""
    spread_ms = float(f"{(time.high_ms - time.low_ms) / 2:.1g}")
    around = f" ±{spread_ms:g}" if spread else ""
    return (f"{time.median_ms:.3g}" if time.median_ms < 1000 else f"{time.median_ms:.0f}") + around


def _ratio_text(time: Time | None) -> str:
    return "" if time is None or time.ratio is None else f"{time.ratio:.2f}"


def _error_text(error: Error | None) -> str:
    if error is None:
        return ""
    return _percent(error.relative)


def _percent(share: float) -> str:
    return "< 0.01 %" if share < 1e-4 else f"{100 * share:.3g} %"


def _sweeps(report: Report) -> Table:
    """One row for each setting; what the error is a distance from is said where it is not exact attention."""
    table = Table(
        title=f"Error against what is spent, N = {report.sweeps[0].length}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1),
        collapse_padding=True,
    )
    for heading in ("mechanism", "setting", "error"):
        table.add_column(heading, overflow="fold")
    for swept in report.sweeps:
        errors = ", ".join(f"{value}: {_percent(error)}" for value, error in zip(swept.values, swept.errors, strict=True))
        table.add_row(swept.name, swept.setting, errors if swept.against == "exact attention" else f"{errors}, from {swept.against}")
    return table
