"""Times, memory and errors."""

import itertools

import pytest
import torch

from foveate.compare import measure


class Clock:
    """A clock that only moves when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.seconds)

    def passing(self, *seconds: float) -> measure.Call:
        """A call that takes these times in turn, over and over."""
        turns = itertools.cycle(seconds)

        def call() -> None:
            self.seconds += next(turns)

        return call


def test_times_are_medians_with_quartiles_over_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Clock(monkeypatch).passing(0.5, 0.5, 0.010, 0.020, 0.030, 0.040, 0.050)  # the first two warm up
    time = measure.interleaved_times({"only": call}, "only", rounds=5, seed=0)["only"]
    assert (time.low_ms, time.median_ms, time.high_ms) == pytest.approx((20, 30, 40))


def test_ratio_is_the_median_of_ratios_within_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)  # a machine that slows down from round to round
    calls = {"dense": clock.passing(1, 1, 0.01, 0.02, 0.04), "fast": clock.passing(1, 1, 0.005, 0.01, 0.02)}
    times = measure.interleaved_times(calls, "dense", rounds=3, seed=0)
    assert times["fast"].ratio == pytest.approx(0.5)
    assert times["dense"].ratio == pytest.approx(1.0)


def test_ratio_is_none_where_the_baseline_was_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    times = measure.interleaved_times({"fast": Clock(monkeypatch).passing(0.01)}, "dense", rounds=2, seed=0)
    assert times["fast"].ratio is None


def test_every_contestant_runs_once_in_every_round() -> None:
    ran: list[str] = []

    def slow(name: str) -> measure.Call:
        def call() -> None:
            ran.append(name)
            measure.time.sleep(0.005)

        return call

    measure.interleaved_times({name: slow(name) for name in "abc"}, "a", rounds=4, seed=1)
    rounds = [tuple(ran[start : start + 3]) for start in range(6, len(ran), 3)]
    assert len(rounds) == 4
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 1, "the order is drawn anew"


def test_peak_memory_counts_what_is_held_at_once() -> None:
    def call() -> torch.Tensor:
        first = torch.zeros(1000)  # 4000 bytes
        del first
        second = torch.zeros(2000)
        return torch.cat([second, second])  # 8000 + 16000 at once

    assert measure.peak_extra_bytes(call) == 24000


def test_peak_memory_leaves_the_screen_alone(capfd: pytest.CaptureFixture[str]) -> None:
    measure.peak_extra_bytes(lambda: torch.zeros(10))
    assert capfd.readouterr().err == ""


def test_error_of_the_exact_output_is_zero() -> None:
    exact = torch.randn(1, 2, 5, 3, dtype=torch.float64)
    error = measure.error_against(exact, exact)
    assert (error.relative, error.worst_row) == (0, 0)
    assert error.cosine == pytest.approx(1)


def test_error_is_relative_and_knows_the_worst_row() -> None:
    exact = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    error = measure.error_against(exact, torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
    assert error.relative == pytest.approx(2 / 5)
    assert error.worst_row == pytest.approx(2 / 4)


@pytest.mark.parametrize(("known", "expected"), [([(256, 10), (512, 40)], 160), ([(256, 10), (512, 20)], 40), ([], 0)])
def test_memory_is_predicted_by_the_power_law_seen_so_far(known: list[tuple[int, int]], expected: int) -> None:
    assert measure.predicted_bytes(known, 1024) == expected


def test_free_memory_is_known() -> None:
    assert measure.free_bytes() > 1_000_000
