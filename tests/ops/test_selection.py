"""The operators that select, and attention along edges: kernel against formula and against loops, ties, threads."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

OPS = torch.ops.foveate


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def edges(
    B: int = 2, H: int = 3, N: int = 17, M: int = 11, D: int = 5, Dv: int = 9, L: int = 60, *, lists: int = 1, batches: int = 2
) -> dict[str, Any]:
    """A call of _edge_attention; some edges are listed several times, some name nothing."""
    g = torch.Generator().manual_seed(N + L)
    real = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    whole = lambda count: torch.randint(-1, count + 1, (batches, lists, L), generator=g)  # noqa: E731
    return {"q": real(B, H, N, D), "k": real(B, H, M, D), "v": real(B, H, M, Dv), "to": whole(M), "start": whole(N), "key_mask": None,
            "dropout_seed": None, "scale": 0.5, "dropout": 0.0}  # fmt: skip


def by_mask(a: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Dense: a mask that the edges draw."""
    B, _, N, _ = a["q"].shape
    M, G = a["k"].shape[2], a["to"].shape[1]
    seen = torch.zeros(B, G, N, M, dtype=torch.bool)
    for b in range(B):
        for g in range(G):
            row = b % a["to"].shape[0]
            for i, j in zip(a["start"][row, g].tolist(), a["to"][row, g].tolist(), strict=True):
                if 0 <= i < N and 0 <= j < M and (a["key_mask"] is None or a["key_mask"][b, j]):
                    seen[b, g, i, j] = True
    s = (a["q"] @ a["k"].mT * a["scale"]).masked_fill(~seen, -torch.inf)
    return s.softmax(-1).nan_to_num(0) @ a["v"], s.logsumexp(-1), seen.sum(-1)


CALLS = [edges(), edges(lists=3), edges(batches=1, L=200), edges(N=1, M=1, L=3), edges(D=64, Dv=64, L=300)]


