"""projected_features: kernel against formula, every map under every top, of half precision too; gradients of every order."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from tests.ops.test_merge_attention import on_capability, skip_unless_here

PRIMITIVE, FORMULA = torch.ops.foveate._projected_features, torch.ops.foveate._projected_features_formula
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-12}
MAPS = ("positive", "hyperbolic", "cos_sin", "sin_cos", "cos_phase", "relu", "elu_plus_one")
TOPS = ("none", "own", "running", "whole")


def drawn(
    map_: str, top: str, B: int = 2, H: int = 2, N: int = 9, D: int = 5, m: int = 7, *, dtype: torch.dtype = torch.float64,
    of_heads: bool = False, mask: bool = False, past: bool = False, bare: bool = False, detach: bool = False, eps: float = 0.0,
    size: float = 1.0, seed: int = 0,
) -> list[Any]:  # fmt: skip
    """The arguments: x [B,H,N,D], W [m,D] or [H,m,D], and what else is wished."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    x, W = size * normal(B, H, N, D), normal(H, m, D) if of_heads else normal(m, D)
    phase = 6 * torch.rand(m, generator=g, dtype=torch.float64).to(dtype) if map_ == "cos_phase" else None
    key_mask = torch.rand(B, N, generator=g) < 0.7 if mask and top != "own" else None
    before = normal(B, H) if past and top in ("running", "whole") else None
    return [x, W, phase, key_mask, before, map_, top, bare, detach, 0.6, 1.3, eps]


def gradients(operator: Any, arguments: list[Any], seed: int = 1) -> list[Tensor]:
    """Of everything that has one."""
    leaves = [t.clone().requires_grad_() if isinstance(t, Tensor) and t.is_floating_point() else t for t in arguments]
    out = operator(*leaves)
    g = torch.Generator().manual_seed(seed)
    of = [o for o in out if o.requires_grad and o.numel()]
    wrt = [t for t in leaves if isinstance(t, Tensor) and t.requires_grad]
    found = torch.autograd.grad(of, wrt, [torch.randn(o.shape, generator=g, dtype=torch.float64).to(o.dtype) for o in of], allow_unused=True)
    return [torch.zeros_like(t) if f is None else f for f, t in zip(found, wrt, strict=True)]


def assert_as_the_formula(arguments: list[Any], tolerance: float) -> None:
    for got, want in zip(PRIMITIVE(*arguments), FORMULA(*arguments), strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    for got, want in zip(gradients(PRIMITIVE, arguments), gradients(FORMULA, arguments), strict=True):
        torch.testing.assert_close(got, want, rtol=10 * tolerance, atol=10 * tolerance * max(1.0, want.abs().max().item() if want.numel() else 1.0))


SIZES = st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(0, 150), st.integers(1, 18), st.integers(1, 40))
FLAGS = st.fixed_dictionaries({name: st.booleans() for name in ("of_heads", "mask", "past", "bare", "detach")})


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(MAPS), st.sampled_from(TOPS), SIZES, FLAGS, st.sampled_from([0.0, 0.01]), st.sampled_from(list(TOLERANCE)), st.integers(0, 99))
def test_kernel_equals_formula(
    map_: str, top: str, sizes: tuple[int, int, int, int, int], flags: dict[str, bool], eps: float, dtype: torch.dtype, seed: int
) -> None:
    assert_as_the_formula(drawn(map_, top, *sizes, **flags, eps=eps, dtype=dtype, size=0.7, seed=seed), TOLERANCE[dtype])


