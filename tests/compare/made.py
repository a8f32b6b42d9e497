"""Small reports and contestants for the tests, without any measuring."""

import torch
import torch.nn.functional as F

from foveate.compare import analysis
from foveate.compare.answer import answer
from foveate.compare.contestants import SDPA, Contestant
from foveate.compare.inputs import Sample, Size, Source
from foveate.compare.measure import Error, Time
from foveate.compare.results import SCHEMA, Comparison, Dropped, MapSheet, Panel, PhotoSheet, Pixel, Point, Report, Result, Swept, machine, now

LENGTHS = (256, 512, 1024)
BASELINE = SDPA.name


def qkv_source(longest: int = 64) -> Source:
    """Random queries, keys and values, two heads of width 8."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, longest, 8)

    def at(length: int) -> Sample:
        return Sample((q[:, :, :length], k[:, :, :length], v[:, :, :length]), Size(length, 2, 8))

    return Source("qkv", "your text", "random numbers", longest, at)


def contestant(name: str, call: torch.nn.Module, relation: str = "approximate") -> Contestant:
    """A contestant that always builds the same call."""
    return Contestant(name, "qkv", relation, False, lambda size: {}, lambda options: call, None, name)  # type: ignore[arg-type]


class Window(torch.nn.Module):
    """Exact attention within blocks of 16."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.unflatten(2, (-1, 16)) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).flatten(2, 3)


def result(name: str, ratios: tuple[float, ...], error: float | None, relation: str = "approximate", training: float | None = None) -> Result:
    """A result whose baseline takes N^2 nanoseconds."""
    points = [
        Point(
            length=length,
            forward=_time(length, ratio),
            training=_time(length, training) if training else None,
            forward_bytes=1000 * length,
            training_bytes=3000 * length if training else None,
            error=None if error is None else Error(error, 2 * error, 1 - error),
        )
        for length, ratio in zip(LENGTHS, ratios, strict=True)
    ]
    return Result(
        name=name,
        slug=None if name == BASELINE else name.lower(),
        form=name,
        relation=relation,
        paper="2006.04768",
        year=2020,
        claimed_cost="O(N)",
        options={"rank": 4},
        untrained=False,
        points=points,
        exponents={mode: analysis.fitted_exponent(LENGTHS, ratios) for mode in ("forward", "training", "memory")},
        crossover=None if name == BASELINE else analysis.crossover(LENGTHS, ratios),
    )


def panel(*results: Result, tolerance: float = 0.1, kind: str = "qkv") -> Panel:
    """A panel of the baseline and these, with its answer."""
    exact = result(BASELINE, (1, 1, 1), 0.0, "exact")
    bare = Panel(kind, "your text", "random numbers", BASELINE, list(LENGTHS), [], [exact, *results], [Dropped("Big", 1024, "too little memory")])  # type: ignore[arg-type]
    return Panel(**{**vars(bare), "answer": answer(bare, tolerance)})


def comparison() -> Comparison:
    """A comparison with every field filled."""
    settings = {"dtype": "float32", "rounds": 3, "seed": 0, "lengths": list(LENGTHS), "backward": True}
    panels = [panel(result("Fast", (2, 0.5, 0.25), 0.04, training=0.5))]
    left_out = [{"form": "odd_layer", "why": "needs an input of its own"}]
    report = Report(
        SCHEMA,
        now(),
        {"foveate": "0", "torch": "0"},
        machine(),
        settings,
        panels,
        left_out,
        [Swept("Windows", "fast", "windows", "exact attention", 1024, [1, 2], [0.5, 0.25])],
    )
    picture = {BASELINE: ["data:image/png;base64,"], "Fast": ["data:image/png;base64,"]}
    return Comparison(report, MapSheet(4, picture), PhotoSheet("data:image/jpeg;base64,", (4, 6), [Pixel("centre", 0.5, 0.5)], picture))


def _time(length: int, ratio: float) -> Time:
    dense = 1e-6 * length**2
    return Time(dense * ratio, 0.9 * dense * ratio, 1.1 * dense * ratio, ratio)
