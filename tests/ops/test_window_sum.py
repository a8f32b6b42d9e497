"""window_sum: kernel against formula and against a sum token by token; long sequences keep their accuracy."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from tests.ops.test_merge_attention import on_capability, skip_unless_here

PRIMITIVE, FORMULA = torch.ops.foveate._window_sum, torch.ops.foveate._window_sum_formula
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def windows(B: int, N: int, Q: int, C: int, H: int, dtype: torch.dtype = torch.float64, reach: float = 6, seed: int = 0) -> list[Any]:
    """x [B,N,C] and extents [B,Q,H], some of them whole, some beyond the sequence."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(B, N, C, generator=g, dtype=torch.float64)
    extents = [reach * torch.rand(B, Q, H, generator=g, dtype=torch.float64) for _ in range(2)]
    extents = [torch.where(torch.rand(e.shape, generator=g) < 0.3, e.round(), e) for e in extents]
    return [t.to(dtype) for t in (x, *extents)]


def by_token(x: Tensor, left: Tensor, right: Tensor | None, scale: float) -> Tensor:
    """The definition: each token counts by the share of it that the window covers."""
    (B, N, C), (_, Q, H) = x.shape, left.shape
    out = torch.zeros(B, Q, C, dtype=x.dtype)
    for b, q, h in torch.cartesian_prod(torch.arange(B), torch.arange(Q), torch.arange(H)).tolist():
        t = N - Q + q
        start = max(0.0, t - float(left[b, q, h]))
        stop = min(float(N - 1), t + (0.0 if right is None else float(right[b, q, h]))) + 1
        channels = slice(h * C // H, (h + 1) * C // H)
        for u in range(N):
            out[b, q, channels] += scale * max(0.0, min(stop, u + 1) - max(start, u)) * x[b, u, channels]
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3), st.integers(1, 20), st.integers(0, 20), st.integers(1, 3), st.integers(1, 9), st.booleans(),
       st.sampled_from([torch.float32, torch.float64]), st.sampled_from([0.5, 6, 40]), st.integers(0, 99))  # fmt: skip
def test_kernel_equals_formula(B: int, N: int, Q: int, H: int, R: int, causal: bool, dtype: torch.dtype, reach: float, seed: int) -> None:
    x, left, right = windows(B, N, min(Q, N), H * R, H, dtype, reach, seed)
    given_right = None if causal else right
    got, want = PRIMITIVE(x, left, given_right, 0.7), FORMULA(x, left, given_right, 0.7)
    torch.testing.assert_close(got, want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("reach", [0, 2.5, 30])
def test_formula_and_kernel_equal_the_definition(causal: bool, reach: float) -> None:
    x, left, right = windows(2, 9, 6, 4, 2, reach=reach)
    want = by_token(x, left, None if causal else right, 0.5)
    for operator in (PRIMITIVE, FORMULA):
        torch.testing.assert_close(operator(x, left, None if causal else right, 0.5), want, rtol=1e-12, atol=1e-12)


def test_windows_of_ends_on_the_other_side() -> None:
    x, left, right = windows(1, 12, 12, 4, 2)
    for ends in ((-left, right + 6), (left + 6, -right), (-left, -right)):
        torch.testing.assert_close(PRIMITIVE(x, *ends, 1.0), FORMULA(x, *ends, 1.0), rtol=1e-12, atol=1e-12)


def gradients(operator: Any, given: list[Any], cotangent: Tensor) -> tuple[Tensor, ...]:
    leaves = [t.clone().requires_grad_() for t in given]
    return torch.autograd.grad((operator(*leaves, 0.3) * cotangent).sum(), leaves)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("N", "Q", "reach"), [(17, 17, 6), (17, 5, 9), (3, 3, 20), (3000, 3000, 9), (2600, 1200, 700)])
def test_gradients_equal_those_of_the_formula(dtype: torch.dtype, N: int, Q: int, reach: float) -> None:
    given = windows(2, N, Q, 6, 2, dtype, reach)
    cotangent = torch.randn(2, Q, 6, dtype=dtype)
    for got, want in zip(gradients(PRIMITIVE, given, cotangent), gradients(FORMULA, given, cotangent), strict=True):
        torch.testing.assert_close(got, want, rtol=10 * TOLERANCE[dtype], atol=20 * TOLERANCE[dtype] * want.abs().max().item())


def test_an_end_between_two_tokens_has_no_gradient() -> None:
    x, left, right = windows(1, 20, 20, 4, 2, reach=30)
    d_left, d_right = gradients(PRIMITIVE, [x, left, right], torch.ones(1, 20, 4, dtype=torch.float64))[1:]
    t = torch.arange(20)[:, None]
    assert (d_left[0][left[0] > t] == 0).all() and (d_right[0][right[0] > 19 - t] == 0).all()
    assert (d_left[0][left[0] == left[0].round()] == 0).all()
    assert (d_left != 0).any() and (d_right != 0).any()


