"""What is peculiar to relative positions: alignment, tables against plain loops, layouts of rotary pairs, far positions."""

import math

import pytest
import torch
from torch import Tensor

import foveate


def qkv(n: int = 5, m: int = 9, d: int = 4, heads: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n * m)
    return tuple(torch.randn(2, heads, length, d, generator=generator, dtype=dtype) for length in (n, m, m))  # type: ignore[return-value]


def plain(scores: Tensor, values: Tensor) -> Tensor:
    """Softmax over keys of scores [B,H,N,M], times values [B,H,N,M,D]: each query and key may have a value of their own."""
    return torch.einsum("bhij,bhijd->bhid", scores.softmax(-1), values)


def distances(n: int, m: int) -> Tensor:
    """Key minus query, the last query at the last key."""
    return torch.arange(m) - (torch.arange(n)[:, None] + m - n)


@pytest.mark.parametrize("table_heads", [None, 2])
@pytest.mark.parametrize(("n", "m"), [(5, 9), (9, 5), (1, 7)])
def test_shaw_is_a_sum_over_pairs(n: int, m: int, table_heads: int | None) -> None:
    q, k, v = qkv(n, m)
    layer = foveate.nn.ShawAttention(head_dim=4, max_distance=2, table_heads=table_heads, dtype=torch.float64)
    rows = distances(n, m).clamp(-2, 2) + 2
    keys, values = (table[..., rows, :].expand(2, n, m, 4) for table in (layer.rel_key, layer.rel_value))  # [H,N,M,D]
    scores = torch.einsum("bhid,bhijd->bhij", q, k[:, :, None] + keys) / 2
    torch.testing.assert_close(layer(q, k, v), plain(scores, v[:, :, None] + values))


def test_xlnet_exports_with_its_table_growing_along() -> None:
    layer = foveate.nn.XLNetAttention(num_heads=2, head_dim=4, dtype=torch.float64)
    q, k, v = qkv(6, 6)
    length = torch.export.Dim("length", min=2, max=512)
    whole = {2: length}
    program = torch.export.export(layer, (q, k, v, torch.randn(2, 12, 4, dtype=torch.float64)), dynamic_shapes=(whole, whole, whole, {1: 2 * length}))
    q, k, v = qkv(9, 9)
    r = torch.randn(2, 18, 4, dtype=torch.float64)
    torch.testing.assert_close(program.module()(q, k, v, r), layer(q, k, v, r))


def test_xlnet_refuses_a_table_of_another_length() -> None:
    q, k, v = qkv()
    with pytest.raises(ValueError, match=r"r must be \[H,N\+M,D\] with N \+ M = 14"):
        foveate.nn.XLNetAttention(num_heads=2, head_dim=4, dtype=torch.float64)(q, k, v, torch.randn(2, 13, 4, dtype=torch.float64))


def test_xlnet_takes_one_query() -> None:
    layer = foveate.nn.XLNetAttention(num_heads=2, head_dim=4, dtype=torch.float64)
    q, k, v = qkv(1, 7)
    r = torch.randn(2, 8, 4, dtype=torch.float64)
    shifted = torch.einsum("bhid,hjd->bhij", q + layer.position_bias[:, None], r[:, 1:])  # row j - i + N
    scores = (torch.einsum("bhid,bhjd->bhij", q + layer.content_bias[:, None], k) + shifted) / 2
    torch.testing.assert_close(layer(q, k, v, r), plain(scores, v[:, :, None].expand(-1, -1, 1, -1, -1)))


@pytest.mark.parametrize(
    ("bidirectional", "starts"),
    [
        (True, [*range(8), 8, 12, 16, 23, 32, 46, 64, 91]),
        (False, [*range(16), 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]),
    ],
)
def test_t5_buckets_begin_where_the_original_has_them(bidirectional: bool, starts: list[int]) -> None:
    buckets = torch.ops.foveate.t5_buckets(-torch.arange(400), bidirectional=bidirectional).tolist()
    assert [buckets.index(b) for b in range(len(starts))] == starts
    future = torch.ops.foveate.t5_buckets(torch.arange(1, 400), bidirectional=bidirectional)
    assert torch.equal(future, torch.tensor(buckets[1:]) + 16) if bidirectional else (future == 0).all()


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("n", "m"), [(30, 45), (3, 2), (1, 40)])
def test_t5_expands_its_table_for_any_length(n: int, m: int, bidirectional: bool) -> None:
    q, k, v = qkv(n, m)
    layer = foveate.nn.T5Attention(num_heads=2, buckets=8, max_distance=11, bidirectional=bidirectional, dtype=torch.float64)
    bias = layer.bias_table[torch.ops.foveate.t5_buckets(distances(n, m), bidirectional=bidirectional, buckets=8, max_distance=11)]  # [N,M,H]
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.permute(2, 0, 1), scale=1.0)
    torch.testing.assert_close(layer(q, k, v), want)


@pytest.mark.parametrize("heads", [1, 3, 6, 8])
def test_alibi_equals_the_column_form_where_causal(heads: int) -> None:
    q, k, v = qkv(6, 8, heads=heads)
    slopes = torch.ops.foveate.alibi_slopes(heads, dtype=torch.float64)
    hidden = distances(6, 8) > 0
    column = (slopes[:, None, None] * torch.arange(8)).masked_fill(hidden, -math.inf)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=column)
    torch.testing.assert_close(foveate.alibi_attention(q, k, v, causal=True), want)


