"""Measures one panel: every contestant at every length of one kind of input."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foveate.compare import analysis, measure
from foveate.compare.answer import answer
from foveate.compare.contestants import Contestant, exact_output
from foveate.compare.inputs import Sample, Source, choose_lengths
from foveate.compare.results import Dropped, Panel, Point, Result
from foveate.compare.settings import DTYPES, Mode, Settings, Watcher

SHARE_OF_FREE = 0.8  # of free memory, that one call may take
PROBED_LENGTHS = (256, 512)  # where memory is learnt before a first length beyond 1024 is tried


@dataclass(frozen=True)
class _Ready:
    """A contestant built for one length, tried once."""

    contestant: Contestant
    calls: dict[Mode, measure.Call]
    bytes: dict[Mode, int]
    error: measure.Error | None
    untrained: bool


def work(source: Source, contestants: Sequence[Contestant], settings: Settings) -> float:
    """Amount of work of a panel, in the unit that Watcher.advance hears."""
    lengths, _ = choose_lengths(settings.lengths, source)
    return sum(_length_work(length, len(contestants), settings) for length in lengths)


def run_panel(source: Source, contestants: Sequence[Contestant], settings: Settings, watcher: Watcher) -> Panel:
    """Measures contestants on one source."""
    lengths, too_long = choose_lengths(settings.lengths, source)
    if too_long:
        named = ", ".join(map(str, too_long))
        watcher.warn(f"{source.subject} has {source.longest} positions: left out length {named}")
    baseline = next((contestant.name for contestant in contestants if contestant.baseline), contestants[0].name)
    points: dict[str, list[Point]] = {contestant.name: [] for contestant in contestants}
    memory = {contestant.name: _probed_memory(contestant, source, lengths[0], settings) for contestant in contestants}
    untrained: set[str] = set()
    dropped: list[Dropped] = []
    measured_lengths: list[int] = []

    for length in lengths:
        sample = source.at(length).to(DTYPES[settings.dtype])
        measured_lengths.append(sample.size.length)
        exact = exact_output(sample) if source.kind == "qkv" else None
        share = _length_work(length, len(contestants), settings) / len(contestants)
        ready: list[_Ready] = []
        for contestant in contestants:
            try:
                ready.append(_prepare(contestant, sample, exact, memory[contestant.name], settings))
            except _RefusedError as refused:
                dropped.append(Dropped(contestant.name, sample.size.length, str(refused)))
                watcher.warn(f"{contestant.name} at N = {sample.size.length} left out: {refused}")
                watcher.advance(share)
            else:
                watcher.advance(share / (settings.rounds + 1))
        for name, point in _timed(ready, baseline, sample.size.length, settings, watcher, share).items():
            points[name].append(point)
        untrained |= {each.contestant.name for each in ready if each.untrained}

    results = [_result(contestant, source, lengths, points[contestant.name], baseline, untrained) for contestant in contestants]
    panel = Panel(source.kind, source.subject, source.description, baseline, measured_lengths, [], results, dropped)
    return dataclasses.replace(panel, answer=answer(panel, settings.tolerance))


class _RefusedError(Exception):
    """Why a contestant is not measured at a length."""


def _prepare(contestant: Contestant, sample: Sample, exact: Tensor | None, memory: list[tuple[int, int]], settings: Settings) -> _Ready:
    """Builds the calls, runs each once and learns its memory, unless that would not fit."""
    length = sample.size.length
    needed, allowed = measure.predicted_bytes(memory, length), _allowed_bytes(settings)
    if needed > allowed:
        raise _RefusedError(f"too little memory: about {_gigabytes(needed)} needed, {_gigabytes(allowed)} to be had")
    try:
        call = _built(contestant, sample, settings)
        with torch.no_grad():
            torch.manual_seed(settings.seed)
            output = call(*sample.tensors)
        if not torch.isfinite(output).all():
            raise _RefusedError("its output holds NaN or infinite numbers")
        judged = exact if contestant.relation != "different" else None
        error = None if judged is None else measure.error_against(judged, output)
        calls: dict[Mode, measure.Call] = {"forward": _forward_call(call, sample)}
        if settings.backward:
            calls["training"] = _training_call(contestant, sample, output, settings)
        del output
        taken = {mode: measure.peak_extra_bytes(timed) for mode, timed in calls.items()}
    except (RuntimeError, ValueError, TypeError, MemoryError, NotImplementedError) as problem:
        raise _RefusedError(_one_line(problem)) from None
    memory.append((length, max(taken.values())))
    return _Ready(contestant, calls, taken, error, untrained=any(True for _ in call.parameters()))


def _timed(ready: Sequence[_Ready], baseline: str, length: int, settings: Settings, watcher: Watcher, share: float) -> dict[str, Point]:
    """Points of the contestants that are ready, timed in turn."""
    times: dict[Mode, dict[str, measure.Time]] = {}
    advance = functools.partial(watcher.advance, share / (settings.rounds + 1) / len(settings.modes))
    for mode in settings.modes:
        calls = {each.contestant.name: each.calls[mode] for each in ready}
        times[mode] = measure.interleaved_times(calls, baseline, settings.rounds, settings.seed, advance)
    return {
        each.contestant.name: Point(
            length,
            times["forward"][each.contestant.name],
            times["training"][each.contestant.name] if settings.backward else None,
            each.bytes["forward"],
            each.bytes.get("training"),
            each.error,
        )
        for each in ready
    }


def _probed_memory(contestant: Contestant, source: Source, shortest: int, settings: Settings) -> list[tuple[int, int]]:
    """Memory at short lengths, so that even the first length asked for is not tried blindly."""
    known: list[tuple[int, int]] = []
    for length in PROBED_LENGTHS if shortest > 2 * PROBED_LENGTHS[-1] else ():
        try:
            _prepare(contestant, source.at(length).to(DTYPES[settings.dtype]), None, known, settings)
        except _RefusedError:
            return known
    return known


def _built(contestant: Contestant, sample: Sample, settings: Settings) -> nn.Module:
    torch.manual_seed(settings.seed)
    return contestant.build(sample.size, DTYPES[settings.dtype])


def _forward_call(call: nn.Module, sample: Sample) -> measure.Call:
    def forward() -> Tensor:
        with torch.no_grad():
            return call(*sample.tensors)  # type: ignore[no-any-return]

    return forward


def _training_call(contestant: Contestant, sample: Sample, output: Tensor, settings: Settings) -> measure.Call:
    call = _built(contestant, sample, settings)
    inputs = [tensor.detach().clone().requires_grad_() for tensor in sample.tensors]
    wanted = inputs + [parameter for parameter in call.parameters() if parameter.requires_grad]
    cotangent = torch.randn_like(output)

    def train() -> object:
        return torch.autograd.grad(call(*inputs), wanted, cotangent, allow_unused=True)

    return train


def _result(contestant: Contestant, source: Source, lengths: Sequence[int], points: list[Point], baseline: str, untrained: set[str]) -> Result:
    card = contestant.card
    measured = [point.length for point in points]
    costs = {
        "forward": [point.forward.median_ms for point in points],
        "training": [point.training.median_ms if point.training else 0.0 for point in points],
        "memory": [float(point.forward_bytes) for point in points],
    }
    ratios = {point.length: point.forward.ratio for point in points if point.forward.ratio is not None}
    return Result(
        name=contestant.name,
        slug=card.slug if card else None,
        form=contestant.form,
        relation=contestant.relation,
        paper=card.paper if card else None,
        year=card.year if card else None,
        claimed_cost=card.cost if card else "O(N^2)",
        options=dict(contestant.options(source.at(lengths[-1]).size)),
        untrained=contestant.name in untrained,
        points=points,
        exponents={name: analysis.fitted_exponent(measured, values) for name, values in costs.items()},
        crossover=None if contestant.name == baseline else analysis.crossover(list(ratios), list(ratios.values())),
    )


def _length_work(length: int, contestants: int, settings: Settings) -> float:
    """Time grows faster than length for the dense contestants and like it for the others; so does this."""
    return length * math.sqrt(length) * contestants * len(settings.modes)


def _allowed_bytes(settings: Settings) -> int:
    return settings.memory_limit if settings.memory_limit is not None else int(SHARE_OF_FREE * measure.free_bytes())


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _one_line(problem: BaseException) -> str:
    first = str(problem).strip().splitlines()
    text = first[0] if first else type(problem).__name__
    if "can't allocate memory" in text or "not enough memory" in text:
        return "too little memory"
    return text
