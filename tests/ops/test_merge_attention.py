"""merge_attention: kernel against formula, on every instruction set and any number of threads; merged parts are the whole."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

import foveate

PRIMITIVE, FORMULA = torch.ops.foveate._merge_attention, torch.ops.foveate._merge_attention_formula
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}


def parts(shape: list[int], width: int, dtype: torch.dtype, seed: int, neutral: float = 0.3) -> tuple[Tensor, Tensor]:
    """outs [*shape,width] and lses [*shape], of which this share saw nothing."""
    g = torch.Generator().manual_seed(seed)
    outs = torch.randn([*shape, width], generator=g, dtype=torch.float64)
    lses = 20 * torch.randn(shape, generator=g, dtype=torch.float64)
    saw_nothing = torch.rand(shape, generator=g) < neutral
    return outs.masked_fill(saw_nothing.unsqueeze(-1), 0).to(dtype), lses.masked_fill(saw_nothing, -torch.inf).to(dtype)


def assert_same(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(got, want, strict=True):
        tolerance = TOLERANCE[b.dtype]
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@settings(max_examples=120, deadline=None)
@given(st.integers(1, 5), st.lists(st.integers(0, 7), min_size=0, max_size=3), st.integers(0, 35), st.sampled_from([torch.float32, torch.float64]),
       st.integers(0, 99))  # fmt: skip
def test_kernel_equals_formula(count: int, shape: list[int], width: int, dtype: torch.dtype, seed: int) -> None:
    outs, lses = parts([count, *shape], width, dtype, seed)
    assert_same(PRIMITIVE(outs, lses), FORMULA(outs, lses))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_gradients_equal_those_of_the_formula(dtype: torch.dtype) -> None:
    outs, lses = parts([3, 2, 5], 7, dtype, 0)
    weights, cotangent = torch.randn(2, 5, 7, dtype=dtype), torch.rand(2, 5, dtype=dtype)
    found = []
    for operator in (PRIMITIVE, FORMULA):
        leaves = [outs.clone().requires_grad_(), lses.clone().requires_grad_()]
        out, lse = operator(*leaves)
        found.append(torch.autograd.grad((out * weights).sum() + (torch.where(lse.isinf(), 0, lse) * cotangent).sum(), leaves))
    assert_same(*found)
    assert all(g.isfinite().all() for g in found[0])


def test_one_part_is_itself_and_neutral_parts_add_nothing() -> None:
    outs, lses = parts([1, 4, 6], 5, torch.float64, 1)
    out, lse = PRIMITIVE(outs, lses)
    assert_same((out, lse), (outs[0], lses[0]))
    with_neutral = torch.cat([torch.full_like(outs, torch.nan), outs]), torch.cat([torch.full_like(lses, -torch.inf), lses])
    assert_same(PRIMITIVE(*with_neutral), (out, lse))
    assert_same(FORMULA(*with_neutral), (out, lse))
    nothing = PRIMITIVE(torch.zeros(3, 2, 4), torch.full((3, 2), -torch.inf))
    assert (nothing[0] == 0).all()
    assert (nothing[1] == -torch.inf).all()


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_very_large_and_very_small_parts(scale: float) -> None:
    outs, lses = parts([3, 4], 5, torch.float64, 2, neutral=0)
    out, lse = PRIMITIVE(outs, lses)
    moved = PRIMITIVE(outs, lses + scale)
    torch.testing.assert_close(moved[0], out, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(moved[1] - scale, lse, rtol=1e-10, atol=1e-10)


def test_layout_does_not_matter() -> None:
    outs, lses = parts([3, 4, 6], 5, torch.float64, 3)
    spread = outs.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0), lses.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert all(torch.equal(a, b) for a, b in zip(PRIMITIVE(*spread), PRIMITIVE(outs, lses), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_parts(dtype: torch.dtype) -> None:
    outs, lses = parts([3, 4, 6], 8, torch.float32, 4)
    out, lse = PRIMITIVE(outs.to(dtype), lses)
    want = PRIMITIVE(outs.to(dtype).float(), lses)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    torch.testing.assert_close(out, want[0].to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_bits_on_any_number_of_threads(threads: int) -> None:
    outs, lses = parts([4, 7, 300], 9, torch.float32, 5)
    before = torch.get_num_threads()
    want = PRIMITIVE(outs, lses)
    try:
        torch.set_num_threads(threads)
        got = PRIMITIVE(outs, lses)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


ALL_CAPABILITIES = """
import torch, foveate
from tests.ops.test_merge_attention import FORMULA, PRIMITIVE, assert_same, parts
for dtype in (torch.float32, torch.float64):
    for width in (0, 1, 3, 8, 16, 17, 33):
        given = parts([3, 5, 7], width, dtype, width)
        assert_same(PRIMITIVE(*given), FORMULA(*given))