@pytest.mark.parametrize("top", TOPS)
@pytest.mark.parametrize("map_", MAPS)
def test_every_map_under_every_top(map_: str, top: str) -> None:
    for bare, past, detach in ((False, False, False), (True, True, False), (False, True, True)):
        assert_as_the_formula(drawn(map_, top, N=70, m=33, mask=True, past=past, bare=bare, detach=detach, eps=0.1 * bare), 1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", [1e-6, 1.0, 300.0, 1e5])
def test_angles_of_any_size(dtype: torch.dtype, size: float) -> None:
    x, W, *rest = drawn("sin_cos", "none", dtype=dtype, N=40, D=1, m=16)
    W = torch.full_like(W, 1 / 0.6**0.5)
    phi = PRIMITIVE(size * x, W, *rest)[0] / 1.3
    u = torch.matmul(size * x, W.t() * 0.6**0.5).double()
    error = torch.finfo(dtype).eps * max(1.0, size)  # of u itself
    torch.testing.assert_close(phi.double(), torch.cat([u.sin(), u.cos()], -1), rtol=0, atol=4 * error)


def test_long_vectors_overflow_only_without_a_top() -> None:
    x, W, *rest = drawn("cos_sin", "none", dtype=torch.float32, size=30)
    assert PRIMITIVE(x, W, *rest)[0].isinf().any()
    assert PRIMITIVE(x, W, *rest[:4], "running", *rest[5:])[0].isfinite().all()


@pytest.mark.parametrize("top", TOPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, top: str) -> None:
    x, *rest = drawn("positive", top, dtype=torch.float32, N=70)
    got, want = PRIMITIVE(x.to(dtype), *rest), PRIMITIVE(x.to(dtype).float(), *rest)
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(got, want, strict=True))
    first, second = gradients(PRIMITIVE, [x.to(dtype), *rest])[0], gradients(PRIMITIVE, [x.to(dtype).float(), *rest])[0]
    assert torch.equal(first, second.to(dtype))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_bits_on_any_number_of_threads(threads: int) -> None:
    before = torch.get_num_threads()
    for top in TOPS:
        arguments = drawn("positive", top, N=300, m=40, dtype=torch.float32, past=True)
        want = *PRIMITIVE(*arguments), *gradients(PRIMITIVE, arguments)
        try:
            torch.set_num_threads(threads)
            got = *PRIMITIVE(*arguments), *gradients(PRIMITIVE, arguments)
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_layout_does_not_matter() -> None:
    x, W, *rest = drawn("hyperbolic", "running", N=70)
    spread = x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    for got, want in zip(PRIMITIVE(spread, W.t().contiguous().t(), *rest), PRIMITIVE(x, W, *rest), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("top", TOPS)
@pytest.mark.parametrize("map_", ["positive", "hyperbolic", "cos_sin", "cos_phase"])
def test_gradients_of_every_order(map_: str, top: str) -> None:
    arguments = drawn(map_, top, 1, 2, 4, 3, 3, eps=0.05, past=True, mask=True)
    leaves = tuple(t.requires_grad_() for t in arguments if isinstance(t, Tensor) and t.is_floating_point())

    def call(*tensors: Tensor) -> Tensor:
        given = iter(tensors)
        phi, tops = PRIMITIVE(*(next(given) if isinstance(t, Tensor) and t.is_floating_point() else t for t in arguments))
        out: Tensor = phi.sin().sum(-1) + tops.sum()
        return out

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize(("map_", "top"), [("positive", "running"), ("cos_phase", "whole"), ("relu", "none")])
def test_opcheck_and_vmap(map_: str, top: str) -> None:
    arguments = drawn(map_, top, mask=True, past=True)
    x = arguments[0]
    opcheck(PRIMITIVE.default, (x.clone().requires_grad_(), *arguments[1:]))
    stacked = torch.stack([x, 0.5 * x])
    got = torch.vmap(lambda t: PRIMITIVE(t, *arguments[1:])[0])(stacked)
    for i in range(2):
        torch.testing.assert_close(got[i], PRIMITIVE(stacked[i], *arguments[1:])[0])


ALL_CAPABILITIES = """
import torch
from tests.ops.test_projected_features import MAPS, TOLERANCE, TOPS, assert_as_the_formula, drawn
for dtype in TOLERANCE:
    for map_ in MAPS:
        for top in TOPS:
            assert_as_the_formula(drawn(map_, top, N=70, m=33, mask=True, past=True, dtype=dtype, size=0.7), TOLERANCE[dtype])
print(torch.backends.cpu.get_cpu_capability())
"""


@pytest.mark.parametrize("capability", ["DEFAULT", "AVX2", "AVX512"])
def test_every_instruction_set(capability: str) -> None:
    skip_unless_here(capability)
    assert on_capability(capability, ALL_CAPABILITIES) == capability
