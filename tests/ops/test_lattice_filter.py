"""lattice_filter: kernel against formula, and against a dictionary of lattice points."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

import foveate
from tests.ops.test_merge_attention import on_capability, skip_unless_here

PRIMITIVE, FORMULA = torch.ops.foveate._lattice_filter, torch.ops.foveate._lattice_filter_formula
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-11}


def points(B: int, H: int, N: int, d: int, c: int, dtype: torch.dtype = torch.float64, spread: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features and values; some points are twins."""
    g = torch.Generator().manual_seed(seed)
    features = spread * torch.randn(B, H, N, d, generator=g, dtype=torch.float64)
    features[:, :, N // 2 : N // 2 + N // 4] = features[:, :, : N // 4]
    return features.to(dtype), torch.randn(B, H, N, c, generator=g, dtype=torch.float64).to(dtype)


def by_dictionary(features: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    """The filter of one table: features [N,d], values [N,c], seen bool [N]."""
    N, d = features.shape
    weights, vertices, _ = (x[0, 0] for x in foveate.permutohedral_simplex(features[None, None]))
    last = -vertices.sum(-1, keepdim=True)
    names = [[tuple(v) for v in row] for row in torch.cat([vertices, last], -1).tolist()]
    table: dict[tuple[int, ...], Tensor] = {}
    for i in range(N):
        for k in range(d + 1):
            if seen[i]:
                table[names[i][k]] = table.get(names[i][k], torch.zeros_like(values[0])) + weights[i, k] * values[i]
    for a in range(d + 1):
        step = [d if j == a else -1 for j in range(d + 1)]
        near = [{v: tuple(x + sign * s for x, s in zip(v, step, strict=True)) for v in table} for sign in (1, -1)]
        table = {v: x + 0.5 * sum(table.get(side[v], torch.zeros_like(x)) for side in near) for v, x in table.items()}
    alpha = 1 / (1 + 2.0**-d)
    rows = [sum(weights[i, k] * table[names[i][k]] for k in range(d + 1)) if seen[i] else torch.zeros_like(values[0]) for i in range(N)]
    return alpha * torch.stack([torch.as_tensor(r) for r in rows])


@pytest.mark.parametrize("d", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("masked", [False, True])
def test_kernel_and_formula_equal_a_dictionary(d: int, masked: bool) -> None:
    features, values = points(1, 1, 20, d, 3, spread=0.6)
    seen = torch.rand(1, 20, generator=torch.Generator().manual_seed(1)) < (0.7 if masked else 2)
    want = by_dictionary(features[0, 0], values[0, 0], seen[0])
    for operator in (PRIMITIVE, FORMULA):
        torch.testing.assert_close(operator(features, values, seen if masked else None, False)[0, 0], want, rtol=1e-11, atol=1e-11)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3), st.integers(1, 2), st.integers(0, 25), st.integers(1, 9), st.integers(0, 9), st.booleans(), st.booleans(),
       st.sampled_from([0.05, 1, 30, 1e5]), st.integers(0, 99))  # fmt: skip
def test_kernel_equals_formula(B: int, H: int, N: int, d: int, c: int, shared: bool, masked: bool, spread: float, seed: int) -> None:
    features, values = points(B, H, N, d, c, spread=spread, seed=seed)
    mask = torch.rand(B, N, generator=torch.Generator().manual_seed(seed)) < 0.7 if masked else None
    got, want = PRIMITIVE(features, values, mask, shared), FORMULA(features, values, mask, shared)
    # far from the origin the place inside a simplex has fewer digits
    torch.testing.assert_close(got, want, rtol=1e-10 * max(1, spread), atol=1e-11 * max(1, spread))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("d", [1, 4, 16])
def test_gradients_equal_those_of_the_formula(dtype: torch.dtype, shared: bool, d: int) -> None:
    given = points(2, 2, 30, d, 5, dtype, 0.5)
    mask = torch.arange(30).expand(2, -1) < torch.tensor([[30], [22]])
    cotangent = torch.randn(2, 2, 30, 5, dtype=dtype)
    found = []
    for operator in (PRIMITIVE, FORMULA):
        leaves = [t.clone().requires_grad_() for t in given]
        found.append(torch.autograd.grad((operator(*leaves, mask, shared) * cotangent).sum(), leaves))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * max(1, b.abs().max().item()))
    assert all((g[1, :, 22:] == 0).all() for g in found[0])


