"""sparse_attention against a loop over queries, and against attention with the pattern written out."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

import foveate
from foveate import patterns
from foveate.patterns import Pattern


def loop(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, bias: Tensor | None, scale: float | None) -> tuple[Tensor, Tensor]:
    """Query by query, with the keys it sees; seen bool [B,H,N,M]."""
    B, H, N, D = q.shape
    group = H // k.shape[1]
    out, lse = q.new_zeros(B, H, N, v.shape[3]), q.new_full((B, H, N), -math.inf)
    for b in range(B):
        for h in range(H):
            for i in range(N):
                js = seen[b, h, i].nonzero().flatten()
                if len(js) == 0:
                    continue
                s = k[b, h // group, js] @ q[b, h, i] * (1 / math.sqrt(D) if scale is None else scale)
                if bias is not None:
                    s = s + bias.expand(B, H, N, k.shape[2])[b, h, i, js]
                lse[b, h, i] = s.logsumexp(0)
                out[b, h, i] = s.softmax(0) @ v[b, h // group, js]
    return out, lse


@dataclass(frozen=True)
class Case:
    """One call; the block path needs more than a few keys."""

    pattern: Pattern
    N: int = 150
    M: int = 150
    B: int = 2
    H: int = 4
    Hk: int = 2
    D: int = 3
    Dv: int = 5
    given: tuple[str, ...] = ()
    bias: tuple[str, ...] = ("B", "H", "N", "M")
    scale: float | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def inputs(self, dtype: torch.dtype = torch.float64) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """q, k, v (and bias), and the masks."""
        g = torch.Generator().manual_seed(self.N + 1000 * self.M)
        made = {
            "q": torch.randn(self.B, self.H, self.N, self.D, generator=g, dtype=torch.float64),
            "k": torch.randn(self.B, self.Hk, self.M, self.D, generator=g, dtype=torch.float64),
            "v": torch.randn(self.B, self.Hk, self.M, self.Dv, generator=g, dtype=torch.float64),
        }
        if "bias" in self.given:
            shape = [getattr(self, s) if s != "1" else 1 for s in self.bias]
            made["bias"] = torch.randn(shape, generator=g, dtype=torch.float64)
        masks = {}
        if "key_mask" in self.given:
            masks["key_mask"] = torch.rand(self.B, self.M, generator=g) < 0.7
        if "key_lengths" in self.given:
            masks["key_lengths"] = torch.randint(0, self.M + 1, (self.B,), generator=g)
        if "mask" in self.given:
            masks["mask"] = torch.rand(1, self.H, self.N, self.M, generator=g) < 0.7
        return {name: x.to(dtype) for name, x in made.items()}, masks

    def call(self, inputs: dict[str, Tensor], masks: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return torch.ops.foveate.sparse_attention(  # type: ignore[no-any-return]
            **inputs, **masks, pattern=self.pattern.expression, tables=list(self.pattern.tables), scale=self.scale
        )

    def seen(self, masks: dict[str, Tensor]) -> Tensor:
        """What pattern and masks show, bool [B,H,N,M]."""
        seen = self.pattern.to_dense(self.N, self.M, heads=self.H).expand(self.B, self.H, self.N, self.M)
        if "key_mask" in masks:
            seen = seen & masks["key_mask"][:, None, None]
        if "key_lengths" in masks:
            seen = seen & (torch.arange(self.M) < masks["key_lengths"][:, None])[:, None, None]
        return seen & masks["mask"] if "mask" in masks else seen


causal, window, strided, heads = patterns.causal(), patterns.sliding_window, patterns.strided, patterns.heads
mixed = (heads(0, 2) & window(10, 0)) | (heads(1, 2) & strided(40) & causal)
layout = torch.rand(4, 10, 10, generator=torch.Generator().manual_seed(0)) < 0.15

CASES = {
    "window": Case(window(9, 4)),
    "causal window and globals": Case((window(20, 0) | patterns.global_tokens(3)) & causal, N=131, M=131),
    "fewer queries": Case(window(30, 0) | patterns.global_tokens([0, 100]), N=37, M=203),
    "more queries": Case(window(30, 5), N=203, M=37),
    "one query": Case(window(30, 0), N=1, M=400),
    "one key": Case(window(0, 0), N=400, M=1),
    "heads differ": Case(mixed, N=170, M=170),
    "heads differ, masked": Case(mixed, N=170, M=190, given=("key_mask", "mask", "bias")),
    "layout by head": Case(patterns.from_blocks(layout, 16), N=157, M=157),
    "one head": Case(patterns.from_blocks(layout[:1], 16), H=1, Hk=1, given=("key_lengths",)),
    "random blocks": Case(patterns.random_blocks(16, patterns.draw_blocks(10, 2, heads=4, seed=1)) | window(3, 3)),
    "dense table": Case(patterns.from_dense(torch.rand(150, 150, generator=torch.Generator().manual_seed(1)) < 0.002)),
    "mostly seen": Case(~patterns.block_diagonal(8), given=("bias", "key_mask")),
    "empty rows": Case(patterns.keys(60, 90) & causal, given=("bias",), bias=("H", "1", "M"), scale=0.3),
    "nothing": Case(causal & ~causal),
    "masked": Case(window(12, 12), given=("key_mask", "key_lengths", "mask", "bias"), bias=("1", "1", "N", "M")),
    "bias by key": Case(window(12, 12), given=("bias",), bias=("B", "1", "1", "M")),
    "bias by query": Case(window(12, 12), given=("bias",), bias=("N", "1")),
    "tiny": Case(window(2, 0), N=5, M=7, given=("key_mask", "bias")),
    "no keys": Case(window(2, 0), M=0, given=("key_mask", "bias")),
    "no queries": Case(window(2, 0), N=0),
    "no batch": Case(window(2, 0), B=0, given=("key_mask",)),
    "long": Case(window(40, 0) | patterns.global_tokens(1), N=1100, M=1100, B=1, H=2, Hk=1),
}  # fmt: skip
EVERY_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@EVERY_CASE
def test_agrees_with_the_loop(case: Case) -> None:
    inputs, masks = case.inputs()
    out, lse = case.call(inputs, masks)
    want_out, want_lse = loop(inputs["q"], inputs["k"], inputs["v"], case.seen(masks), inputs.get("bias"), case.scale)
    torch.testing.assert_close(out, want_out, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(lse, want_lse, rtol=1e-11, atol=1e-12)


@EVERY_CASE
def test_gradients_are_those_of_dense_attention(case: Case) -> None:
    inputs, masks = case.inputs()
    for x in inputs.values():
        x.requires_grad_()
    seen = case.seen(masks)
    sparse = case.call(inputs, masks)
    dense = torch.ops.foveate.attention(inputs["q"], inputs["k"], inputs["v"], mask=seen, bias=inputs.get("bias"), scale=case.scale)
    cotangent = torch.randn(sparse[0].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def gradients(out: Tensor, lse: Tensor) -> tuple[Tensor, ...]:
        loss = (out * cotangent).sum() + torch.where(lse.isfinite(), lse, 0).sin().sum()
        return torch.autograd.grad(loss, list(inputs.values()))

    for name, got, want in zip(inputs, gradients(*sparse), gradients(*dense), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")


SMALLER = [
    Case(window(9, 4), N=40, M=40, B=1, H=2, Hk=1, D=2, Dv=2, given=("bias", "key_mask"), bias=("H", "1", "M")),
    Case((heads(0, 2) & window(3, 0)) | (heads(1, 2) & strided(19) & causal), N=50, M=50, B=1, H=2, Hk=2, D=1, Dv=1),
]


@pytest.mark.parametrize("case", SMALLER, ids=["alike", "apart"])
def test_gradcheck(case: Case) -> None:
    inputs, masks = case.inputs()
    leaves = [x.requires_grad_() for x in inputs.values()]

    def function(*values: Tensor) -> Tensor:
        return case.call(dict(zip(inputs, values, strict=True)), masks)[0]

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("name", ["window", "heads differ, masked", "random blocks", "masked"])
def test_opcheck(name: str) -> None:
    case = CASES[name]
    inputs, masks = case.inputs()
    for x in inputs.values():
        x.requires_grad_()
    arguments = {**inputs, **masks, "pattern": case.pattern.expression, "tables": list(case.pattern.tables)}
    opcheck(torch.ops.foveate.sparse_attention.default, (), arguments)
    private = {n: x for n, x in {**arguments, "scale": 0.5, "offset": case.M - case.N}.items() if n != "key_lengths"}
    for optional in ("key_mask", "mask", "bias"):
        private.setdefault(optional, None)
    opcheck(torch.ops.foveate._attention.default, (), private)


@pytest.mark.parametrize("name", ["window", "heads differ, masked", "mostly seen", "random blocks", "tiny"])
def test_vmap_is_a_loop_over_samples(name: str) -> None:
    case = CASES[name]
    inputs, masks = case.inputs()
    stacked = {n: torch.stack([x, 0.5 * x.flip(0)]) for n, x in inputs.items()}

    def loss(inputs: dict[str, Tensor]) -> Tensor:
        out, lse = case.call(inputs, masks)
        return out.square().sum() + torch.where(lse.isfinite(), lse, 0).sum()

    outs = torch.vmap(lambda given: case.call(given, masks)[0])(stacked)
    gradients = torch.vmap(torch.func.grad(loss))(stacked)
    for sample in range(2):
        one = {n: x[sample] for n, x in stacked.items()}
        torch.testing.assert_close(outs[sample], case.call(one, masks)[0], rtol=1e-11, atol=1e-12)
        for n, gradient in torch.func.grad(loss)(one).items():
            torch.testing.assert_close(gradients[n][sample], gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_lower_precision_is_close(dtype: torch.dtype) -> None:
    case = CASES["causal window and globals"]
    inputs, masks = case.inputs(dtype)
    out, lse = case.call(inputs, masks)
    assert out.dtype == dtype and lse.dtype == torch.float32
    want, want_lse = case.call({n: x.double() for n, x in inputs.items()}, masks)
    torch.testing.assert_close(out.double(), want, rtol=0, atol=2 * torch.finfo(dtype).eps * float(want.abs().max()))
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-5, atol=1e-5)


def test_layout_of_inputs_does_not_matter() -> None:
    case = CASES["heads differ, masked"]
    inputs, masks = case.inputs()
    want = case.call(inputs, masks)[0]
    spread = {n: x.transpose(-1, -2).contiguous().transpose(-1, -2) for n, x in inputs.items()}
    torch.testing.assert_close(case.call(spread, masks)[0], want, rtol=1e-12, atol=1e-13)
    expanded = {n: x[:1].expand_as(x) for n, x in inputs.items()}
    solid = {n: x.contiguous() for n, x in expanded.items()}
    torch.testing.assert_close(case.call(expanded, masks)[0], case.call(solid, masks)[0], rtol=1e-12, atol=1e-13)


def test_what_a_query_does_not_see_is_not_touched() -> None:
    """Not even a NaN of it."""
    case = Case(window(5, 0), N=150, M=150)
    inputs, masks = case.inputs()
    want = case.call(inputs, masks)[0]
    inputs["k"][:, :, 140:] = math.nan
    inputs["v"][:, :, 140:] = math.nan
    assert torch.equal(case.call(inputs, masks)[0][:, :, :128], want[:, :, :128])


def test_step_by_step_is_the_whole() -> None:
    case = CASES["causal window and globals"]
    inputs, masks = case.inputs()
    q, k, v = (inputs[n] for n in "qkv")
    want = case.call(inputs, masks)[0]
    for first, last in ((0, 1), (1, 64), (64, 65), (65, 131)):
        out = foveate.sparse_attention(q[:, :, first:last], k[:, :, :last], v[:, :, :last], case.pattern)
        torch.testing.assert_close(out, want[:, :, first:last], rtol=1e-11, atol=1e-12)


def test_an_offset_says_where_queries_stand() -> None:
    case = CASES["window"]
    inputs, _ = case.inputs()
    whole = foveate.sparse_attention(*inputs.values(), case.pattern)
    part = torch.ops.foveate.sparse_attention(inputs["q"][:, :, 30:50], inputs["k"], inputs["v"], case.pattern.expression, [], offset=30)[0]
    torch.testing.assert_close(part, whole[:, :, 30:50], rtol=1e-11, atol=1e-12)


def test_compiles_and_exports_with_any_length() -> None:
    pattern = window(20, 0) | patterns.random_blocks(16, patterns.draw_blocks(20, 2, seed=0))

    class Model(torch.nn.Module):
        def forward(self, q: Tensor, key_mask: Tensor) -> Tensor:
            out: Tensor = foveate.sparse_attention(q, q, q, pattern, key_mask=key_mask)
            return out

    q, key_mask = torch.randn(2, 2, 150, 4), torch.rand(2, 150) < 0.8
    longer, longer_mask = torch.randn(2, 2, 217, 4), torch.rand(2, 217) < 0.8
    model = Model()
    length = torch.export.Dim("length", min=2, max=4096)
    program = torch.export.export(model, (q, key_mask), dynamic_shapes=({2: length}, {1: length})).module()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for x, mask in ((q, key_mask), (longer, longer_mask)):
        torch.testing.assert_close(program(x, mask), model(x, mask))
        torch.testing.assert_close(compiled(x, mask), model(x, mask))


def test_parts_join_to_the_whole() -> None:
    case = CASES["window"]
    inputs, _ = case.inputs()
    past = foveate.sparse_attention(*inputs.values(), case.pattern & causal, return_lse=True)
    future = foveate.sparse_attention(*inputs.values(), case.pattern & ~causal, return_lse=True)
    out, _ = foveate.merge_attention(*(torch.stack(part) for part in zip(past, future, strict=True)))
    torch.testing.assert_close(out, foveate.sparse_attention(*inputs.values(), case.pattern))


def peak(function: Callable[[], Any]) -> int:
    """Bytes that a call allocates at once, at most."""
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    held = most = 0
    for event in sorted((e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


# --- the kernel against its formula, whatever the pattern and what is added to scores ---------------------------------------------------

PRIMITIVE, FORMULA = torch.ops.foveate._attention, torch.ops.foveate._attention_formula
LEAVES = st.sampled_from([window(9, 4), window(70, 0), window(0, 90), causal, strided(7), strided(64), patterns.fixed(24, 3),
                          patterns.dilated(3, 1, 21), patterns.block_diagonal(48), patterns.block_window(16, 20, 5), patterns.keys(10, 30),
                          patterns.global_tokens(3), patterns.queries(60, 75), heads(0, 2), patterns.global_tokens([5, 66]),
                          patterns.random_blocks(16, patterns.draw_blocks(20, 2, heads=4, seed=1)),
                          patterns.from_blocks(layout.repeat_interleave(2, 1).repeat_interleave(2, 2), 16)])  # fmt: skip


def joined(inner: st.SearchStrategy[Pattern]) -> st.SearchStrategy[Pattern]:
    two = st.tuples(inner, inner)
    return st.one_of(two.map(lambda x: x[0] | x[1]), two.map(lambda x: x[0] & x[1]), inner.map(lambda x: ~x))


ANY_PATTERN = st.recursive(LEAVES, joined, max_leaves=4)
EXTRAS = [
    "key_mask",
    "mask",
    "bias",
    "slopes",
    "table",
    "rows",
    "value_rows",
    "softcap",
    "drawn",
    "keep",
    "window",
    "query_mask",
    "q_index",
    "k_index",
]


@settings(max_examples=60, deadline=None, print_blob=True)
@given(ANY_PATTERN, st.sets(st.sampled_from(EXTRAS), max_size=3), st.sampled_from([1, 2, 16, 17, 64, 130, 200]),
       st.sampled_from([1, 63, 64, 150, 300]), st.sampled_from([4, 2, 1]),
       st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]), st.integers(1, 3), st.integers(0, 99))  # fmt: skip
def test_kernel_equals_formula(pattern: Pattern, extras: set[str], N: int, M: int, Hk: int, dtype: torch.dtype, threads: int, seed: int) -> None:
    a = extended(pattern, extras, N, M, Hk, seed)
    rounded = {n: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for n, x in a.items()}
    exact = {n: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for n, x in rounded.items()}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got, gradients = with_gradients(PRIMITIVE, rounded)
    finally:
        torch.set_num_threads(before)
    want, want_gradients = with_gradients(FORMULA, exact)
    near = {torch.float64: 1e-10, torch.float32: 2e-4, torch.bfloat16: 4e-2, torch.float16: 6e-3}[dtype]
    for x, y in zip([*got, *gradients], [*want, *want_gradients], strict=True):
        hidden = y.isinf()
        assert torch.equal(x.isinf(), hidden)
        difference = torch.where(hidden, 0, x.double() - y)
        assert difference.norm() <= near * (1 + torch.where(hidden, 0, y).norm())


def extended(pattern: Pattern, extras: set[str], N: int, M: int, Hk: int, seed: int) -> dict[str, Any]:
    """Arguments of the primitive for 4 heads, with what `extras` names."""
    g = torch.Generator().manual_seed(seed)
    H, D, Dv, length = 4, 9, 6, 40
    draw = lambda *shape: torch.randn(shape, generator=g, dtype=torch.float64) / 2  # noqa: E731
    queries, keys = N + 5 if "q_index" in extras else N, M + 5 if "k_index" in extras else M  # of which as many stand in line
    a: dict[str, Any] = {"q": draw(2, H, queries, D), "k": draw(2, Hk, keys, D), "v": draw(2, Hk, keys, Dv), "pattern": pattern.expression}
    a |= {"tables": list(pattern.tables), "offset": M - N, "origin": 20, "scale": 0.4}
    made: dict[str, Callable[[], dict[str, Any]]] = {
        "key_mask": lambda: {"key_mask": torch.rand(2, keys, generator=g) < (0.8 if seed % 2 else 0.01)},
        "mask": lambda: {"mask": torch.rand(1, H, N, M, generator=g) < 0.8},
        "bias": lambda: {"bias": draw(1, H, N, 1) if seed % 2 else draw(2, 1, 1, M)},
        "slopes": lambda: {"slopes": draw(H).abs() / 10},
        "table": lambda: {"table": draw(H if seed % 2 else 1, length)},
        "rows": lambda: {"rows": draw(1 if seed % 2 else H, length, D)} | ({"row_query": draw(2, H, queries, D)} if seed % 3 else {}),
        "value_rows": lambda: {"value_rows": draw(1, length, Dv)},
        "softcap": lambda: {"softcap": 1.5},
        "drawn": lambda: {} if "keep" in extras else {"dropout": 0.3, "dropout_seed": torch.tensor(seed)},
        "keep": lambda: {"dropout": 0.3, "dropout_keep": torch.rand(2, H, N, M, generator=g) < 0.7},
        "window": lambda: {"window": 40, "causal": True},
        "query_mask": lambda: {"query_mask": torch.rand(2, N, generator=g) < (0.9 if seed % 2 else 0.01)},
        "q_index": lambda: {"q_index": torch.randint(-1, N + 5, (1, H, N), generator=g)},
        "k_index": lambda: {"k_index": torch.randint(-1, M + 5, (2, Hk, M) if seed % 2 else (1, 1, M), generator=g)},
    }
    for name in sorted(extras):
        a |= made[name]()
    return a


def with_gradients(operator: Any, a: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """out and lse, and the gradients of every real argument."""
    leaves = {n: x.clone().requires_grad_() for n, x in a.items() if isinstance(x, Tensor) and x.is_floating_point()}
    out, lse = operator(**{**a, **leaves})
    weights = (torch.arange(out.numel()) % 13 - 6).view_as(out).to(out.dtype) / 8
    loss = (out * weights).sum().double() + torch.where(lse.isinf(), 0, lse).sum().double() / 4
    values = list(leaves.values())
    gradients = torch.autograd.grad(loss, values) if loss.requires_grad else [torch.zeros_like(x) for x in values]  # nothing seen at all
    return [out.detach(), lse.detach()], list(gradients)


def test_memory_follows_the_pattern() -> None:
    q = torch.randn(1, 1, 1 << 14, 8)  # N x M in float32 would take 1 GiB
    assert 0 < peak(lambda: foveate.sparse_attention(q, q, q, window(64, 0) | patterns.global_tokens(1))) < 1 << 28


ERRORS: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("k", ValueError, r"k must be \[B,Hk,M,D\]", {"k": torch.zeros(2, 2, 8, 5)}),
    ("heads", ValueError, "heads must divide", {"k": torch.zeros(2, 3, 8, 4), "v": torch.zeros(2, 3, 8, 4)}),
    (
        "key_mask",
        ValueError,
        r"key_mask must be \[B,M\] with B = 2 and M = 8 .*, got \[2, 7\]",
        {"key_mask": torch.ones(2, 7, dtype=torch.bool)},
    ),
    ("dtype", TypeError, "key_mask must be bool", {"key_mask": torch.ones(2, 8)}),
    ("bias", ValueError, r"bias must broadcast to \[B,H,N,M\] = \[2, 2, 8, 8\], got \[8, 7\]", {"bias": torch.zeros(8, 7)}),
    ("pattern", TypeError, "must be a foveate.patterns.Pattern, got str", {"pattern": "causal()"}),
    ("q_index", IndexError, "q_index must name rows below 8, or -1, got 8", {"q_index": torch.full((1, 1, 3), 8)}),
    ("type of an index", TypeError, "k_index must be int64, got Int", {"k_index": torch.zeros(1, 1, 3, dtype=torch.int32)}),
    ("shape of an index", ValueError, r"k_index must be \[B or 1,heads or 1,places\]", {"k_index": torch.zeros(1, 3, dtype=torch.long)}),
    ("heads of a table", ValueError, "of 3 heads, got 2 heads", {"pattern": patterns.from_dense(torch.ones(3, 8, 8, dtype=torch.bool))}),
]


@pytest.mark.parametrize(("error", "message", "change"), [case[1:] for case in ERRORS], ids=[case[0] for case in ERRORS])
def test_wrong_arguments_are_refused_by_name(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    q = torch.zeros(2, 2, 8, 4)
    with pytest.raises(error, match=message):
        foveate.sparse_attention(**{"q": q, "k": q, "v": q, "pattern": causal, **change})


def test_a_wrong_case_is_noticed() -> None:
    case = CASES["window"]
    inputs, masks = case.inputs()
    wrong = replace(case, pattern=window(9, 5))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(wrong.call(inputs, masks)[0], case.call(inputs, masks)[0])
