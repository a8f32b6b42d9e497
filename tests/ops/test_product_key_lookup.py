"""product_keys and weighted_rows: kernels against formulas, and against a search of all products."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from tests.ops.test_merge_attention import on_capability, skip_unless_here

KEYS, KEYS_FORMULA = torch.ops.foveate._product_keys, torch.ops.foveate._product_keys_formula
ROWS, ROWS_FORMULA = torch.ops.foveate._weighted_rows, torch.ops.foveate._weighted_rows_formula
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-11}


def queries(T: int, H: int, h: int, n: int, tables: tuple[int, int], dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    q, keys = torch.randn(T, H, 2, h, generator=g, dtype=torch.float64), torch.randn(*tables, n, h, generator=g, dtype=torch.float64)
    return q.to(dtype), keys.to(dtype)


def exhaustive(q: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best of all n^2 sums."""
    first, second = torch.einsum("thxd,hxnd->xthn", q, keys.expand(q.shape[1], 2, -1, -1))
    scores, slots = (first.unsqueeze(-1) + second.unsqueeze(-2)).flatten(-2).topk(k)
    return scores, slots


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(1, 3), st.integers(1, 9), st.integers(1, 40), st.booleans(), st.booleans(), st.integers(1, 40),
       st.integers(0, 99))  # fmt: skip
