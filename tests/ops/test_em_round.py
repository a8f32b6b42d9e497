"""em_round: the kernel equals the formula, over sizes, masks and types."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

primitive = torch.ops.foveate._em_round
formula = torch.ops.foveate._em_round_formula
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 3), st.integers(1, 40), st.integers(0, 1200), st.integers(1, 70), st.booleans(), st.booleans(), st.sampled_from(list(TOLERANCE))
)
def test_rounds_are_those_of_the_formula(B: int, C: int, N: int, K: int, masked: bool, keep: bool, dtype: torch.dtype) -> None:
    f, bases = random(B, C, N, dtype=dtype), random(B, C, K, seed=1, dtype=dtype)
    seen = random(B, N, seed=2) > 0 if masked else None
    for ours, want in zip(primitive(f, bases, seen, keep), formula(f, bases, seen, keep), strict=True):
        torch.testing.assert_close(ours, want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * max(1, N))


def test_any_number_of_threads_gives_the_same_numbers() -> None:
    f, bases = random(2, 8, 3000, dtype=torch.float32), random(2, 8, 16, seed=1, dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(primitive(f, bases, None, True))
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("masked", [False, True])
def test_the_operator_is_registered_whole(masked: bool) -> None:
    leaves = (random(2, 3, 7).requires_grad_(), random(2, 3, 4, seed=1).requires_grad_())
    seen = random(2, 7, seed=2) > 0 if masked else None
    opcheck(primitive.default, (*leaves, seen, True))
    assert torch.autograd.gradcheck(lambda f, bases: primitive(f, bases, seen, True), leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda f, bases: primitive(f, bases, seen, True), leaves, fast_mode=True)