@pytest.mark.parametrize("scaling", ["none", "linear", "ntk"])
@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary_multiplies_by_a_complex_unit(interleaved: bool, scaling: str) -> None:
    x = qkv(d=8)[0]
    factor, base = 3.0, 100.0
    position = torch.arange(7, 12, dtype=torch.float64) / (factor if scaling == "linear" else 1)
    base_used = base * factor ** (6 / 4) if scaling == "ntk" else base
    angle = position[:, None] * base_used ** (-torch.arange(0, 6, 2, dtype=torch.float64) / 6)
    pairs = x[..., :6].unflatten(-1, (3, 2)) if interleaved else x[..., :6].unflatten(-1, (2, 3)).transpose(-1, -2)
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angle), angle))
    want = torch.cat([turned.flatten(-2) if interleaved else turned.transpose(-1, -2).flatten(-2), x[..., 6:]], -1)
    got = foveate.rotary_embedding(x, offset=7, rotary_dim=6, base=base, interleaved=interleaved, scaling=scaling, factor=factor)
    torch.testing.assert_close(got, want)


def test_rotary_scores_depend_on_distance_alone() -> None:
    q, k, v = qkv()
    near, far = (foveate.rotary_attention(q, k, v, causal=True, q_offset=at + 4, k_offset=at) for at in (0, 1000))
    torch.testing.assert_close(near, far)


def test_rotary_layouts_differ_by_a_permutation_of_channels() -> None:
    q, k, v = qkv(d=8)
    order = torch.arange(8).view(4, 2).t().flatten()  # (2f, 2f+1) -> (f, f + 4)
    halves = foveate.rotary_attention(q[..., order], k[..., order], v)
    torch.testing.assert_close(foveate.rotary_attention(q, k, v, interleaved=True), halves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotary_is_exact_far_away(dtype: torch.dtype) -> None:
    x = qkv(dtype=dtype)[0]
    got = foveate.rotary_embedding(x, offset=1_000_003)
    want = foveate.rotary_embedding(x.double(), offset=1_000_003).to(dtype)
    torch.testing.assert_close(got, want)


def test_rotary_step_continues_at_the_next_position() -> None:
    q, k, v = qkv(9, 9)
    first = {"q": q[:, :, :4], "k": k[:, :, :4], "v": v[:, :, :4]}
    _, state = foveate.rotary_attention_step(**first, causal=True)
    out, _ = foveate.rotary_attention_step(q[:, :, 4:], k[:, :, 4:], v[:, :, 4:], state=state, causal=True)
    torch.testing.assert_close(out, foveate.rotary_attention(q[:, :, 4:], k, v, causal=True, q_offset=4))


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ("T5Attention", {"num_heads": 2, "buckets": 3}, "buckets must be 4 or more"),
        ("T5Attention", {"num_heads": 2, "max_distance": 8}, "max_distance must exceed the 8 distances"),
        ("RotaryAttention", {"rotary_dim": 3}, "rotary_dim must be positive and even"),
        ("RotaryAttention", {"rotary_dim": 6}, "rotary_dim must be even and at most D = 4"),
        ("RotaryAttention", {"rotary_dim": 2, "scaling": "ntk", "factor": 2.0}, "rotary_dim must exceed 2 for ntk"),
        ("RotaryAttention", {"scaling": "linear", "factor": 0.0}, "factor must be positive"),
        ("AlibiAttention", {"bias_max": 0.0}, "bias_max must be positive"),
        ("ShawAttention", {"head_dim": 4, "max_distance": -1}, "max_distance must not be negative"),
    ],
)
def test_impossible_options_are_refused(form: str, options: dict[str, object], message: str) -> None:
    q, k, v = qkv()
    with pytest.raises(ValueError, match=message):
        getattr(foveate.nn, form)(**options, dtype=torch.float64)(q, k, v)


@pytest.mark.parametrize("form", ["alibi_attention", "rotary_attention"])
def test_only_causal_attention_streams(form: str) -> None:
    q, k, v = qkv(3, 3)
    with pytest.raises(ValueError, match=f"{form}_step: causal must be True"):
        getattr(foveate, f"{form}_step")(q, k, v)
    with pytest.raises(ValueError, match="q_offset must not exceed k_offset"):
        foveate.rotary_attention_step(q, k, v, causal=True, q_offset=1)


def test_a_mask_of_another_length_is_refused() -> None:
    q, k, v = qkv()
    with pytest.raises(ValueError, match=r"key_mask must be \[B,M\] with B = 2 and M = 9"):
        foveate.alibi_attention(q, k, v, torch.ones(2, 5, dtype=torch.bool))


def test_asymmetric_alibi_is_the_column_form() -> None:
    q, k, v = qkv()
    slopes = torch.ops.foveate.alibi_slopes(2, dtype=torch.float64)
    scores = q @ k.transpose(-1, -2) / 2 + slopes[:, None, None] * torch.arange(9)
    torch.testing.assert_close(foveate.alibi_attention(q, k, v, symmetric=False), scores.softmax(-1) @ v)
    torch.testing.assert_close(foveate.alibi_attention(q, k, v, symmetric=False, causal=True), foveate.alibi_attention(q, k, v, causal=True))


@pytest.mark.parametrize("clamp_len", [1, 3, 100])
def test_clamped_xlnet_positions_share_the_rows_of_the_last_distance(clamp_len: int) -> None:
    attend = foveate.nn.XLNetAttention(num_heads=2, head_dim=4, clamp_len=clamp_len, dtype=torch.float64)
    plain = foveate.nn.XLNetAttention(num_heads=2, head_dim=4, dtype=torch.float64)
    plain.load_state_dict(attend.state_dict())
    (q, k, v), r = qkv(), torch.randn(2, 14, 4, dtype=torch.float64)
    distance = (9 - torch.arange(14)).clamp(-clamp_len, clamp_len)
    torch.testing.assert_close(attend(q, k, v, r), plain(q, k, v, r[:, 9 - distance]))
