"""inner_sums and context_pool, which read a map once: equal to their formulas, forward and backward, in every layout."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

OPS = torch.ops.foveate
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_alike(name: str, inputs: list[Any], index: int | None = None) -> None:
    """Results and gradients of the primitive and of its formula."""
    found = []
    for operator in (getattr(OPS, name), getattr(OPS, f"{name}_formula")):
        leaves = [x.clone().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]
        out = operator(*leaves) if index is None else operator(*leaves)[index]
        trained = [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]
        cotangent = random(*out.shape, seed=9, dtype=out.dtype) - 0.5
        found.append([out.detach(), *torch.autograd.grad(out, trained, cotangent)])
    for ours, want in zip(*found, strict=True):
        tolerance = TOLERANCE[want.dtype]
        torch.testing.assert_close(ours, want, rtol=tolerance, atol=tolerance * max(1.0, want.abs().max().item() if want.numel() else 1.0))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3), st.integers(1, 40), st.integers(1, 9), st.integers(1, 150), st.booleans(), st.sampled_from(list(TOLERANCE)))
def test_inner_sums_are_those_of_the_formula(B: int, C: int, H: int, W: int, over_positions: bool, dtype: torch.dtype) -> None:
    p, q = random(B, C, H, W, dtype=dtype), random(B, C, H, W, seed=1, dtype=dtype)
    assert_alike("_inner_sums", [p, q, over_positions])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3), st.integers(1, 40), st.integers(1, 150), st.booleans(), st.booleans(), st.sampled_from(list(TOLERANCE)))
def test_pooled_contexts_are_those_of_the_formula(B: int, C: int, N: int, biased: bool, masked: bool, dtype: torch.dtype) -> None:
    x, w = 8 * random(B, C, N, dtype=dtype) - 4, random(1, C, seed=1, dtype=dtype) - 0.5
    seen = random(B, N, seed=2) < 0.5 if masked else None
    assert_alike("_context_pool", [x, w, random(1, seed=3, dtype=dtype) if biased else None, seen], index=0)


def test_complements_of_nearly_equal_maps_keep_their_digits() -> None:
    p = 1 - 1e-4 * random(1, 3, 50, 60, dtype=torch.float32)
    of_float, exact = OPS._inner_sums(p, p, True), OPS._inner_sums(p.double(), p.double(), True)
    torch.testing.assert_close(of_float.double(), exact, rtol=1e-5, atol=0)


def test_layouts_are_taken() -> None:
    p, q = random(2, 3, 5, 6), random(2, 3, 5, 6, seed=1)
    for over_positions in (True, False):
        want = OPS._inner_sums(p, q, over_positions)
        for p_other, q_other in ((p.to(memory_format=torch.channels_last), q), (p, q.mT.contiguous().mT)):
            torch.testing.assert_close(OPS._inner_sums(p_other, q_other, over_positions), want)
    x, w = random(2, 3, 7), random(1, 3, seed=1)
    torch.testing.assert_close(OPS._context_pool(x.mT.contiguous().mT, w, None, None), OPS._context_pool(x, w, None, None))


def test_a_map_of_which_nothing_is_seen_has_no_context_and_no_gradient() -> None:
    x = random(2, 3, 7).requires_grad_()
    seen = torch.tensor([[False] * 7, [True] * 7])
    c = OPS._context_pool(x, random(1, 3, seed=1), None, seen)[0]
    assert (c[0] == 0).all()
    assert (c[1] != 0).all()
    d_x = torch.autograd.grad(c.sum(), x)[0]
    assert (d_x[0] == 0).all()
    assert d_x.isfinite().all()


@pytest.mark.parametrize("over_positions", [True, False])
def test_inner_sums_are_registered_whole(over_positions: bool) -> None:
    p, q = random(2, 3, 4, 5).requires_grad_(), random(2, 3, 4, 5, seed=1).requires_grad_()
    opcheck(OPS._inner_sums.default, (p, q, over_positions))
    assert torch.autograd.gradcheck(lambda *x: OPS._inner_sums(*x, over_positions), (p, q), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *x: OPS._inner_sums(*x, over_positions), (p, q), fast_mode=True)


def test_context_pool_is_registered_whole() -> None:
    x, w, bias = random(2, 3, 7).requires_grad_(), random(1, 3, seed=1).requires_grad_(), random(1, seed=2).requires_grad_()
    seen = random(2, 7, seed=3) < 0.7
    opcheck(OPS._context_pool.default, (x, w, bias, seen))
    assert torch.autograd.gradcheck(lambda *given: OPS._context_pool(*given, seen)[0], (x, w, bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *given: OPS._context_pool(*given, seen)[0], (x, w, bias), fast_mode=True)


def test_any_number_of_threads_gives_the_same_sums() -> None:
    p, q = random(3, 16, 40, 50, dtype=torch.float32), random(3, 16, 40, 50, seed=1, dtype=torch.float32)
    threads, found = torch.get_num_threads(), []
    for count in (1, 3):
        torch.set_num_threads(count)
        found.append([OPS._inner_sums(p, q, over_positions) for over_positions in (True, False)])
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
