"""attention against a loop over scores, and kernel against formula: masks, windows, offsets, every score bias, dropout, gradients."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

import foveate
from tests.ops.test_merge_attention import on_capability

PRIMITIVE, FORMULA, OPERATOR = torch.ops.foveate._attention, torch.ops.foveate._attention_formula, torch.ops.foveate.attention
BIASES = ("none", "slopes", "table", "rows", "row_query", "value_rows", "rows_and_value_rows")
TENSORS = ("q", "k", "v", "mask", "key_mask", "bias", "slopes", "table", "rows", "row_query", "value_rows", "dropout_keep", "dropout_seed")


def arguments(
    B: int = 2, H: int = 2, Hk: int = 2, N: int = 5, M: int = 7, D: int = 4, Dv: int = 3, *, mask: str = "", key_mask: bool = False, bias: str = "",
    position: str = "none", dropout: float = 0.0, causal: bool = False, window: int | None = None, offset: int | None = None,
    softcap: float | None = None, drawn: bool = False, dtype: torch.dtype = torch.float64, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """All arguments of the primitive, by name. mask and bias name the letters of their shape; other dimensions are 1."""
    g = torch.Generator().manual_seed(seed)
    sizes = {"B": B, "H": H, "N": N, "M": M}

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    def broadcast(letters: str) -> list[int]:
        return [size if letter in letters else 1 for letter, size in sizes.items()]

    a: dict[str, Any] = dict.fromkeys(TENSORS)
    a |= {"pattern": None, "tables": [], "q": normal(B, H, N, D), "k": normal(B, Hk, M, D), "v": normal(B, Hk, M, Dv)}
    if mask:
        a["mask"] = torch.rand(broadcast(mask), generator=g) < 0.7
    if key_mask:
        a["key_mask"] = torch.rand(B, M, generator=g) < 0.7
    if bias:
        a["bias"] = normal(*broadcast(bias))
    length, origin = 9, 4
    if position == "slopes":
        a["slopes"] = torch.rand(H, generator=g, dtype=torch.float64).to(dtype)
    if position == "table":
        a["table"] = normal(H, length)
    if position in ("rows", "rows_and_value_rows"):
        a["rows"] = normal(1, length, D)
    if position == "row_query":
        a["rows"], a["row_query"] = normal(H, length, D), normal(B, H, N, D)
    if position in ("value_rows", "rows_and_value_rows"):
        a["value_rows"] = normal(H, length, Dv)
    if dropout and drawn:
        a["dropout_seed"] = torch.tensor(1234 + seed)
    elif dropout:
        a["dropout_keep"] = torch.rand(B, H, N, M, generator=g) >= dropout
    at = M - N if offset is None else offset
    return (
        a | {"offset": at, "origin": origin, "window": window, "causal": causal, "scale": 1 / math.sqrt(D), "dropout": dropout} | {"softcap": softcap}
    )


def mixed(x: int) -> int:
    x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
    x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def keep(a: dict[str, Any], b: int, h: int, i: int, j: int) -> bool:
    """Whether dropout keeps a probability: as given, or by the hash of its place."""
    if a["dropout_keep"] is not None:
        return bool(a["dropout_keep"][b, h, i, j])
    if a["dropout_seed"] is None:
        return True
    _, H, N, _ = a["q"].shape
    row = mixed((b * H + h) * N + i + int(a["dropout_seed"]) & 0xFFFFFFFF)
    return mixed(row + j * 0x9E3779B1 & 0xFFFFFFFF) >= int(a["dropout"] * 2**32)


def by_loop(a: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """One query after another, one key after another, in plain numbers."""
    q, k, v = a["q"], a["k"], a["v"]
    B, H, N, _ = q.shape
    M, Dv, group = k.shape[2], v.shape[3], H // k.shape[1]
    out, lse = torch.zeros(B, H, N, Dv, dtype=q.dtype), torch.full((B, H, N), -torch.inf, dtype=q.dtype)

    def entry(x: Tensor, b: int, h: int, i: int, j: int) -> Tensor:
        return x.expand(B, H, N, M)[b, h, i, j]

    def row(x: Tensor, h: int, delta: int) -> Tensor:
        return x[h if x.shape[0] > 1 else 0, min(max(delta + a["origin"], 0), x.shape[1] - 1)]

    for b, h, i in ((b, h, i) for b in range(B) for h in range(H) for i in range(N)):
        scores, values = [], []
        for j in range(M):
            delta = j - i - a["offset"]
            hidden = (a["mask"] is not None and not entry(a["mask"], b, h, i, j)) or (a["key_mask"] is not None and not a["key_mask"][b, j])
            if hidden or (a["causal"] and delta > 0) or (a["window"] is not None and delta <= -a["window"]):
                continue
            s = q[b, h, i].dot(k[b, h // group, j]) * a["scale"]
            if a["softcap"] is not None:
                s = (s / a["softcap"]).tanh() * a["softcap"]
            if a["bias"] is not None:
                s = s + entry(a["bias"], b, h, i, j)
            if a["slopes"] is not None:
                s = s - a["slopes"][h] * abs(delta)
            if a["table"] is not None:
                s = s + row(a["table"], h, delta)
            if a["rows"] is not None:
                s = s + (q if a["row_query"] is None else a["row_query"])[b, h, i].dot(row(a["rows"], h, delta)) * a["scale"]
            value = v[b, h // group, j]
            if a["value_rows"] is not None:
                value = value + row(a["value_rows"], h, delta)
            scores.append(s)
            values.append(value * (float(keep(a, b, h, i, j)) / (1 - a["dropout"])))
        if scores:
            s = torch.stack(scores)
            lse[b, h, i] = s.logsumexp(0)
            out[b, h, i] = s.softmax(0) @ torch.stack(values)
    return out, lse


def assert_same(got: Any, want: Any, tolerance: float) -> None:
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def floats(a: dict[str, Any]) -> list[str]:
    return [n for n in TENSORS if a[n] is not None and a[n].is_floating_point()]


def gradients(operator: Any, a: dict[str, Any]) -> list[Tensor]:
    """Of a loss that weighs every output and every finite log-sum-exp differently."""
    leaves = {n: a[n].detach().clone().requires_grad_() for n in floats(a)}
    out, lse = operator(**{**a, **leaves})
    weights = [(torch.arange(x.numel()) % 17 - 8).view_as(x).to(x.dtype) / 8 for x in (out, lse)]  # exact in half precision too
    loss = (out * weights[0]).sum() + (torch.where(lse.isinf(), 0, lse) * weights[1]).sum()
    return list(torch.autograd.grad(loss, list(leaves.values())))


SIZES = {"B": st.integers(1, 2), "N": st.integers(0, 5), "M": st.integers(0, 6), "D": st.integers(1, 4), "Dv": st.integers(1, 4)}


@settings(max_examples=80, deadline=None)
@given(st.fixed_dictionaries(SIZES), st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]), st.sampled_from(BIASES),
       st.sampled_from(["", "M", "NM", "BM", "HN", "BHNM"]), st.booleans(), st.sampled_from(["", "NM", "H", "BHNM"]), st.booleans(),
       st.none() | st.integers(1, 7), st.none() | st.integers(-7, 7), st.sampled_from([0.0, 0.4]), st.booleans(),
       st.sampled_from([None, 1.5]), st.integers(0, 9))  # fmt: skip
def test_as_the_loop(
    sizes: dict[str, int], heads: tuple[int, int], position: str, mask: str, key_mask: bool, bias: str, causal: bool, window: int | None,
    offset: int | None, dropout: float, drawn: bool, softcap: float | None, seed: int,
) -> None:  # fmt: skip
    a = arguments(**sizes, H=heads[0], Hk=heads[1], position=position, mask=mask, key_mask=key_mask, bias=bias, causal=causal, window=window,
                  offset=offset, dropout=dropout, drawn=drawn, softcap=softcap, seed=seed)  # fmt: skip
    want = by_loop(a)
    assert_same(PRIMITIVE(**a), want, 1e-11)
    assert_same(FORMULA(**a), want, 1e-11)


LARGE: dict[str, dict[str, Any]] = {
    "one tile": {"N": 64, "M": 64},
    "tails": {"N": 65, "M": 63, "D": 17, "Dv": 9},
    "many keys": {"B": 1, "N": 3, "M": 600, "D": 8, "Dv": 8, "H": 4, "Hk": 1},
    "causal": {"N": 130, "M": 130, "causal": True, "D": 16, "Dv": 16},
    "causal, fewer queries": {"N": 70, "M": 300, "causal": True},
    "causal, more queries": {"N": 200, "M": 70, "causal": True},
    "causal from the start": {"N": 70, "M": 150, "causal": True, "offset": 0},
    "window": {"N": 150, "M": 150, "causal": True, "window": 20},
    "window on both sides of nothing": {"N": 90, "M": 140, "window": 30, "offset": 100},
    "masks": {"N": 70, "M": 140, "mask": "NM", "key_mask": True},
    "a mask for each head": {"N": 66, "M": 66, "mask": "BHNM"},
    "bias": {"N": 66, "M": 130, "bias": "HNM"},
    "slopes": {"N": 80, "M": 130, "position": "slopes", "causal": True},
    "table": {"N": 80, "M": 130, "position": "table"},
    "rows": {"N": 80, "M": 130, "position": "rows"},
    "row_query": {"N": 80, "M": 90, "position": "row_query", "causal": True},
    "value_rows": {"N": 70, "M": 90, "position": "rows_and_value_rows", "key_mask": True},
    "dropout": {"N": 70, "M": 70, "dropout": 0.3, "causal": True},
    "dropout, drawn": {"N": 130, "M": 300, "dropout": 0.3, "drawn": True, "window": 150},
    "softcap": {"N": 70, "M": 90, "softcap": 1.0, "causal": True, "bias": "HNM"},
    "bias by key": {"N": 140, "M": 90, "bias": "M"},
    "bias by query": {"N": 140, "M": 90, "bias": "BN", "H": 4, "Hk": 2},
    "bias by head": {"N": 140, "M": 90, "bias": "H"},
    "rows of few heads": {"N": 200, "M": 330, "position": "rows", "H": 4, "Hk": 2, "D": 17, "causal": True},
    "few queries": {"N": 2, "M": 700, "H": 6, "Hk": 2, "D": 20, "Dv": 24, "key_mask": True, "softcap": 2.0},
    "few queries, causal": {"N": 3, "M": 4200, "H": 2, "Hk": 1, "D": 16, "Dv": 16, "causal": True, "window": 3000, "position": "slopes"},
    "few queries, dropped": {"B": 1, "N": 1, "M": 333, "H": 40, "Hk": 1, "D": 8, "Dv": 8, "dropout": 0.5, "drawn": True},
    "split": {"B": 1, "N": 40, "M": 5000, "H": 2, "Hk": 2, "D": 8, "Dv": 8, "mask": "NM"},
    "split, causal": {"B": 1, "N": 70, "M": 5000, "H": 1, "Hk": 1, "D": 8, "Dv": 8, "causal": True, "window": 2500},
    "many heads": {"N": 140, "M": 130, "H": 8, "Hk": 8, "D": 20, "causal": True},
    "grouped": {"N": 70, "M": 70, "H": 6, "Hk": 2, "key_mask": True},
}
EVERY_LARGE = pytest.mark.parametrize("name", LARGE)


@EVERY_LARGE
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 3e-5)], ids=str)
def test_kernel_equals_formula(name: str, dtype: torch.dtype, tolerance: float) -> None:
    a = arguments(**LARGE[name], dtype=dtype)
    assert_same(PRIMITIVE(**a), FORMULA(**a), tolerance)


@EVERY_LARGE
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 3e-4)], ids=str)
def test_gradients_of_kernel_equal_those_of_formula(name: str, dtype: torch.dtype, tolerance: float) -> None:
    a = arguments(**LARGE[name], dtype=dtype)
    assert_same(gradients(PRIMITIVE, a), gradients(FORMULA, a), tolerance)


@EVERY_LARGE
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_once(name: str, dtype: torch.dtype) -> None:
    a = arguments(**LARGE[name], dtype=dtype)
    out, lse = PRIMITIVE(**a)
    exact = FORMULA(**{n: x.double() if n in floats(a) else x for n, x in a.items()})
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    torch.testing.assert_close(out.double(), exact[0], rtol=torch.finfo(dtype).eps, atol=1e-4)
    torch.testing.assert_close(lse.double(), exact[1], rtol=1e-5, atol=1e-5)
    for got, want in zip(gradients(PRIMITIVE, a), gradients(FORMULA, {n: x.float() if n in floats(a) else x for n, x in a.items()}), strict=True):
        assert got.dtype == dtype
        assert (got.float() - want).norm() <= 8 * torch.finfo(dtype).eps * want.norm()


SHORT_OF_LARGE = ("tails", "many keys", "causal", "window", "masks", "bias", "slopes", "table", "grouped")
ALL_CAPABILITIES = """
import torch, foveate
from tests.ops.test_attention import *
for name in SHORT_OF_LARGE:
    a = arguments(**LARGE[name], dtype=torch.float32)
    assert_same(PRIMITIVE(**a), FORMULA(**a), 3e-5)
    assert_same(gradients(PRIMITIVE, a), gradients(FORMULA, a), 3e-4)
