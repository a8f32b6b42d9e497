"""Cost exponents and crossover lengths."""

import pytest

from foveate.compare.analysis import Crossover, crossover, fitted_exponent

LENGTHS = [256, 512, 1024, 2048]


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_exponent_of_an_exact_power_law_is_its_power(power: float) -> None:
    assert fitted_exponent(LENGTHS, [3e-3 * n**power for n in LENGTHS]) == pytest.approx(power)


def test_exponent_is_fitted_over_the_longest_three_lengths() -> None:
    assert fitted_exponent([1, *LENGTHS], [1e6, *(n**2 for n in LENGTHS)]) == pytest.approx(2)


def test_exponent_needs_two_lengths() -> None:
    assert fitted_exponent([256], [1.0]) is None
    assert fitted_exponent([256, 512], [0.0, 1.0]) is None


def test_crossover_is_interpolated_between_the_lengths_around_it() -> None:
    assert crossover(LENGTHS, [4.0, 2.0, 0.5, 0.25]) == Crossover("measured", 724)  # 512 sqrt(2)


def test_crossover_is_where_it_pays_for_good() -> None:
    assert crossover(LENGTHS, [0.9, 2.0, 0.5, 0.25]) == Crossover("measured", 724)


def test_crossover_of_a_contestant_that_is_always_faster() -> None:
    assert crossover(LENGTHS, [0.9, 0.8, 0.5, 0.2]) == Crossover("always", None)


def test_a_tie_at_the_longest_length_is_no_crossover() -> None:
    assert crossover(LENGTHS, [0.99, 0.98, 0.97, 0.96]) == Crossover("never", None)


def test_crossover_is_extrapolated_only_where_the_ratio_falls_fast_enough() -> None:
    assert crossover(LENGTHS, [16.0, 8.0, 4.0, 2.0]) == Crossover("extrapolated", 4096)
    assert crossover(LENGTHS, [3.0, 3.0, 3.0, 3.0]) == Crossover("never", None)
    assert crossover(LENGTHS, [800.0, 400.0, 200.0, 100.0]) == Crossover("never", None)  # beyond 16 times the longest
