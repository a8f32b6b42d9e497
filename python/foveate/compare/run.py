"""Runs a whole comparison: a panel for each kind of input, and the attention maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch

import foveate
from foveate.compare import maps
from foveate.compare.contestants import Contestant, choose
from foveate.compare.inputs import Source
from foveate.compare.panel import run_panel, work
from foveate.compare.results import SCHEMA, Comparison, MapSheet, PhotoSheet, Pixel, Report, machine, now
from foveate.compare.settings import Settings, Watcher
from foveate.compare.sweeps import run_sweeps

__all__ = ["Settings", "Watcher", "compare", "total_work"]
MAP_POSITIONS = 128
SILENT = Watcher()
MAP_HEADS = 12
PHOTO_POSITIONS, PHOTO_WIDTH = 1024, 640
PIXELS = [
    Pixel("centre", 0.5, 0.5),
    *(
        Pixel(f"{high} {side}", across, down)
        for high, down in (("upper", 0.25), ("lower", 0.75))
        for side, across in (("left", 0.25), ("right", 0.75))
    ),
]


def compare(sources: Sequence[Source], settings: Settings, mechanisms: Sequence[str] | None = None, watcher: Watcher = SILENT) -> Comparison:
    """Compares mechanisms (their slugs; None: all that apply) on each source."""
    contestants, left_out = choose([source.kind for source in sources], mechanisms)
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads or threads)
    before = machine()  # its load is not yet our own
    try:
        taking = [(source, _for(source, contestants)) for source in sources]
        panels = [run_panel(source, takers, settings, watcher) for source, takers in taking if takers]
        attended = [source for source in sources if source.kind == "qkv"]
        report = Report(
            schema=SCHEMA,
            created=now(),
            versions={"foveate": foveate.__version__, "torch": torch.__version__},
            machine=before,
            settings=asdict(settings),
            panels=panels,
            not_compared=[{"form": form, "why": why} for form, why in left_out],
            sweeps=[swept for source in attended for swept in run_sweeps(source, mechanisms, settings)],
        )
        return Comparison(report, _map_sheet(sources, contestants, settings), _photo_sheet(sources, contestants, settings))
    finally:
        torch.set_num_threads(threads)


def total_work(sources: Sequence[Source], settings: Settings, mechanisms: Sequence[str] | None) -> float:
    """Amount of work of the whole comparison, in the unit that Watcher.advance hears."""
    contestants, _ = choose([source.kind for source in sources], mechanisms)
    return sum(work(source, _for(source, contestants), settings) for source in sources)


def _for(source: Source, contestants: Sequence[Contestant]) -> list[Contestant]:
    return [contestant for contestant in contestants if contestant.kind == source.kind]


def _map_sheet(sources: Sequence[Source], contestants: Sequence[Contestant], settings: Settings) -> MapSheet | None:
    """Maps of every contestant over q, k and v, all shown at the brightness of the exact map of the same head."""
    source = next((source for source in sources if source.kind == "qkv"), None)
    if source is None:
        return None
    sample = source.at(min(MAP_POSITIONS, source.longest))
    q, k = (tensor.contiguous() for tensor in sample.tensors[:2])
    pictures: dict[str, list[str]] = {}
    brightest: list[float] = []
    for contestant in _for(source, contestants):  # the baseline comes first
        torch.manual_seed(settings.seed)
        try:
            call = contestant.build(sample.size, torch.float32)
            weights = maps.attention_map(call, q, k, settings.seed)[:MAP_HEADS]
        except (RuntimeError, ValueError, TypeError):
            continue  # its panel says why it cannot run
        brightest = brightest or [maps.brightest_of(head) for head in weights]
        shades = map(maps.shades, weights, brightest)
        pictures[contestant.name] = [maps.data_uri(indices) for indices in shades]
    return MapSheet(sample.size.length, pictures)


def _photo_sheet(sources: Sequence[Source], contestants: Sequence[Contestant], settings: Settings) -> PhotoSheet | None:
    """What each layer's output at some pixels of the photo depends on, each map at its own brightness."""
    source = next((source for source in sources if source.photo is not None), None)
    if source is None or source.photo is None:
        return None
    sample = source.at(min(PHOTO_POSITIONS, source.longest))
    (x,) = sample.tensors
    height, width = x.shape[2:]
    places = [(int(pixel.down * height), int(pixel.across * width)) for pixel in PIXELS]
    pictures: dict[str, list[str]] = {}
    for contestant in _for(source, contestants):
        torch.manual_seed(settings.seed)
        try:
            call = maps.opened(contestant.build(sample.size, torch.float32))
            weights = [maps.reading_map(call, x, place, settings.seed) for place in places]
        except (RuntimeError, ValueError, TypeError):
            continue  # its panel says why it cannot run
        if all(bool(each.any()) for each in weights):  # the EMA unit passes no gradient
            pictures[contestant.name] = [maps.data_uri(maps.shades(each, maps.brightest_of(each))) for each in weights]
    return PhotoSheet(maps.jpeg_uri(source.photo, PHOTO_WIDTH), (height, width), PIXELS, pictures)