print(torch.backends.cpu.get_cpu_capability())
"""


@pytest.mark.parametrize("capability", ["DEFAULT", "AVX2", "AVX512"])
def test_every_instruction_set(capability: str) -> None:
    here, order = torch.backends.cpu.get_cpu_capability(), ["DEFAULT", "AVX2", "AVX512"]
    if here not in order or order.index(here) <= order.index(capability):
        pytest.skip(f"this machine has {here}, which every other test runs")
    assert on_capability(capability, ALL_CAPABILITIES) == capability


@EVERY_LARGE
def test_products_of_the_matrix_unit_round_no_more_than_those_of_vectors(name: str) -> None:
    a = arguments(**LARGE[name], dtype=torch.bfloat16) | {"scale": 0.3}  # no power of two
    with torch.backends.mkldnn.flags(enabled=False):
        want = [*PRIMITIVE(**a), *gradients(PRIMITIVE, a)]
    for got, exact in zip([*PRIMITIVE(**a), *gradients(PRIMITIVE, a)], want, strict=True):
        torch.testing.assert_close(got, exact, rtol=2**-7, atol=2**-7 * exact.float().abs().nan_to_num(posinf=0).max().item() * 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["tails", "causal", "grouped"])
def test_the_same_bits_on_any_number_of_threads(name: str, dtype: torch.dtype) -> None:
    a = arguments(**LARGE[name], dtype=dtype)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append([*PRIMITIVE(**a), *gradients(PRIMITIVE, a)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for other in results[1:] for x, y in zip(results[0], other, strict=True))


def test_layout_does_not_matter() -> None:
    a = arguments(N=70, M=70, mask="BHNM", bias="BHNM")
    want, want_gradients = PRIMITIVE(**a), gradients(PRIMITIVE, a)
    for name in ("q", "k", "v", "mask", "bias"):
        x = a[name]
        gaps = x.new_empty((*x.shape[:-1], 2 * x.shape[-1]))
        gaps[..., ::2] = x
        for other in (x.transpose(1, 2).contiguous().transpose(1, 2), x.transpose(2, 3).contiguous().transpose(2, 3), gaps[..., ::2]):
            assert_same(PRIMITIVE(**{**a, name: other}), want, 1e-12)
    expanded = {**a, "k": a["k"][:, :, :1].expand_as(a["k"]), "v": a["v"][:1, :1].expand_as(a["v"])}
    solid = {n: x.contiguous() if isinstance(x, Tensor) else x for n, x in expanded.items()}
    assert_same(PRIMITIVE(**expanded), PRIMITIVE(**solid), 1e-12)
    turned = {n: x.transpose(1, 2).contiguous().transpose(1, 2) if n in ("q", "k", "v") else x for n, x in a.items()}
    assert_same(gradients(PRIMITIVE, turned), want_gradients, 1e-12)


def hidden_ways() -> dict[str, dict[str, Any]]:
    return {
        "mask": {"mask": torch.zeros(1, 1, 5, 7, dtype=torch.bool)},
        "key_mask": {"key_mask": torch.zeros(2, 7, dtype=torch.bool)},
        "causal": {"causal": True, "offset": -9},
        "window": {"window": 1, "offset": 30},
        "no keys": {"k": torch.zeros(2, 2, 0, 4, dtype=torch.float64), "v": torch.zeros(2, 2, 0, 3, dtype=torch.float64)},
    }


@pytest.mark.parametrize("operator", [PRIMITIVE, FORMULA], ids=["kernel", "formula"])
@pytest.mark.parametrize("way", hidden_ways())
def test_a_query_that_sees_nothing_gives_zeros_and_no_gradient(way: str, operator: Any) -> None:
    a = arguments() | hidden_ways()[way]
    out, lse = operator(**a)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()
    assert all((g == 0).all() for g in gradients(operator, a))


def test_some_queries_see_nothing_and_the_others_are_as_before() -> None:
    a = arguments(N=70, M=70, mask="NM")
    a["mask"][..., [3, 64, 69], :] = False
    assert_same(PRIMITIVE(**a), FORMULA(**a), 1e-12)
    assert_same(gradients(PRIMITIVE, a), gradients(FORMULA, a), 1e-11)
    assert (PRIMITIVE(**a)[0][:, :, [3, 64, 69]] == 0).all()


def test_large_scores_stay_finite() -> None:
    a = arguments(N=20, M=90, dtype=torch.float32)
    a["q"] = a["q"] * 1e4
    out, lse = PRIMITIVE(**a)
    assert out.isfinite().all()
    assert lse.isfinite().all()
    assert_same((out, lse), FORMULA(**a), 1e-4)
    assert all(g.isfinite().all() for g in gradients(PRIMITIVE, a))


def test_an_additive_mask_of_minus_infinity_hides() -> None:
    a = arguments(N=6, M=70, mask="NM")
    hidden = {**a, "mask": None, "bias": torch.zeros_like(a["mask"], dtype=torch.float64).masked_fill(~a["mask"], -torch.inf)}
    assert_same(PRIMITIVE(**hidden), PRIMITIVE(**a), 1e-12)
    assert_same(FORMULA(**hidden), PRIMITIVE(**a), 1e-12)


@pytest.mark.parametrize("operator", [PRIMITIVE, FORMULA], ids=["kernel", "formula"])
@pytest.mark.parametrize(
    "options",
    [{"causal": True, "key_mask": True}, {"bias": "HM"}, {"position": "slopes"}, {"position": "table"}, {"position": "row_query"},
     {"position": "rows_and_value_rows"}, {"dropout": 0.3}, {"H": 2, "Hk": 1}],
    ids=lambda o: "-".join(map(str, o.values())),
)  # fmt: skip
def test_gradients_of_every_order(options: dict[str, Any], operator: Any) -> None:
    a = arguments(**{"B": 1, "N": 2, "M": 3, "D": 2, "Dv": 2, "seed": 1, **options})
    if a["key_mask"] is not None:
        a["key_mask"][:] = torch.tensor([[True, False, True]])
    names = floats(a)
    leaves = tuple(a[n].requires_grad_() for n in names)

    def function(*values: Tensor) -> Any:
        return operator(**{**a, **dict(zip(names, values, strict=True))})

    assert torch.autograd.gradcheck(function, leaves)
    if operator is PRIMITIVE:
        assert torch.autograd.gradgradcheck(function, leaves)


def test_only_the_gradients_that_are_asked_for() -> None:
    a = arguments(N=20, M=30)
    want = dict(zip("qkv", gradients(FORMULA, a), strict=True))
    weights = torch.arange(1.0, 2 * 2 * 20 * 3 + 1, dtype=torch.float64).view(2, 2, 20, 3).sin()
    for name in "qkv":
        leaf = a[name].clone().requires_grad_()
        found = torch.autograd.grad((PRIMITIVE(**{**a, name: leaf})[0] * weights).sum(), leaf)[0]
        whole = {n: a[n].clone().requires_grad_() for n in "qkv"}
        expected = torch.autograd.grad((FORMULA(**{**a, **whole})[0] * weights).sum(), whole[name])[0]
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    lse_only = a["k"].clone().requires_grad_()
    assert torch.autograd.grad(PRIMITIVE(**{**a, "k": lse_only})[1].sum(), lse_only)[0].shape == want["k"].shape
    same = a["q"].clone().requires_grad_()  # one tensor in three places
    b = {**a, "q": same, "k": same, "v": same, "offset": 0}
    c = [same.detach().clone().requires_grad_() for _ in range(3)]
    apart = torch.autograd.grad(FORMULA(**{**b, "q": c[0], "k": c[1], "v": c[2]})[0].square().sum(), c)
    torch.testing.assert_close(torch.autograd.grad(PRIMITIVE(**b)[0].square().sum(), same)[0], sum(apart))


@pytest.mark.parametrize("options", [{"causal": True, "key_mask": True}, {"position": "table"}, {"position": "rows_and_value_rows"}], ids=str)
def test_opcheck(options: dict[str, Any]) -> None:
    a = arguments(**options)
    for n in floats(a):
        a[n].requires_grad_()
    opcheck(PRIMITIVE.default, (), a)


@pytest.mark.filterwarnings("error")
def test_vmap_and_func_grad() -> None:
    a = arguments(N=5, M=5, causal=True, key_mask=True)
    q = torch.stack([a["q"], a["q"] * 0.5])
    call = lambda x: PRIMITIVE(**{**a, "q": x})  # noqa: E731
    for got, want in zip(torch.vmap(call)(q), zip(*(call(x) for x in q), strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(want))
    loss = lambda x: call(x)[0].square().sum()  # noqa: E731
    for x, gradient in zip(q, torch.vmap(torch.func.grad(loss))(q), strict=True):
        leaf = x.clone().requires_grad_()
        torch.testing.assert_close(gradient, torch.autograd.grad(loss(leaf), leaf)[0])
        torch.testing.assert_close(torch.func.grad(loss)(x), gradient)


def test_empty_sizes() -> None:
    for sizes in ({"B": 0}, {"N": 0}, {"M": 0}):
        a = arguments(**sizes)
        out, lse = PRIMITIVE(**a)
        assert out.shape == (*a["q"].shape[:3], 3)
        assert lse.shape == a["q"].shape[:3]
        assert all(g.shape == a[n].shape for g, n in zip(gradients(PRIMITIVE, a), "qkv", strict=True))


def test_key_lengths_are_a_key_mask() -> None:
    a = arguments(M=70)
    lengths = torch.tensor([70, 3])
    mask = torch.arange(70) < lengths[:, None]
    want = OPERATOR(a["q"], a["k"], a["v"], key_mask=mask)
    assert_same(OPERATOR(a["q"], a["k"], a["v"], key_lengths=lengths), want, 0)
    both = torch.rand(2, 70) < 0.5
    assert_same(OPERATOR(a["q"], a["k"], a["v"], key_lengths=lengths, key_mask=both), OPERATOR(a["q"], a["k"], a["v"], key_mask=mask & both), 0)


def test_agrees_with_torch() -> None:
    a = arguments(N=33, M=33, D=8, Dv=8)
    q, k, v = (a[n] for n in "qkv")
    torch.testing.assert_close(foveate.attention(q, k, v, causal=True), torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
    mask = torch.rand(2, 1, 33, 33) < 0.6
    torch.testing.assert_close(
        foveate.attention(q, k, v, mask=mask, scale=0.3), torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=0.3)
    )


GOOD = {n: x for n, x in arguments().items() if n in ("q", "k", "v")}
ERRORS = {
    r"q must be \[B,H,N,D\]": {"q": torch.zeros(2, 4, 2)},
    "k must be": {"k": GOOD["k"][..., :1]},
    "v must be": {"v": GOOD["v"][:, :, :3]},
    "k must be Double like q, got Float": {"k": GOOD["k"].float()},
    "heads must divide": {"q": GOOD["q"].repeat(1, 2, 1, 1)[:, :3]},
    "mask must be": {"mask": torch.ones(5, 7)},
    "key_mask": {"key_mask": torch.ones(2, 3, dtype=torch.bool)},
}


@pytest.mark.parametrize("message", ERRORS)
def test_refuses(message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        OPERATOR(**{**GOOD, **ERRORS[message]})
