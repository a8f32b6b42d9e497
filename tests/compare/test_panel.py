"""Measuring one panel, with small contestants."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from foveate.compare import measure
from foveate.compare.contestants import SDPA
from foveate.compare.panel import run_panel, work
from foveate.compare.settings import Settings, Watcher
from tests.compare.made import Window, contestant, qkv_source

SETTINGS = Settings(lengths=(16, 32, 64), rounds=2, backward=True)
WINDOW = contestant("Window", Window())


class Failing(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise ValueError("length must be even\nand more")


class Hungry(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return v + torch.zeros(q.shape[2], q.shape[2], 100).sum() * 0


def test_every_contestant_has_every_measure_at_every_length() -> None:
    panel = run_panel(qkv_source(), [SDPA, WINDOW], SETTINGS, Watcher())
    assert panel.lengths == [16, 32, 64]
    assert panel.baseline == SDPA.name
    for result in panel.results:
        assert [point.length for point in result.points] == [16, 32, 64]
        assert all(point.training and point.training_bytes and point.forward_bytes for point in result.points)
        assert result.exponents["forward"] is not None
    assert panel.results[0].crossover is None


def test_error_is_zero_for_exact_attention_and_grows_with_what_a_window_misses() -> None:
    sdpa, window = run_panel(qkv_source(), [SDPA, WINDOW], SETTINGS, Watcher()).results
    assert all(point.error and point.error.relative < 1e-6 for point in sdpa.points)
    errors = [point.error.relative for point in window.points if point.error]
    assert errors[0] < 1e-6 < errors[1]


def test_what_computes_something_else_has_no_error() -> None:
    other = contestant("Other", Window(), relation="different")
    assert run_panel(qkv_source(), [SDPA, other], SETTINGS, Watcher()).results[1].points[0].error is None


def test_a_failing_contestant_is_left_out_with_its_reason_in_one_line() -> None:
    told: list[str] = []
    panel = run_panel(qkv_source(), [SDPA, contestant("Failing", Failing())], SETTINGS, Watcher(warn=told.append))
    assert told[0] == "Failing at N = 16 left out: length must be even"
    assert [each.length for each in panel.dropped] == [16, 32, 64]
    assert panel.results[1].points == []


def test_an_output_that_is_not_finite_is_refused() -> None:
    class Overflowing(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return v * float("inf")

    panel = run_panel(qkv_source(), [SDPA, contestant("Overflowing", Overflowing())], SETTINGS, Watcher())
    assert panel.dropped[0].why == "its output holds NaN or infinite numbers"


def test_what_has_parameters_is_marked_untrained() -> None:
    class Weighted(Window):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

    results = run_panel(qkv_source(), [SDPA, contestant("Weighted", Weighted())], SETTINGS, Watcher()).results
    assert [result.untrained for result in results] == [False, True]


def test_a_point_that_would_not_fit_in_memory_is_dropped_before_it_is_tried() -> None:
    told: list[str] = []
    limited = dataclasses.replace(SETTINGS, memory_limit=500_000, backward=False)  # needs 100 kB at 16, 1.6 MB at 64
    panel = run_panel(qkv_source(), [SDPA, contestant("Hungry", Hungry())], limited, Watcher(warn=told.append))
    assert [point.length for point in panel.results[1].points] == [16, 32]
    assert told == ["Hungry at N = 64 left out: too little memory: about 2 MB needed, 0 MB to be had"]


def test_allocation_that_fails_is_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(call: measure.Call) -> int:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 99 bytes")

    monkeypatch.setattr(measure, "peak_extra_bytes", fail)
    panel = run_panel(qkv_source(), [SDPA], SETTINGS, Watcher())
    assert panel.dropped[0].why == "too little memory"


def test_progress_adds_up_to_the_work_announced() -> None:
    done: list[float] = []
    contestants = [SDPA, WINDOW, contestant("Failing", Failing())]
    run_panel(qkv_source(), contestants, SETTINGS, Watcher(advance=done.append))
    assert sum(done) == pytest.approx(work(qkv_source(), contestants, SETTINGS))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_inputs_and_parameters_take_the_number_type_asked_for(dtype: str) -> None:
    seen = set()

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8, 8))

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            seen.update({q.dtype, self.weight.dtype})
            return v @ self.weight

    run_panel(qkv_source(), [contestant("Layer", Layer())], dataclasses.replace(SETTINGS, dtype=dtype, rounds=1), Watcher())
    assert seen == {getattr(torch, dtype)}
