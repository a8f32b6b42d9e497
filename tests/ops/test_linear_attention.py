"""linear_attention against a loop over tokens: values, states, every denominator, decay, gradients, and a sequence given in pieces."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

import foveate

OPERATOR = torch.ops.foveate.linear_attention
NORMALIZERS = ("none", "add", "clamp", "clamp_abs", "guard")


def by_loop(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None, log_decay: Tensor | None = None, state: Tensor | None = None,
    key_sum: Tensor | None = None, causal: bool = False, normalizer: str = "add", eps: float = 1e-6, offset: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One key after another, then one query after another."""
    B, H, N, F = q.shape
    Hk, M, Dv = k.shape[1], k.shape[2], v.shape[3]
    offset = M - N if offset is None else offset
    S = q.new_zeros(B, Hk, F, Dv) if state is None else state
    z = q.new_zeros(B, Hk, F) if key_sum is None else key_sum
    states = [(S, z)]  # before key 0, 1, ..., M
    for j in range(M):
        seen = torch.ones(B, 1, dtype=torch.bool) if key_mask is None else key_mask[:, j, None]
        if log_decay is not None:
            kept = torch.where(seen, log_decay[:, :, j], 0).exp()
            S, z = S * kept[..., None, None], z * kept[..., None]
        key = torch.where(seen[..., None], k[:, :, j], 0)
        S, z = S + key[..., :, None] * v[:, :, j, None, :], z + key
        states.append((S, z))
    outs = []
    for i in range(N):
        S_i, z_i = states[min(max(i + offset + 1, 0), M)] if causal else states[M]
        numerator = torch.einsum("bhf,bhfd->bhd", q[:, :, i], S_i.repeat_interleave(H // Hk, 1))
        d = (q[:, :, i] * z_i.repeat_interleave(H // Hk, 1)).sum(-1)
        if normalizer == "none":
            d = torch.ones_like(d)
        elif normalizer == "add":
            d = d + eps
        elif normalizer == "clamp":
            d = torch.maximum(d, torch.full_like(d, eps))
        elif normalizer == "clamp_abs":
            d = torch.maximum(d.abs(), torch.full_like(d, eps))
        else:
            d = torch.where(d.abs() > eps, d, d + 2 * eps)
        outs.append(numerator / torch.where(d == 0, 1, d)[..., None])
    out = torch.stack(outs, 2) if outs else q.new_zeros(B, H, 0, Dv)
    return out, *states[M]


def drawn(
    sizes: Mapping[str, int], *, decay: bool = False, mask: bool = False, state: bool = False, signed: bool = False, seed: int = 0
) -> dict[str, Any]:
    """Arguments of these sizes: features positive unless `signed`."""
    g = torch.Generator().manual_seed(seed)

    def random(*letters: str) -> Tensor:
        x = torch.rand([sizes.get(n, 2) for n in letters], generator=g, dtype=torch.float64)
        return x * 2 - 1 if signed else x

    arguments: dict[str, Any] = {"q": random("B", "H", "N", "F"), "k": random("B", "Hk", "M", "F"), "v": random("B", "Hk", "M", "Dv") - 0.5}
    if decay:
        arguments["log_decay"] = -2 * torch.rand(arguments["k"].shape[:3], generator=g, dtype=torch.float64)
    if mask:
        arguments["key_mask"] = torch.rand(sizes.get("B", 2), sizes["M"], generator=g) < 0.7
    if state:
        arguments["state"], arguments["key_sum"] = random("B", "Hk", "F", "Dv"), random("B", "Hk", "F")
    return arguments


def assert_as_the_loop(arguments: dict[str, Any], **options: Any) -> None:
    for got, want in zip(OPERATOR(**arguments, **options), by_loop(**arguments, **options), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 128, 129])
@pytest.mark.parametrize("decay", [False, True], ids=["plain", "decay"])
def test_causal_at_the_borders_of_chunks(length: int, decay: bool) -> None:
    assert_as_the_loop(drawn({"N": length, "M": length}, decay=decay, mask=True, state=True), causal=True)


SIZES = st.fixed_dictionaries(
    {"B": st.integers(0, 3), "N": st.integers(0, 9), "M": st.integers(0, 9), "F": st.integers(1, 5), "Dv": st.integers(1, 5)}
)


@settings(max_examples=150, deadline=None)
@given(SIZES, st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]), st.booleans(), st.booleans(), st.booleans(), st.none() | st.integers(-10, 10),
       st.sampled_from(NORMALIZERS), st.sampled_from([0.0, 1e-6, 0.3]), st.integers(0, 9))  # fmt: skip
def test_any_shape_alignment_and_denominator(
    sizes: dict[str, int], heads: tuple[int, int], causal: bool, mask: bool, state: bool, offset: int | None, normalizer: str, eps: float, seed: int
) -> None:
    arguments = drawn(
        {**sizes, "H": heads[0], "Hk": heads[1]}, decay=causal and seed % 2 == 0, mask=mask, state=state, signed=normalizer != "none", seed=seed
    )
    if eps == 0 and normalizer != "none":  # a signed denominator may be near zero: positive ones compare
        arguments = {n: x.abs() if n in ("q", "k", "key_sum") else x for n, x in arguments.items()}
    assert_as_the_loop(arguments, causal=causal, offset=offset, normalizer=normalizer, eps=eps)


DENOMINATORS = {
    "none": [1, 1, 1, 1, 1],
    "add": [-0.25, 0.125, 0.25, 0.375, 0.75],
    "clamp": [0.25, 0.25, 0.25, 0.25, 0.5],
    "clamp_abs": [0.5, 0.25, 0.25, 0.25, 0.5],
    "guard": [-0.5, 0.375, 0.5, 0.625, 0.5],
}


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_denominators_on_both_sides_of_eps(normalizer: str) -> None:
    q = torch.tensor([-0.5, -0.125, 0, 0.125, 0.5], dtype=torch.float64).view(1, 1, 5, 1)
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    denominators = torch.tensor(DENOMINATORS[normalizer], dtype=torch.float64).view_as(q)
    assert torch.equal(OPERATOR(q, one, one, normalizer=normalizer, eps=0.25)[0], q / denominators)


@pytest.mark.parametrize(("queries", "keys"), [(3, 150), (150, 3), (70, 200), (200, 70)])
@pytest.mark.parametrize("offset", [None, 0, -30, 65])
def test_causal_with_unequal_lengths(queries: int, keys: int, offset: int | None) -> None:
    assert_as_the_loop(drawn({"N": queries, "M": keys}, mask=True), causal=True, offset=offset)


def layouts(x: Tensor) -> Iterator[Tensor]:
    """The same numbers otherwise stored: transposed, with gaps."""
    yield x.transpose(1, 2).contiguous().transpose(1, 2)
    gaps = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"))
    gaps[..., ::2] = x
    yield gaps[..., ::2]


@pytest.mark.parametrize("causal", [False, True])
def test_layout_does_not_matter(causal: bool) -> None:
    a = drawn({"N": 70, "M": 70}, mask=True)
    want = OPERATOR(**a, causal=causal)
    for q, k, v in zip(*(layouts(a[n]) for n in "qkv"), strict=True):
        for got, expected in zip(OPERATOR(q, k, v, key_mask=a["key_mask"], causal=causal), want, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)
    one = a["k"][:, :1]
    got = OPERATOR(a["q"], one.expand_as(a["k"]), a["v"], causal=causal)[0]
    torch.testing.assert_close(got, OPERATOR(a["q"], one.expand_as(a["k"]).contiguous(), a["v"], causal=causal)[0], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_half_precision_sums_in_float(dtype: torch.dtype, causal: bool) -> None:
    a = {n: x.to(dtype) for n, x in drawn({"N": 2000, "M": 2000}).items()}
    out, S, z = OPERATOR(**a, causal=causal)
    exact = OPERATOR(**{n: x.double() for n, x in a.items()}, causal=causal)
    assert out.dtype == dtype
    assert S.dtype == z.dtype == torch.float32
    # One rounding of the result, none of the sums: 2000 keys summed in half precision would be wrong in the first digit.
    torch.testing.assert_close(S.double(), exact[1], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(z.double(), exact[2], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(out.double(), exact[0], rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps / 8 + 1e-6)


@pytest.mark.parametrize("decay", [False, True], ids=["plain", "decay"])
def test_pieces_with_a_carried_state_equal_the_whole(decay: bool) -> None:
    a = drawn({"N": 140, "M": 140, "H": 4, "Hk": 2}, decay=decay, mask=True)
    want = OPERATOR(**a, causal=True)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        cuts = sorted({0, 140, *torch.randint(1, 140, (4,), generator=generator).tolist()})
        state, key_sum, outs = None, None, []
        for begin, end in itertools.pairwise(cuts):
            piece = {n: x[:, begin:end] if n == "key_mask" else x[:, :, begin:end] for n, x in a.items()}
            out, state, key_sum = OPERATOR(**piece, state=state, key_sum=key_sum, causal=True)
            outs.append(out)
        for got, expected in zip((torch.cat(outs, 2), state, key_sum), want, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_a_memory_is_summed_once_and_read_often() -> None:
    a = drawn({"N": 5, "M": 30}, mask=True)
    want, S, z = OPERATOR(**a)
    none = {"k": a["k"][:, :, :0], "v": a["v"][:, :, :0]}
    for i in range(5):
        out, *after = OPERATOR(a["q"][:, :, i : i + 1], **none, state=S, key_sum=z)
        torch.testing.assert_close(out, want[:, :, i : i + 1], rtol=1e-13, atol=1e-13)
        assert torch.equal(after[0], S)
        assert torch.equal(after[1], z)


def test_a_gate_that_closes_forgets_everything_before() -> None:
    a = drawn({"N": 100, "M": 100}, decay=True, state=True)
    a["log_decay"][:, :, [0, 37, 38, 64, 90]] = -torch.inf
    assert_as_the_loop(a, causal=True)
    leaves = [a[n].requires_grad_() for n in ("q", "k", "v", "log_decay", "state", "key_sum")]
    gradients = torch.autograd.grad(OPERATOR(**a, causal=True)[0].sum(), leaves)
    assert all(g.isfinite().all() for g in gradients)
    assert (gradients[4] == 0).all()
    # Small decays after strong ones keep their digits: only differences of logs count.
    a = {n: x.detach() for n, x in drawn({"N": 60, "M": 60}, decay=True).items()}
    a["log_decay"][:, :, 10] = -1e12
    assert_as_the_loop(a, causal=True)


def test_what_is_hidden_may_hold_anything() -> None:
    a = drawn({"N": 6, "M": 6}, mask=True)
    want = OPERATOR(**a)
    hidden = ~a["key_mask"][:, None, :, None]
    a["k"], a["v"] = a["k"].masked_fill(hidden, torch.nan), a["v"].masked_fill(hidden, torch.inf)
    for got, expected in zip(OPERATOR(**a), want, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_a_query_that_sees_nothing_gives_zeros_and_no_gradient(normalizer: str, eps: float) -> None:
    a = drawn({"N": 5, "M": 3})
    a["key_mask"] = torch.tensor([[False] * 3, [True] * 3])
    leaves = [a[n].requires_grad_() for n in "qkv"]
    out = OPERATOR(**a, causal=True, offset=-2, normalizer=normalizer, eps=eps)[0]
    assert (out[0] == 0).all()
    assert (out[1, :, :2] == 0).all()
    assert (out[1, :, 2:] != 0).all()
    gradients = torch.autograd.grad(out.square().sum() + out.sum(), leaves)
    assert all(g.isfinite().all() for g in gradients)
    assert all((g[0] == 0).all() for g in gradients)
    assert (gradients[0][1, :, :2] == 0).all()


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_of_every_order(normalizer: str, causal: bool) -> None:
    a = drawn({"B": 1, "H": 2, "Hk": 1, "N": 3, "M": 4}, state=True, decay=causal, mask=True)
    names = [n for n, x in a.items() if x.is_floating_point()]
    leaves = tuple(a[n].requires_grad_() for n in names)

    def function(*given: Tensor) -> Any:
        return OPERATOR(**{**a, **dict(zip(names, given, strict=True))}, causal=causal, normalizer=normalizer, eps=1e-3)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("length", [64, 65, 130])
def test_gradients_across_chunks(length: int) -> None:
    a = drawn({"B": 1, "H": 1, "Hk": 1, "N": length, "M": length, "Dv": 3}, decay=True, state=True)
    names = list(a)
    loss = lambda outputs: sum((x * torch.arange(1.0, x.numel() + 1).view_as(x).sin()).sum() for x in outputs)  # noqa: E731
    leaves = [a[n].requires_grad_() for n in names]
    got = torch.autograd.grad(loss(OPERATOR(**a, causal=True)), leaves)
    want = torch.autograd.grad(loss(by_loop(**a, causal=True)), leaves)
    for name, x, y in zip(names, got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")


def private(a: dict[str, Any], causal: bool, normalizer: str = "add") -> tuple[Any, ...]:
    """The arguments of the primitive itself."""
    optional = [a.get(n) for n in ("key_mask", "log_decay", "state", "key_sum")]
    return (a["q"], a["k"], a["v"], *optional, a["k"].shape[2] - a["q"].shape[2], causal, normalizer, 1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_opcheck(causal: bool) -> None:
    a = drawn({"H": 4, "N": 5, "M": 7}, state=True, decay=causal, mask=True)
    for x in a.values():
        if x.is_floating_point():
            x.requires_grad_()
    opcheck(torch.ops.foveate._linear_attention.default, private(a, causal))
    if not causal:
        opcheck(OPERATOR.default, (a["q"], a["k"], a["v"]), {"key_mask": a["key_mask"]})


@pytest.mark.parametrize("causal", [False, True])
def test_primitive_equals_formula(causal: bool) -> None:
    a = drawn({"N": 70, "M": 75}, state=True, decay=causal, mask=True)
    for got, want in zip(
        torch.ops.foveate._linear_attention(*private(a, causal)), torch.ops.foveate._linear_attention_formula(*private(a, causal)), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("error")
def test_vmap_and_func_grad() -> None:
    a = drawn({"B": 3, "N": 5, "M": 5}, state=True)
    q = torch.stack([a["q"], a["q"] * 0.5])
    loss = lambda x: OPERATOR(**{**a, "q": x}, causal=True)[0].square().sum()  # noqa: E731
    torch.testing.assert_close(torch.vmap(loss)(q), torch.stack([loss(x) for x in q]))
    gradients = torch.vmap(torch.func.grad(loss))(q)
    for x, gradient in zip(q, gradients, strict=True):
        leaf = x.clone().requires_grad_()
        torch.testing.assert_close(gradient, torch.autograd.grad(loss(leaf), leaf)[0])


def test_the_function_of_the_package() -> None:
    a = drawn({"N": 4, "M": 6})
    lengths = torch.tensor([6, 2])
    mask = torch.arange(6) < lengths[:, None]
    want = OPERATOR(**a, key_mask=mask, causal=True, offset=0, normalizer="guard", eps=0.1)
    out, state = foveate.linear_attention(**a, key_lengths=lengths, causal=True, offset=0, normalizer="guard", eps=0.1, return_state=True)
    assert all(torch.equal(x, y) for x, y in zip((out, *state), want, strict=True))
    assert torch.equal(foveate.linear_attention(**a), OPERATOR(**a)[0])


GOOD = drawn({"N": 4, "M": 4})
ERRORS = {
    "q must be": {"q": torch.zeros(2, 4, 2)},
    "k must be": {"k": GOOD["k"][..., :1]},
    "v must be": {"v": GOOD["v"].float()},
    "heads must divide": {"k": GOOD["k"].repeat(1, 2, 1, 1)[:, :3], "v": GOOD["v"].repeat(1, 2, 1, 1)[:, :3]},
    "key_mask must be": {"key_mask": torch.ones(2, 3, dtype=torch.bool)},
    "key_mask must be Bool": {"key_mask": torch.ones(2, 4)},
    "log_decay must be": {"log_decay": torch.zeros(2, 3, 4), "causal": True},
    "log_decay needs causal": {"log_decay": torch.zeros(2, 2, 4, dtype=torch.float64)},
    "state needs both": {"state": torch.zeros(2, 2, 2, 2, dtype=torch.float64)},
    "key_sum must be": {"state": torch.zeros(2, 2, 2, 2, dtype=torch.float64), "key_sum": torch.zeros(2, 2, 3, dtype=torch.float64)},
    "state must be Double": {"state": torch.zeros(2, 2, 2, 2), "key_sum": torch.zeros(2, 2, 2)},
    "normalizer must be one of none, add.*got 'sum'": {"normalizer": "sum"},
    "eps must not be negative": {"eps": -1.0},
}


@pytest.mark.parametrize("message", ERRORS)
def test_refuses(message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        OPERATOR(**{**GOOD, **ERRORS[message]})
