"""delta_attention against a loop over tokens: values, state, masks, alignment, gradients, and a sequence given in pieces."""

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

PRIMITIVE = torch.ops.foveate._delta_attention
FORMULA = torch.ops.foveate._delta_attention_formula


def by_loop(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, key_mask: Tensor | None = None, state: Tensor | None = None,
    offset: int | None = None, causal: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One key after another, then one query after another."""
    B, H, N, F = q.shape
    Hk, M, Dv = k.shape[1], k.shape[2], v.shape[3]
    offset = M - N if offset is None else offset
    S = q.new_zeros(B, Hk, F, Dv) if state is None else state
    states = [S]  # before key 0, 1, ..., M
    for j in range(M):
        key, value, strength = k[:, :, j], v[:, :, j], beta[:, :, j, None]
        written = torch.einsum("bhf,bhd->bhfd", key, strength * (value - torch.einsum("bhf,bhfd->bhd", key, S)))
        if key_mask is not None:
            written = torch.where(key_mask[:, j, None, None, None], written, 0)
        S = S + written
        states.append(S)
    outs = [q.new_zeros(B, H, 0, Dv)]
    for i in range(N):
        seen = states[min(max(i + offset + 1, 0), M)] if causal else states[M]
        outs.append(torch.einsum("bhf,bhfd->bhd", q[:, :, i], seen.repeat_interleave(H // Hk, 1)).unsqueeze(2))
    return torch.cat(outs, 2), S


def delta(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, key_mask: Tensor | None = None, state: Tensor | None = None,
    offset: int | None = None, causal: bool = True, run: Any = PRIMITIVE,
) -> Any:  # fmt: skip
    """The primitive, its arguments by name."""
    return run(q, k, v, beta, key_mask, state, k.shape[2] - q.shape[2] if offset is None else offset, causal)


def drawn(sizes: Mapping[str, int], *, mask: bool = False, state: bool = False, seed: int = 0) -> dict[str, Tensor]:
    """Arguments of these sizes; keys are about as long as one, so that no memory grows without bound."""
    g = torch.Generator().manual_seed(seed)

    def random(*letters: str) -> Tensor:
        return torch.randn([sizes.get(n, 2) for n in letters], generator=g, dtype=torch.float64)

    k = random("B", "Hk", "M", "F")
    a = {"q": random("B", "H", "N", "F"), "k": k / k.norm(dim=-1, keepdim=True), "v": random("B", "Hk", "M", "Dv")}
    a["beta"] = torch.rand(a["k"].shape[:3], generator=g, dtype=torch.float64)
    if mask:
        a["key_mask"] = torch.rand(sizes.get("B", 2), sizes["M"], generator=g) < 0.7
    if state:
        a["state"] = random("B", "Hk", "F", "Dv")
    return a


def assert_as_the_loop(a: dict[str, Tensor], **options: Any) -> None:
    for got, want in zip(delta(**a, **options), by_loop(**a, **options), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("length", [0, 1, 2, 63, 64, 65, 128, 129])
@pytest.mark.parametrize("mask", [False, True], ids=["plain", "masked"])
def test_at_the_borders_of_chunks(length: int, mask: bool) -> None:
    assert_as_the_loop(drawn({"N": length, "M": length, "F": 5, "Dv": 3}, mask=mask, state=mask))


@pytest.mark.parametrize(("queries", "keys"), [(3, 70), (70, 3), (5, 0), (0, 5)])
@pytest.mark.parametrize("offset", [None, 0, -2, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_unequal_lengths(queries: int, keys: int, offset: int | None, causal: bool) -> None:
    assert_as_the_loop(drawn({"N": queries, "M": keys, "F": 4, "Dv": 3}, state=True), offset=offset, causal=causal)


@pytest.mark.parametrize(("heads", "key_heads", "batch"), [(4, 2, 3), (3, 1, 1), (2, 2, 0)])
def test_grouped_heads_and_empty_batches(heads: int, key_heads: int, batch: int) -> None:
    assert_as_the_loop(drawn({"B": batch, "H": heads, "Hk": key_heads, "N": 7, "M": 7, "F": 4, "Dv": 3}, mask=True))


def test_a_key_of_length_one_written_with_full_strength_gives_its_value_back() -> None:
    a = drawn({"N": 80, "M": 80, "F": 6, "Dv": 4}, state=True)
    a["beta"] = torch.ones_like(a["beta"])
    a["q"] = a["k"]
    torch.testing.assert_close(delta(**a)[0], a["v"])


def test_pieces_with_a_carried_state_equal_the_whole() -> None:
    a = drawn({"N": 140, "M": 140, "H": 4, "Hk": 2, "F": 5, "Dv": 3}, mask=True)
    want = delta(**a)
    state, outs = None, []
    for begin, end in itertools.pairwise([0, 1, 40, 104, 140]):
        piece = {n: x[:, begin:end] if n == "key_mask" else x[:, :, begin:end] for n, x in a.items()}
        out, state = delta(**piece, state=state)
        outs.append(out)
    for got, expected in zip((torch.cat(outs, 2), state), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_what_is_hidden_may_hold_anything() -> None:
    a = drawn({"N": 9, "M": 9, "F": 4, "Dv": 3}, mask=True)
    want = delta(**a)
    hidden = ~a["key_mask"][:, None, :, None]
    a["k"], a["v"] = a["k"].masked_fill(hidden, torch.nan), a["v"].masked_fill(hidden, torch.inf)
    a["beta"] = a["beta"].masked_fill(hidden.squeeze(-1), torch.nan)
    for got, expected in zip(delta(**a), want, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_half_precision_sums_in_float(dtype: torch.dtype) -> None:
    a = {n: x.to(dtype) for n, x in drawn({"N": 500, "M": 500, "F": 8, "Dv": 4}).items()}
    out, S = delta(**a)
    exact = delta(**{n: x.double() for n, x in a.items()})
    assert out.dtype == dtype
    assert S.dtype == torch.float32
    torch.testing.assert_close(S.double(), exact[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.double(), exact[0], rtol=2 * torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps + 1e-4)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_of_every_order(causal: bool) -> None:
    a = drawn({"B": 1, "H": 2, "Hk": 1, "N": 3, "M": 4, "F": 2, "Dv": 2}, mask=True, state=True)
    names = [n for n, x in a.items() if x.is_floating_point()]
    leaves = tuple(a[n].requires_grad_() for n in names)

    def function(*given: Tensor) -> Any:
        return delta(**{**a, **dict(zip(names, given, strict=True))}, causal=causal)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("length", [64, 65, 130])
def test_gradients_across_chunks(length: int) -> None:
    a = drawn({"B": 1, "H": 1, "Hk": 1, "N": length, "M": length, "F": 4, "Dv": 3}, state=True)
    leaves = [x.requires_grad_() for x in a.values()]
    loss = lambda outputs: sum((x * torch.arange(1.0, x.numel() + 1).view_as(x).sin()).sum() for x in outputs)  # noqa: E731
    for name, x, y in zip(a, torch.autograd.grad(loss(delta(**a)), leaves), torch.autograd.grad(loss(by_loop(**a)), leaves), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


def test_opcheck() -> None:
    a = drawn({"H": 4, "N": 5, "M": 7, "F": 3, "Dv": 2}, mask=True, state=True)
    for x in a.values():
        if x.is_floating_point():
            x.requires_grad_()
    opcheck(PRIMITIVE.default, (a["q"], a["k"], a["v"], a["beta"], a["key_mask"], a["state"], 2, True))


STORED = {
    "plain": lambda x: x.contiguous(),
    "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "gaps": lambda x: torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0],
    "one head": lambda x: x[:, :1].expand_as(x),
}
PRECISION = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
SIZES = st.fixed_dictionaries(
    {"B": st.integers(1, 2), "N": st.integers(1, 150), "M": st.integers(1, 150), "F": st.integers(1, 40), "Dv": st.integers(1, 40)}
)


@settings(max_examples=150, deadline=None)
@given(SIZES, st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]), st.sampled_from(list(PRECISION)), st.sampled_from(list(STORED)), st.booleans(),
       st.booleans(), st.booleans(), st.none() | st.integers(-160, 160), st.integers(0, 9))  # fmt: skip
def test_the_kernel_equals_the_formula_with_its_gradients(
    sizes: dict[str, int],
    heads: tuple[int, int],
    dtype: torch.dtype,
    stored: str,
    causal: bool,
    mask: bool,
    state: bool,
    offset: int | None,
    seed: int,
) -> None:
    a = drawn({**sizes, "H": heads[0], "Hk": heads[1]}, mask=mask, state=state, seed=seed)
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    a = {n: x if n == "key_mask" else x.to(sums) if n == "state" else STORED[stored](x.to(dtype)) for n, x in a.items()}
    leaves = [n for n in a if n != "key_mask"]

    def outcome(a: dict[str, Tensor], run: Any) -> list[Tensor]:
        a = {n: x.detach().requires_grad_() if n in leaves else x for n, x in a.items()}
        results = delta(**a, offset=offset, causal=causal, run=run)
        # Rounded alike for both, or their gradients would be those of two losses.
        weights = [
            torch.arange(1.0, x.numel() + 1, dtype=torch.float64).view_as(x).sin().to(stored_as).to(x.dtype)
            for x, stored_as in zip(results, (dtype, sums), strict=True)
        ]
        return [*results, *torch.autograd.grad(results, [a[n] for n in leaves], weights)]

    got = outcome(a, PRIMITIVE)
    want = outcome({n: x if n == "key_mask" else x.double() for n, x in a.items()}, FORMULA)
    for name, x, y in zip(["out", "state after", *leaves], got, want, strict=True):
        assert x.dtype == (sums if name in ("state", "state after") else dtype)
        size = y.abs().max().clamp_min(1).item()
        torch.testing.assert_close(x.double() / size, y / size, rtol=0, atol=PRECISION[dtype], msg=lambda m, name=name: f"{name}: {m}")


def test_the_number_of_threads_does_not_matter() -> None:
    a = {n: x.float().requires_grad_() for n, x in drawn({"B": 3, "H": 6, "Hk": 3, "N": 200, "M": 200, "F": 12, "Dv": 9}, state=True).items()}
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out, S = delta(**a)
            results.append([out, S, *torch.autograd.grad(out.square().sum() + S.square().sum(), list(a.values()))])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for other in results[1:] for x, y in zip(results[0], other, strict=True))


@pytest.mark.filterwarnings("error")
def test_vmap_and_func_grad() -> None:
    a = drawn({"B": 3, "N": 5, "M": 5, "F": 3, "Dv": 2}, state=True)
    k = torch.stack([a["k"], a["k"] * 0.5])
    loss = lambda x: delta(**{**a, "k": x})[0].square().sum()  # noqa: E731
    torch.testing.assert_close(torch.vmap(loss)(k), torch.stack([loss(x) for x in k]))
    for x, gradient in zip(k, torch.vmap(torch.func.grad(loss))(k), strict=True):
        leaf = x.clone().requires_grad_()
        torch.testing.assert_close(gradient, torch.autograd.grad(loss(leaf), leaf)[0])
