"""Time, memory and error of calls.

Time: contestants run one after another within each round, in an order drawn anew, so that a slow moment of the machine
meets them all; medians and quartiles over the rounds. Memory: the high-water mark of torch's CPU allocator during one
call.
"""

from __future__ import annotations

import contextlib
import gc
import math
import operator
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

Call = Callable[[], object]
SHORTEST_SAMPLE = 0.004  # seconds; a quicker call is repeated until a sample lasts this long
MOST_REPEATS = 64


@dataclass(frozen=True)
class Time:
    """Milliseconds of one call, median and quartiles over rounds, and the median ratio to the baseline of a round."""

    median_ms: float
    low_ms: float
    high_ms: float
    ratio: float | None  # None where the baseline was not measured


@dataclass(frozen=True)
class Error:
    """Distance of an output [...,N,Dv] from the exact one."""

    relative: float  # Frobenius norm of the difference over that of the exact output
    worst_row: float  # the largest such ratio of any one position
    cosine: float  # mean over positions of the cosine between the two rows


def interleaved_times(
    calls: Mapping[str, Call],
    baseline: str,
    rounds: int,
    seed: int,
    on_sample: Callable[[], None] = lambda: None,
    clock: Callable[[], float] | None = None,
) -> dict[str, Time]:
    """Times of the calls by `clock` (default: that of the wall), measured in turn within each round."""
    repeats = {name: _repeats(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}  # seconds a call, one per round
    order = list(calls)
    draw = random.Random(seed)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            draw.shuffle(order)
            for name in order:
                samples[name].append(_seconds(calls[name], repeats[name], clock))
                on_sample()
            gc.collect(0)  # what the round left behind, outside the measured time
    finally:
        if collecting:
            gc.enable()
    return {name: _summary(samples[name], samples.get(baseline)) for name in calls}


def peak_extra_bytes(call: Call) -> int:
    """Most bytes held at once beyond those held before the call, output included, as torch's CPU allocator saw it."""
    with _without_profiler_chatter():
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            result = call()
        del result
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def error_against(exact: Tensor, output: Tensor) -> Error:
    """Error of an output against the exact one, both [...,N,Dv]."""
    difference = torch.linalg.vector_norm(output.double() - exact, dim=-1)  # [...,N]
    size = torch.linalg.vector_norm(exact, dim=-1)
    return Error(
        relative=(torch.linalg.vector_norm(difference) / torch.linalg.vector_norm(size)).item(),
        worst_row=(difference / size.clamp(min=1e-12)).max().item(),
        cosine=torch.cosine_similarity(output.double(), exact, dim=-1).mean().item(),
    )


def free_bytes() -> int:
    """Memory this process may still take: what the system has left, or its control group allows if that is less."""
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else ():
        if line.startswith("MemAvailable:"):
            return min(int(line.split()[1]) * 1024, _group_allowance())
    return _group_allowance()


def predicted_bytes(known: Sequence[tuple[int, int]], length: int) -> int:
    """Memory at `length`, from (length, bytes) of shorter ones: a power law through the last two, at least linear."""
    if not known:
        return 0
    last_length, last_bytes = known[-1]
    power = 1.0
    if len(known) > 1 and known[-2][1] > 0 and last_bytes > 0:
        power = math.log(last_bytes / known[-2][1]) / math.log(last_length / known[-2][0])
    return int(last_bytes * (length / last_length) ** min(max(power, 1.0), 2.0))


@contextlib.contextmanager
def _without_profiler_chatter() -> Iterator[None]:
    """Keeps the profiler's "USDT:" lines, which it writes to the process's stderr, from the user's screen."""
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile() as heard:
        os.dup2(heard.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(real, 2)
            os.close(real)
            heard.seek(0)
            for line in heard.read().decode(errors="replace").splitlines():
                if not line.startswith("USDT:"):
                    print(line, file=sys.stderr)


def _repeats(call: Call) -> int:
    call()  # warm-up: lazy tables, caches, thread pools
    return min(MOST_REPEATS, max(1, math.ceil(SHORTEST_SAMPLE / max(_seconds(call, 1), 1e-9))))


def _seconds(call: Call, repeats: int, clock: Callable[[], float] | None = None) -> float:
    clock = clock or time.perf_counter
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


def _summary(seconds: Sequence[float], baseline: Sequence[float] | None) -> Time:
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 3
    ratio = statistics.median(map(operator.truediv, seconds, baseline)) if baseline else None
    return Time(1e3 * median, 1e3 * low, 1e3 * high, ratio)


def _group_allowance() -> int:
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = (group / "memory.current").read_text().strip()
    except OSError:
        return 1 << 62
    return 1 << 62 if limit == "max" else max(0, int(limit) - int(used))
