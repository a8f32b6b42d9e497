"""The report as data. docs/compare.md documents its JSON form; within one schema number fields are only added."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from foveate.compare.analysis import Crossover
from foveate.compare.inputs import Kind
from foveate.compare.measure import Error, Time

SCHEMA = "foveate.compare/1"


@dataclass(frozen=True)
class Point:
    """One contestant at one length."""

    length: int
    forward: Time
    training: Time | None  # forward and backward together
    forward_bytes: int
    training_bytes: int | None
    error: Error | None  # only where the contestant computes or approximates exact attention


@dataclass(frozen=True)
class Result:
    """One contestant over all lengths."""

    name: str
    slug: str | None  # None: torch's own
    form: str
    relation: str  # "exact", "approximate" or "different"
    paper: str | None  # arXiv id
    year: int | None
    claimed_cost: str | None
    options: Mapping[str, Any]  # at the longest length
    untrained: bool  # it has parameters, which are at their random start
    points: list[Point]
    exponents: Mapping[str, float | None]  # of "forward", "training" and "memory" against length
    crossover: Crossover | None  # None for the baseline

    def at(self, length: int) -> Point | None:
        """The point at one length, if it was measured."""
        return next((point for point in self.points if point.length == length), None)


@dataclass(frozen=True)
class Dropped:
    """A point that was not measured."""

    name: str
    length: int
    why: str


@dataclass(frozen=True)
class Panel:
    """All contestants on one kind of input."""

    kind: Kind
    subject: str
    description: str
    baseline: str
    lengths: list[int]
    answer: list[str]  # sentences
    results: list[Result]
    dropped: list[Dropped]


@dataclass(frozen=True)
class Swept:
    """How the error of an approximation falls with one setting."""

    name: str
    slug: str
    setting: str  # what the values are: rounds, clusters
    against: str  # what the error is a distance from
    length: int
    values: list[int]
    errors: list[float]  # relative


@dataclass(frozen=True)
class Report:
    """Everything `foveate compare` found."""

    schema: str
    created: str  # ISO 8601, UTC
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    panels: list[Panel]
    not_compared: list[Mapping[str, str]]  # forms of the catalogue left out: "form" and "why"
    sweeps: list[Swept] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The documented form."""
        return asdict(self)


@dataclass(frozen=True)
class MapSheet:
    """Attention maps over the first positions of the text, as pictures for the HTML report."""

    positions: int
    pictures: Mapping[str, list[str]]  # by contestant, one data URI per head


@dataclass(frozen=True)
class Pixel:
    """A place on the photo."""

    name: str
    across: float  # from the left, as a share of the width
    down: float


@dataclass(frozen=True)
class PhotoSheet:
    """What chosen pixels of the photo read, as pictures to lay over it."""

    photo: str  # a data URI
    grid: tuple[int, int]  # height and width of the feature map
    pixels: list[Pixel]
    pictures: Mapping[str, list[str]]  # by contestant, one data URI per pixel


@dataclass(frozen=True)
class Comparison:
    """A report and the pictures that go with it."""

    report: Report
    maps: MapSheet | None
    photo: PhotoSheet | None = None


def now() -> str:
    """The present moment, ISO 8601 in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def machine() -> dict[str, Any]:
    """What the numbers depend on, at this moment."""
    return {
        "processor": _processor(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "load": _load(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _load() -> float | None:
    """Processes that wanted a core during the last minute."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