@pytest.mark.parametrize("a", CALLS)
@pytest.mark.parametrize("masked", [False, True])
def test_attention_along_edges_is_that_of_their_mask(a: dict[str, Any], masked: bool, threads: int) -> None:
    a = a | ({"key_mask": torch.rand(a["k"].shape[0], a["k"].shape[2]) < 0.7} if masked else {})
    for op in (OPS._edge_attention, OPS._edge_attention_formula):
        for got, want in zip(op(**a), by_mask(a), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("a", CALLS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_along_edges_are_those_of_the_formula(a: dict[str, Any], dropout: float, threads: int) -> None:
    a = a | {"dropout": dropout, "dropout_seed": torch.tensor(5) if dropout else None}
    found = []
    for op in (OPS._edge_attention, OPS._edge_attention_formula):
        leaves = {n: a[n].clone().requires_grad_() for n in ("q", "k", "v")}
        out, lse, _ = op(**(a | leaves))
        loss = out.sin().sum() + lse.masked_fill(lse.isinf(), 0).square().sum()
        found.append(torch.autograd.grad(loss, list(leaves.values())))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_edges_in_other_types_are_close(dtype: torch.dtype) -> None:
    a = edges(D=16, L=120)
    narrow = {n: a[n].to(dtype) for n in ("q", "k", "v")}
    exact = OPS._edge_attention(**(a | {n: x.double() for n, x in narrow.items()}))
    got = OPS._edge_attention(**(a | narrow))
    assert got[0].dtype == dtype and got[1].dtype == torch.float32
    torch.testing.assert_close(got[0].double(), exact[0], rtol=2e-2, atol=1e-2 if dtype != torch.float32 else 1e-5)


def test_gradients_along_edges_do_not_depend_on_threads() -> None:
    a = edges(N=200, M=150, D=32, L=3000, lists=3)
    found = []
    for count in (1, 4):
        torch.set_num_threads(count)
        leaves = {n: a[n].float().requires_grad_() for n in ("q", "k", "v")}
        found.append(torch.autograd.grad(OPS._edge_attention(**(a | leaves))[0].sin().sum(), list(leaves.values())))
    torch.set_num_threads(1)
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_edges_pass_opcheck_and_gradcheck_twice() -> None:
    a = edges(B=1, H=1, N=4, M=3, D=2, Dv=2, L=7, batches=1)
    leaves = [a[n].requires_grad_() for n in ("q", "k", "v")]
    opcheck(OPS._edge_attention.default, (), a)
    call = lambda q, k, v: OPS._edge_attention(**(a | {"q": q, "k": k, "v": v}))[0]  # noqa: E731
    assert torch.autograd.gradcheck(call, leaves) and torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("C", [1, 3, 9])
def test_clusters_are_those_of_the_formula(mask: bool, C: int, threads: int) -> None:
    g = torch.Generator().manual_seed(C)
    x, planes = torch.randn(2, 3, 40, 6, generator=g), torch.randn(63, 7, generator=g)
    seeds, there = torch.randint(0, 40, (C,), generator=g), torch.rand(2, 40, generator=g) < 0.7  # some seeds are the same: clusters left empty
    codes = torch.rand(4, C, 63, generator=g) < 0.5
    for empty in (None, codes):
        arguments = (x, planes, seeds, there if mask else None, empty, 5, True)
        for got, want in zip(OPS._hamming_clusters(*arguments), OPS._hamming_clusters_formula(*arguments), strict=True):
            assert torch.equal(got, want)


def test_seeds_beyond_the_queries_are_refused() -> None:
    with pytest.raises(ValueError, match="seeds must lie in 0 to N - 1 = 3"):
        OPS._hamming_clusters(torch.randn(1, 1, 4, 2), torch.randn(8, 3), torch.tensor([0, 4]), None, None, 2, True)


@pytest.mark.parametrize("k", [1, 4, 30])
def test_the_largest_are_those_of_a_stable_sort(k: int, threads: int) -> None:
    x = torch.randint(0, 6, (2, 3, 20), generator=torch.Generator().manual_seed(k)).float()
    x[0, 0, 3:] = -torch.inf
    got = OPS._largest(x, k)
    assert torch.equal(got, OPS._largest_formula(x, k))
    for row, places in zip(x.flatten(0, 1).tolist(), got.flatten(0, 1).tolist(), strict=True):
        want = sorted((j for j in range(20) if row[j] > -torch.inf), key=lambda j, row=row: (-row[j], j))[:k]
        assert places == want + [-1] * (k - len(want))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sums_by_group_and_rows_of_groups_are_each_others_gradient(dtype: torch.dtype, threads: int) -> None:
    x, groups = torch.randn(2, 3, 20, 7).to(dtype), torch.randint(-1, 6, (2, 3, 20))
    member = (groups.unsqueeze(-1) == torch.arange(4)).to(x)  # groups 4 and 5 are none
    torch.testing.assert_close(OPS._segment_sum(x, groups, 4), member.mT @ x, rtol=2e-2, atol=5e-2 if dtype == torch.bfloat16 else 1e-5)
    few = torch.randn(2, 3, 4, 7).to(dtype)
    torch.testing.assert_close(OPS._take_rows(few, groups), member @ few)
    for op, formula, arguments in ((OPS._segment_sum, OPS._segment_sum_formula, (groups, 4)), (OPS._take_rows, OPS._take_rows_formula, (groups,))):
        leaf = (x if len(arguments) == 2 else few).clone().requires_grad_()
        got, want = (torch.autograd.grad(f(leaf, *arguments).sin().sum(), leaf)[0] for f in (op, formula))
        torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [False, True])
def test_matches_are_those_of_the_formula(scan: bool, causal: bool, mask: bool, threads: int) -> None:
    g = torch.Generator().manual_seed(3)
    q, k = torch.randn(2, 3, 20, 4, generator=g), torch.randn(2, 3, 20, 4, generator=g)
    start, steps = torch.randint(0, 20, (2, 3, 20), generator=g), torch.rand(4, 3, 2, 3, 20, 2, generator=g) * 2 - 1
    there = torch.rand(2, 20, generator=g) < 0.7 if mask else None
    arguments = (q, k, start, steps, None, there, [4, 5, 4, 5], scan, 0.5, causal)
    assert torch.equal(OPS._patch_match(*arguments), OPS._patch_match_formula(*arguments))


def test_sinkhorn_makes_columns_sum_to_one_and_passes_gradcheck() -> None:
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(OPS._sinkhorn(x, 5).sum(-2), torch.ones(2, 3, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda x: OPS._sinkhorn(x, 3), [x]) and torch.autograd.gradgradcheck(lambda x: OPS._sinkhorn(x, 3), [x])