@pytest.mark.parametrize(("d", "error"), [(1, 0.02), (2, 0.03), (3, 0.04), (5, 0.1)])
def test_dense_points_are_filtered_by_a_gaussian(d: int, error: float) -> None:
    features, _ = points(1, 1, 400, d, 1)
    values = torch.cat([features.cos(), torch.ones_like(features[..., :1])], -1)  # they change as slowly as the Gaussian
    kernel = torch.exp(-0.5 * torch.cdist(features, features).square())
    sums = PRIMITIVE(features, values, None, False)
    got, want = sums[..., :-1] / sums[..., -1:], kernel @ values[..., :-1] / kernel.sum(-1, keepdim=True)
    assert ((got - want).norm() / want.norm()) < error


@pytest.mark.parametrize("d", [1, 2, 3])
def test_a_point_on_a_vertex_answers_itself_by_one_where_all_vertices_about_it_exist(d: int) -> None:
    features, _ = points(1, 1, 300, d, 1, spread=0.05)
    features[0, 0, 0] = 0
    values = torch.zeros(1, 1, 300, 1, dtype=torch.float64)
    values[0, 0, 0] = 1
    torch.testing.assert_close(PRIMITIVE(features, values, None, False)[0, 0, 0, 0].item(), 1.0)
    alone = PRIMITIVE(features[:, :, :1], values[:, :, :1], None, False).item()  # one of the two ways round is missing
    torch.testing.assert_close(alone, (1 + 0.5 ** (d + 1)) / (1 + 0.5**d))


def test_samples_of_a_batch_meet_only_in_a_shared_table() -> None:
    features, values = points(2, 1, 40, 5, 3)
    alone = PRIMITIVE(features[:1], values[:1], None, False)
    assert torch.equal(PRIMITIVE(features, values, None, False)[:1], alone)
    assert torch.equal(PRIMITIVE(features[:1], values[:1], None, True), alone)
    assert not torch.equal(PRIMITIVE(features, values, None, True)[:1], alone)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("B", [1, 3])
def test_the_same_bits_on_any_number_of_threads(threads: int, B: int) -> None:
    given = points(B, 1, 1500, 3, 6, torch.float32)

    def everything() -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in given]
        out = PRIMITIVE(*leaves, None, False)
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    before = torch.get_num_threads()
    want = everything()
    try:
        torch.set_num_threads(threads)
        got = everything()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30, -1e30])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_features_beyond_all_bounds_are_survived(value: float, dtype: torch.dtype) -> None:
    features, values = points(1, 1, 30, 3, 2, dtype)
    features[0, 0, 7] = value
    leaves = features.requires_grad_(), values.requires_grad_()
    out = PRIMITIVE(*leaves, None, False)
    out.sum().backward()
    if abs(value) < torch.inf:
        others = torch.arange(30) != 7
        assert out[0, 0, others].isfinite().all()


def test_layout_does_not_matter() -> None:
    features, values = points(2, 2, 12, 3, 4)
    spread = [t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0) for t in (features, values)]
    assert torch.equal(PRIMITIVE(*spread, None, False), PRIMITIVE(features, values, None, False))


def test_gradients_of_every_order() -> None:
    leaves: Any = tuple(t.requires_grad_() for t in points(1, 2, 6, 2, 2))
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda *t: PRIMITIVE(*t, None, False), leaves)


def test_opcheck_and_vmap() -> None:
    features, values = points(2, 2, 7, 3, 4)
    mask = torch.arange(7).expand(2, -1) < 6
    opcheck(PRIMITIVE.default, (features.clone().requires_grad_(), values.clone().requires_grad_(), mask, False))
    stacked = torch.stack([features, features.flip(2)]), torch.stack([values, 2 * values])
    for shared in (False, True):
        got = torch.vmap(lambda *t, shared=shared: PRIMITIVE(*t, None, shared))(*stacked)
        for i in range(2):
            torch.testing.assert_close(got[i], PRIMITIVE(stacked[0][i], stacked[1][i], None, shared))


ALL_CAPABILITIES = """
import torch
from tests.ops.test_lattice_filter import FORMULA, PRIMITIVE, TOLERANCE, points
for dtype in TOLERANCE:
    for d, c in ((1, 1), (3, 8), (6, 35)):
        found = []
        for operator in (PRIMITIVE, FORMULA):
            leaves = [t.requires_grad_() for t in points(2, 1, 20, d, c, dtype)]
            out = operator(*leaves, None, False)
            found.append([out, *torch.autograd.grad(out.sum(), leaves)])
        for a, b in zip(*found):
            torch.testing.assert_close(a, b, rtol=TOLERANCE[dtype], atol=10 * TOLERANCE[dtype])
print(torch.backends.cpu.get_cpu_capability())
"""


@pytest.mark.parametrize("capability", ["DEFAULT", "AVX2", "AVX512"])
def test_every_instruction_set(capability: str) -> None:
    skip_unless_here(capability)
    assert on_capability(capability, ALL_CAPABILITIES) == capability