@pytest.mark.parametrize("reach", [2.25, 110.0, 3000.0])
def test_a_million_tokens_keep_their_accuracy_in_float32(reach: float) -> None:
    N = 1_000_000
    x = torch.rand(1, N, 2, generator=torch.Generator().manual_seed(0)) + 0.5
    extents = (reach * torch.rand(1, N, 1)).round(decimals=2)
    got, want = PRIMITIVE(x, extents, extents, 1.0), FORMULA(x.double(), extents.double(), extents.double(), 1.0)
    assert ((got - want) / want).abs().max() < 1e-5


def test_windows_of_few_tokens_and_of_all() -> None:
    N = 1_000_000
    x = torch.rand(1, N, 2, generator=torch.Generator().manual_seed(0)) + 0.5
    left = torch.full((1, N, 1), 2.25)
    got = PRIMITIVE(x, left, left, 1.0)
    padded = torch.nn.functional.pad(x.double(), (0, 0, 3, 3))
    want = sum(weight * padded[:, 3 + d : 3 + d + N] for d, weight in zip(range(-3, 4), (0.25, 1, 1, 1, 1, 1, 0.25), strict=True))
    assert ((got - want) / want).abs().max() < 1e-6
    everything = PRIMITIVE(x, torch.full((1, 1, 1), 2.0 * N), None, 1.0)
    torch.testing.assert_close(everything.double(), x.double().sum(1, keepdim=True), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    x, left, right = windows(2, 40, 40, 8, 2, torch.float32)
    got = PRIMITIVE(x.to(dtype), left, right, 1.0)
    assert got.dtype == dtype
    torch.testing.assert_close(got, PRIMITIVE(x.to(dtype).float(), left, right, 1.0).to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_bits_on_any_number_of_threads(threads: int) -> None:
    given = windows(2, 5000, 5000, 6, 3, torch.float32, 9)
    cotangent = torch.randn(2, 5000, 6)
    before = torch.get_num_threads()
    want = PRIMITIVE(*given, 0.3), *gradients(PRIMITIVE, given, cotangent)
    try:
        torch.set_num_threads(threads)
        got = PRIMITIVE(*given, 0.3), *gradients(PRIMITIVE, given, cotangent)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_layout_does_not_matter() -> None:
    given = windows(2, 11, 11, 6, 2)
    spread = [t.permute(2, 1, 0).contiguous().permute(2, 1, 0) for t in given]
    assert torch.equal(PRIMITIVE(*spread, 1.0), PRIMITIVE(*given, 1.0))


def test_no_number_gives_no_number_and_stays_where_it_is() -> None:
    x, left, right = windows(1, 9, 9, 4, 2, reach=2)
    left[0, 4, 0] = torch.nan
    out = PRIMITIVE(x, left, right, 1.0)
    assert out[0, 4, :2].isnan().all() and out.isnan().sum() == 2
    assert PRIMITIVE(x[:, :1], torch.full_like(left[:, :1], torch.nan), None, 1.0).isnan().all()


def test_gradients_of_every_order() -> None:
    x, left, right = windows(1, 5, 4, 4, 2, reach=3)
    leaves = tuple(t.requires_grad_() for t in (x, left + 0.01, right + 0.01))
    assert torch.autograd.gradcheck(lambda *t: PRIMITIVE(*t, 0.7), leaves)
    assert torch.autograd.gradgradcheck(lambda *t: PRIMITIVE(*t, 0.7), leaves)


def test_opcheck_and_vmap() -> None:
    x, left, right = windows(2, 7, 5, 4, 2)
    opcheck(PRIMITIVE.default, (x.clone().requires_grad_(), left.clone().requires_grad_(), right, 0.7))
    stacked = [torch.stack([t, 0.5 * t]) for t in (x, left, right)]
    got = torch.vmap(lambda *t: PRIMITIVE(*t, 0.7))(*stacked)
    for i in range(2):
        torch.testing.assert_close(got[i], PRIMITIVE(*(t[i] for t in stacked), 0.7))


ALL_CAPABILITIES = """
import torch
from tests.ops.test_window_sum import FORMULA, PRIMITIVE, TOLERANCE, gradients, windows
for dtype in TOLERANCE:
    for R in (1, 5, 8, 33):
        given = windows(2, 37, 30, 2 * R, 2, dtype)
        torch.testing.assert_close(PRIMITIVE(*given, 0.7), FORMULA(*given, 0.7), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        cotangent = torch.ones(2, 30, 2 * R, dtype=dtype)
        for a, b in zip(gradients(PRIMITIVE, given, cotangent), gradients(FORMULA, given, cotangent)):
            torch.testing.assert_close(a, b, rtol=10 * TOLERANCE[dtype], atol=100 * TOLERANCE[dtype])
print(torch.backends.cpu.get_cpu_capability())
"""


@pytest.mark.parametrize("capability", ["DEFAULT", "AVX2", "AVX512"])
def test_every_instruction_set(capability: str) -> None:
    skip_unless_here(capability)
    assert on_capability(capability, ALL_CAPABILITIES) == capability