def test_the_best_of_all_products_are_found(T: int, H: int, h: int, n: int, one_head: bool, one_half: bool, k: int, seed: int) -> None:
    q, keys = queries(T, H, h, n, (1 if one_head else H, 1 if one_half else 2), seed=seed)
    k = min(k, n)
    scores, slots = KEYS(q, keys, k)
    want, _ = exhaustive(q, keys, k)
    torch.testing.assert_close(scores, want, rtol=1e-11, atol=1e-11)
    for a, b in zip(KEYS_FORMULA(q, keys, k), (scores, slots), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    first, second = torch.einsum("thxd,hxnd->xthn", q, keys.expand(H, 2, -1, -1))
    torch.testing.assert_close(first.gather(2, slots // n) + second.gather(2, slots % n), scores, rtol=1e-11, atol=1e-11)


def test_of_equal_scores_the_lower_index_wins() -> None:
    q, keys = torch.ones(50, 2, 2, 3), torch.ones(2, 2, 20, 3)
    keys[:, :, 11] = 2
    for operator in (KEYS, KEYS_FORMULA):
        scores, slots = operator(q, keys, 6)
        assert (slots == torch.tensor([11 * 20 + 11, 11 * 20, 11 * 20 + 1, 11 * 20 + 2, 11 * 20 + 3, 11 * 20 + 4])).all()
        assert torch.equal(scores[0, 0], torch.tensor([12.0, 9, 9, 9, 9, 9]))


def test_single_precision_finds_the_same_slots() -> None:
    q, keys = queries(100, 2, 16, 64, (2, 2), torch.float32)
    scores, _ = KEYS(q, keys, 32)
    torch.testing.assert_close(scores, exhaustive(q.double(), keys.double(), 32)[0].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("tables", [(3, 2), (1, 2), (3, 1), (1, 1)])
def test_gradients_of_keys_equal_those_of_the_formula(dtype: torch.dtype, tables: tuple[int, int]) -> None:
    given = queries(55, 3, 5, 21, tables, dtype)
    cotangent = torch.randn(55, 3, 7, dtype=dtype)
    found = []
    for operator in (KEYS, KEYS_FORMULA):
        leaves = [t.clone().requires_grad_() for t in given]
        found.append(torch.autograd.grad((operator(*leaves, 7)[0] * cotangent).sum(), leaves))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def rows(T: int, K: int, S: int, width: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    values, weights = torch.randn(S, width, generator=g, dtype=torch.float64), torch.randn(T, K, generator=g, dtype=torch.float64)
    return values.to(dtype), weights.to(dtype), torch.randint(0, S, (T, K), generator=g)


def row_gradients(operator: Any, values: Tensor, weights: Tensor, index: Tensor, cotangent: Tensor, sparse: bool = False) -> tuple[Tensor, ...]:
    leaves = [values.clone().requires_grad_(), weights.clone().requires_grad_()]
    return torch.autograd.grad((operator(leaves[0], leaves[1], index, sparse) * cotangent).sum(), leaves)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 20), st.integers(0, 9), st.integers(1, 30), st.integers(0, 40), st.sampled_from(list(TOLERANCE)), st.integers(0, 99))
def test_rows_and_their_gradients_equal_the_formula(T: int, K: int, S: int, width: int, dtype: torch.dtype, seed: int) -> None:
    given = rows(T, K, S, width, dtype, seed)
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(ROWS(*given, False), ROWS_FORMULA(*given, False), **tolerance)
    cotangent = torch.randn(T, width, dtype=dtype)
    want = row_gradients(ROWS_FORMULA, *given, cotangent)
    for a, b in zip(row_gradients(ROWS, *given, cotangent), want, strict=True):
        torch.testing.assert_close(a, b, **tolerance)
    sparse, _ = row_gradients(ROWS, *given, cotangent, sparse=True)
    assert sparse.is_sparse and sparse.is_coalesced()
    assert torch.equal(sparse.indices()[0], given[2].unique())
    torch.testing.assert_close(sparse.to_dense(), want[0], **tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_reads_rows_as_they_are_stored(dtype: torch.dtype) -> None:
    values, weights, index = rows(9, 5, 30, 24, torch.float32)
    got = ROWS(values.to(dtype), weights, index, False)
    assert got.dtype == dtype
    torch.testing.assert_close(got, ROWS(values.to(dtype).float(), weights, index, False).to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-3)
    scores, _ = KEYS(*(t.to(dtype) for t in queries(5, 2, 8, 9, (2, 2), torch.float32)), 4)
    assert scores.dtype == torch.float32


def test_an_index_beyond_the_table_is_refused() -> None:
    values, weights, index = rows(3, 2, 5, 4)
    with pytest.raises(IndexError, match=r"index must lie in \[0, 5\)"):
        ROWS(values, weights, index + 3, False)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_bits_on_any_number_of_threads(threads: int) -> None:
    q, keys = queries(300, 2, 8, 30, (2, 2), torch.float32)
    values, weights, index = rows(300, 6, 40, 16, torch.float32)

    def everything() -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (q, keys, values, weights)]
        scores, slots = KEYS(leaves[0], leaves[1], 5)
        out = ROWS(leaves[2], leaves[3], index, False)
        return [scores, slots, out, *torch.autograd.grad(scores.square().sum() + out.square().sum(), leaves)]

    before = torch.get_num_threads()
    want = everything()
    try:
        torch.set_num_threads(threads)
        got = everything()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_gradients_of_every_order() -> None:
    q, keys = (t.requires_grad_() for t in queries(3, 2, 2, 5, (2, 2)))
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda *t: KEYS(*t, 3)[0].square(), (q, keys))
    values, weights, index = rows(3, 2, 5, 4)
    leaves = values.requires_grad_(), weights.requires_grad_()
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda *t: ROWS(*t, index, False), leaves)


def test_opcheck_and_vmap() -> None:
    q, keys = queries(4, 2, 3, 5, (2, 2))
    opcheck(KEYS.default, (q.clone().requires_grad_(), keys.clone().requires_grad_(), 3))
    values, weights, index = rows(4, 3, 6, 5)
    opcheck(ROWS.default, (values.clone().requires_grad_(), weights.clone().requires_grad_(), index, False))
    stacked = torch.stack([q, q.flip(0)]), torch.stack([keys, 2 * keys])
    scores, slots = torch.vmap(lambda *t: KEYS(*t, 3))(*stacked)
    out = torch.vmap(lambda w: ROWS(values, w, index, False))(torch.stack([weights, -weights]))
    for i in range(2):
        want = KEYS(stacked[0][i], stacked[1][i], 3)
        torch.testing.assert_close(scores[i], want[0])
        assert torch.equal(slots[i], want[1])
        torch.testing.assert_close(out[i], ROWS(values, weights if i == 0 else -weights, index, False))


ALL_CAPABILITIES = """
import torch
from tests.ops.test_product_key_lookup import KEYS, KEYS_FORMULA, ROWS, ROWS_FORMULA, TOLERANCE, queries, row_gradients, rows
for dtype in TOLERANCE:
    for n, k in ((5, 5), (40, 7), (70, 33)):
        for a, b in zip(KEYS(*queries(50, 2, 6, n, (2, 2), dtype), k), KEYS_FORMULA(*queries(50, 2, 6, n, (2, 2), dtype), k)):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        given = rows(9, k, n, k + 3, dtype)
        torch.testing.assert_close(ROWS(*given, False), ROWS_FORMULA(*given, False), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        cotangent = torch.ones(9, k + 3, dtype=dtype)
        for a, b in zip(row_gradients(ROWS, *given, cotangent), row_gradients(ROWS_FORMULA, *given, cotangent)):
            torch.testing.assert_close(a, b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
print(torch.backends.cpu.get_cpu_capability())
"""


@pytest.mark.parametrize("capability", ["DEFAULT", "AVX2", "AVX512"])
def test_every_instruction_set(capability: str) -> None:
    skip_unless_here(capability)
    assert on_capability(capability, ALL_CAPABILITIES) == capability
