"""The answer in plain words: which attention to use on this input, and from which length on."""

from __future__ import annotations

from foveate.compare.analysis import FASTER
from foveate.compare.results import Panel, Point, Result

Rival = tuple[Result, Point]


def answer(panel: Panel, tolerance: float) -> list[str]:
    """Sentences on the longest length measured; empty if nothing but the baseline was."""
    length = max((point.length for result in panel.results for point in result.points), default=0)
    measured = [(result, point) for result in panel.results if (point := result.at(length)) and point.forward.ratio is not None]
    rivals = [(result, point) for result, point in measured if result.name != panel.baseline]
    if not rivals:
        return []
    rivals.sort(key=lambda rival: _ratio(rival[1]))
    where = f"For {panel.subject} at N = {length}"
    if panel.kind == "qkv":
        return _attention_answer(rivals, where, tolerance)
    dense = {"map": "the non-local block", "vectors": "multi-head attention"}[panel.kind]
    fastest, point = rivals[0]
    if _ratio(point) >= FASTER:
        return [f"{where}, nothing is faster than {dense}."]
    return [
        f"{where}, {fastest.name} is {_times(point)} faster than {dense}{_training(point)}.{_beginning(fastest, dense)}",
        "These layers learn different functions, so time and memory are compared here, not what they put out.",
    ]


def _attention_answer(rivals: list[Rival], where: str, tolerance: float) -> list[str]:
    """The fastest that stays close to exact attention, or else the closest that is faster; then the fastest of all."""
    stand_ins = [(result, point) for result, point in rivals if result.relation == "approximate"]
    faster = [(result, point) for result, point in stand_ins if _ratio(point) < FASTER]
    faithful = [(result, point) for result, point in faster if _error(point) <= tolerance]
    told: Result | None = None
    if faithful:
        told, point = faithful[0]
        sentences = [
            f"{where}, {told.name} is {_times(point)} faster than exact attention "
            f"with an error of {_percent(_error(point))}{_training(point)}.{_beginning(told, 'exact attention')}"
        ]
    elif faster:
        told, point = min(faster, key=lambda rival: _error(rival[1]))
        sentences = [
            f"{where}, nothing faster than exact attention stays within {_percent(tolerance)} of its result. "
            f"The closest, {told.name}, is {_times(point)} faster with an error of {_percent(_error(point))}."
        ]
    elif not stand_ins:
        sentences = [f"{where}, nobody was there to stand in for exact attention."]
    else:
        sentences = [f"{where}, exact attention is as fast as anything that stands in for it."]
    if faster and faster[0][0] is not told:
        fastest, point = faster[0]
        sentences.append(
            f"If the model can be trained with it, {fastest.name} is the fastest: {_times(point)} faster "
            f"than exact attention{_training(point)}, though dropped in untrained "
            f"it is off by {_percent(_error(point))}."
            f"{_beginning(fastest, 'exact attention')}"
        )
    for result, point in rivals:
        if result.relation == "exact" and _ratio(point) < FASTER:
            sentences.append(f"{result.name} gives the same result as torch's and is {_times(point)} faster{_training(point)}.")
    return sentences


def _ratio(point: Point) -> float:
    return 1.0 if point.forward.ratio is None else point.forward.ratio


def _error(point: Point) -> float:
    return float("inf") if point.error is None else point.error.relative


def _training(point: Point) -> str:
    ratio = point.training.ratio if point.training else None
    if ratio is None:
        return ""
    faster = f"{_number(1 / ratio)} times" if ratio < 1 else f"but {_number(ratio)} times slower"
    return f" ({faster} in training)"


def _beginning(result: Result, dense: str) -> str:
    """From which length on it pays."""
    crossing = result.crossover
    if crossing is None or crossing.kind == "never":
        return ""
    if crossing.kind == "always" or crossing.length is None:
        return f" It is faster at every length measured, from N = {result.points[0].length} on."
    return f" Below N = {crossing.length} {dense} wins."


def _times(point: Point) -> str:
    return f"{_number(1 / _ratio(point))} times"


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share < 0.0995 and share != round(share, 2) else f"{100 * share:.0f} %"
