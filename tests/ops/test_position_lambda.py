"""position_lambda: parts of it equal the whole, forward and backward."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

primitive = torch.ops.foveate._position_lambda
formula = torch.ops.foveate._position_lambda_formula


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def arguments(B: int, h: int, K: int, U: int, V: int, taps: tuple[int, ...], places: tuple[int, ...], bias: bool = True) -> list[Any]:
    """With padding that keeps the positions."""
    q, v = random(B, h, K, *places), random(B, U, V, *places, seed=1)
    return [q, v, random(K, U, *taps, seed=2), random(K, seed=3) if bias else None, taps[0] // 2]


CASES = {
    "one position": arguments(1, 1, 1, 1, 1, (1, 1), (1, 1)),
    "a map": arguments(2, 2, 3, 2, 4, (3, 3), (5, 6)),
    "a line": arguments(2, 2, 3, 2, 4, (5,), (9,), bias=False),
    "a window wider than the map": arguments(1, 2, 3, 1, 2, (7, 7), (4, 3)),
    "channels in parts": arguments(2, 3, 16, 2, 24, (3, 3), (48, 48)),  # 36864 lambdas for each of 24 channels
    "sequences in parts": arguments(5, 1, 16, 1, 16, (3, 3), (24, 24)),
}
EVERY = pytest.mark.parametrize("given", CASES.values(), ids=CASES)


def naive(q: Tensor, v: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    convolve = torch.nn.functional.conv2d if weight.dim() == 4 else torch.nn.functional.conv1d
    lambdas = torch.stack([convolve(v[:, :, c], weight, bias, padding=padding) for c in range(v.shape[2])], 1)  # [B,V,K,*S]
    return torch.einsum("bhk...,bvk...->bhv...", q, lambdas)


@EVERY
def test_parts_and_formula_equal_the_sum(given: list[Any]) -> None:
    want = naive(*given)
    torch.testing.assert_close(primitive(*given), want)
    torch.testing.assert_close(formula(*given), want)


@EVERY
def test_gradients_of_parts_equal_those_of_the_sum(given: list[Any]) -> None:
    leaves = [x.clone().requires_grad_() if isinstance(x, Tensor) else x for x in given]
    trained = [x for x in leaves if isinstance(x, Tensor)]
    want = naive(*leaves)
    cotangent = random(*want.shape, seed=4)
    expected = torch.autograd.grad(want, trained, cotangent)
    torch.testing.assert_close(torch.autograd.grad(primitive(*leaves), trained, cotangent), expected)
    for one, gradient in zip(trained, expected, strict=True):  # each alone
        torch.testing.assert_close(torch.autograd.grad(primitive(*leaves), one, cotangent)[0], gradient)


@pytest.mark.parametrize("name", ["a map", "a line"])
def test_operators_are_registered_whole(name: str) -> None:
    leaves = [x.clone().requires_grad_() if isinstance(x, Tensor) else x for x in CASES[name]]
    opcheck(primitive.default, tuple(leaves))
    trained = [x for x in leaves if isinstance(x, Tensor)]

    def function(*values: Tensor) -> Tensor:
        return primitive(*values, *leaves[len(values) :])

    assert torch.autograd.gradcheck(function, trained, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, trained, fast_mode=True)


def test_layouts_and_empty_batches_are_taken() -> None:
    given = CASES["a map"]
    spread = [x.mT.contiguous().mT if isinstance(x, Tensor) and x.dim() > 1 else x for x in given]
    torch.testing.assert_close(primitive(*spread), primitive(*given))
    assert primitive(given[0][:0], given[1][:0], *given[2:]).shape == (0, 2, 4, 5, 6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(dtype: torch.dtype) -> None:
    given = [x.to(dtype) if isinstance(x, Tensor) else x for x in arguments(1, 2, 16, 1, 4, (5, 5), (6, 6))]
    got, exact = primitive(*given), naive(*(x.double() if isinstance(x, Tensor) else x for x in given))
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), exact, rtol=0.01, atol=0.02)
