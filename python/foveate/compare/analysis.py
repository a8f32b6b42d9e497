"""What the numbers say: cost exponents, crossover lengths and the answer in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FITTED_LENGTHS = 3  # an exponent is fitted over the longest three, where fixed costs weigh least
FASTER = 0.95  # a ratio to exact attention below this counts as faster; from here to 1 it is a tie
FARTHEST = 16  # a crossover is extrapolated to at most this many times the longest length


@dataclass(frozen=True)
class Crossover:
    """From which length on a contestant is faster than exact attention."""

    kind: Literal["measured", "always", "extrapolated", "never"]
    length: int | None  # measured or extrapolated


def fitted_exponent(lengths: Sequence[int], values: Sequence[float]) -> float | None:
    """p of value ~ N^p, by least squares in logarithms over the longest lengths; None below two lengths."""
    points = [(math.log(n), math.log(value)) for n, value in zip(lengths, values, strict=True) if value > 0]
    points = sorted(points)[-FITTED_LENGTHS:]
    if len(points) < 2:
        return None
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def crossover(lengths: Sequence[int], ratios: Sequence[float]) -> Crossover:
    """Where the ratio to exact attention falls below 1 for good, interpolated in logarithms between lengths."""
    logs = [math.log(ratio) for ratio in ratios]
    if not logs or FASTER <= ratios[-1] <= 1:  # a tie
        return Crossover("never", None)
    slower = [index for index, value in enumerate(logs) if value >= 0]
    if not slower:
        return Crossover("always", None)
    last = slower[-1]
    if last + 1 < len(logs):
        share = logs[last] / (logs[last] - logs[last + 1])
        return Crossover("measured", round(lengths[last] * (lengths[last + 1] / lengths[last]) ** share))
    slope = fitted_exponent(lengths, ratios)
    if slope is not None and slope < -0.05:
        length = lengths[-1] * math.exp(-logs[-1] / slope)
        if length <= FARTHEST * lengths[-1]:
            return Crossover("extrapolated", round(length))
    return Crossover("never", None)