print(torch.backends.cpu.get_cpu_capability())
"""


def on_capability(capability: str, code: str) -> str:
    """Runs code with the kernels of one instruction set; gives the last line it prints."""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability.lower()}
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()[-1]


def skip_unless_here(capability: str) -> None:
    """Leaves a test out on a machine without this instruction set."""
    here, order = torch.backends.cpu.get_cpu_capability(), ["DEFAULT", "AVX2", "AVX512"]
    if here not in order or order.index(here) < order.index(capability):
        pytest.skip(f"this machine has {here}")


@pytest.mark.parametrize("capability", ["DEFAULT", "AVX2", "AVX512"])
def test_every_instruction_set(capability: str) -> None:
    skip_unless_here(capability)
    assert on_capability(capability, ALL_CAPABILITIES) == capability


@pytest.mark.parametrize("causal", [False, True])
def test_merged_parts_are_the_whole(causal: bool) -> None:
    torch.manual_seed(6)
    q, k, v = (torch.randn(2, 3, n, 8, dtype=torch.float64) for n in (9, 14, 14))
    where = torch.arange(14) <= torch.arange(9)[:, None] + 5 if causal else torch.ones(9, 14, dtype=torch.bool)
    pieces = [slice(0, 4), slice(4, 5), slice(5, 14)]
    given = [foveate.attention(q, k[:, :, s], v[:, :, s], mask=where[:, s], return_lse=True) for s in pieces]
    outs, lses = (torch.stack(x) for x in zip(*given, strict=True))
    assert_same(foveate.merge_attention(outs, lses), foveate.attention(q, k, v, causal=causal, return_lse=True))


def test_gradients_of_every_order() -> None:
    outs, lses = parts([3, 2], 3, torch.float64, 7, neutral=0)
    leaves = (outs.requires_grad_(), (lses / 10).requires_grad_())
    assert torch.autograd.gradcheck(PRIMITIVE, leaves)
    assert torch.autograd.gradgradcheck(PRIMITIVE, leaves)


def test_opcheck_and_vmap() -> None:
    outs, lses = parts([3, 2, 5], 4, torch.float64, 8)
    opcheck(PRIMITIVE.default, (outs.clone().requires_grad_(), lses.clone().requires_grad_()))
    stacked = torch.stack([outs, 2 * outs]), torch.stack([lses, lses + 1])
    got = torch.vmap(PRIMITIVE)(*stacked)
    for i in range(2):
        assert_same((got[0][i], got[1][i]), PRIMITIVE(stacked[0][i], stacked[1][i]))


@pytest.mark.parametrize(("outs", "lses"), [((3, 4, 5), (3, 5)), ((5,), ()), ((3, 4, 5), (3, 4, 5))])
def test_refuses_shapes_that_do_not_fit(outs: tuple[int, ...], lses: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="lses must be"):
        foveate.merge_attention(torch.zeros(outs), torch.zeros(lses))


def test_refuses_types_that_do_not_fit() -> None:
    with pytest.raises(TypeError, match="lses must be"):
        foveate.merge_attention(torch.zeros(2, 3), torch.zeros(2, dtype=torch.float64))


def test_vmap_goes_through_without_a_loop() -> None:
    samples = [parts([3, 4, 6], 5, torch.float64, seed, neutral=0) for seed in (7, 8)]
    stacked = [torch.stack(both) for both in zip(*samples, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out, lse = torch.vmap(torch.ops.foveate.merge_attention)(*stacked)
        gradient = torch.vmap(torch.func.grad(lambda outs, lses: torch.ops.foveate.merge_attention(outs, lses)[0].sum()))(*stacked)
    for i, (outs, lses) in enumerate(samples):
        assert_same((out[i], lse[i]), FORMULA(outs, lses))
        torch.testing.assert_close(gradient[i], torch.func.grad(lambda x, y=lses: FORMULA(x, y)[0].sum())(outs))
