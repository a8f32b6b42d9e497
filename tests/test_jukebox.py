"""What is peculiar to Jukebox: null keys, any length, caches no larger than what is still seen, the layers of each order."""

from typing import Any

import pytest
import torch

import foveate
from tests.contract import Case
from tests.mechanisms.jukebox import PATTERNS


def naive(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pattern: str, columns: int, causal: bool, blocks: int, spread: int, front: int
) -> torch.Tensor:
    """Each query by itself, null keys as rows of zeros."""
    out = torch.zeros_like(v)
    n = q.shape[2]
    for i in range(n):
        row, column = divmod(i, columns)
        seen = {
            "dense": range(n),
            "block": [j for j in range(n) if j // columns == row],
            "transpose_block": [j for j in range(n) if j % columns == column],
            "prev_block": [j for j in range(n) if j // columns == row - 1],
            "summary": [j for j in range(n) if j % columns == columns - 1 and j // columns < blocks - 1],
            "summary_spread": [j for j in range(n) if j % columns >= columns - spread and j // columns < blocks - 1],
            "prime": range(min(front, n)),
        }[pattern]
        keys = [j for j in seen if j <= i or not causal]
        nulls = {"summary": 1, "summary_spread": spread}.get(pattern, 0)
        if not keys:
            continue
        zeros = torch.zeros(*k.shape[:2], nulls, k.shape[3], dtype=k.dtype)
        scores = torch.cat([k[:, :, keys], zeros], 2) @ q[:, :, i].unsqueeze(-1) / q.shape[-1] ** 0.5
        out[:, :, i] = (torch.cat([v[:, :, keys], zeros], 2) * scores.softmax(2)).sum(2)
    return out


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p != "cross"])
@pytest.mark.parametrize("n", [1, 3, 4, 11, 20])
def test_any_length(pattern: str, n: int, causal: bool) -> None:
    q, k, v = torch.randn(3, 2, 2, n, 3, dtype=torch.float64)
    got = foveate.jukebox_attention(q, k, v, pattern=pattern, block_length=4, blocks=4, spread=3, prime_len=6, causal=causal)
    torch.testing.assert_close(got, naive(q, k, v, pattern, 4, causal, 4, 3, 6), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    ("pattern", "most"),
    [("block", 4), ("prev_block", 8), ("prime", 6), ("summary", 4), ("summary_spread", 4), ("dense", 23), ("transpose_block", 23)],
)
def test_the_cache_holds_what_is_still_seen(pattern: str, most: int) -> None:
    layer = foveate.nn.JukeboxMultiheadAttention(embed_dim=8, num_heads=2, attention_dim=4, pattern=pattern, block_length=4, spread=2, prime_len=6)
    layer = layer.double()
    x, there = torch.randn(1, 23, 8, dtype=torch.float64), torch.rand(1, 23) < 0.8
    want, state, at = layer(x, key_mask=there), None, 0
    for size in (3, 1, 1, 6, 2, 1, 9):
        out, state = layer.step(x[:, at : at + size], key_mask=there[:, : at + size], state=state)
        torch.testing.assert_close(out, want[:, at : at + size], rtol=1e-10, atol=1e-11)
        at += size
        assert state[0].shape[2] <= most
        assert state[2].shape[2] == {"summary": 1, "summary_spread": 2}.get(pattern, 0) * (at // 4)


def test_rounding_up_shows_more_than_the_lyrics() -> None:
    q, k, v = torch.randn(3, 1, 1, 20, 3, dtype=torch.float64)
    for prime_len, blocks, shown in ((8, 4, 12), (9, 4, 12), (3, 4, 4)):
        rounded = foveate.jukebox_attention(q, k, v, pattern="prime", prime_len=prime_len, blocks=blocks, prime_rounds_up=True)
        torch.testing.assert_close(rounded, foveate.jukebox_attention(q, k, v, pattern="prime", prime_len=shown))


def test_a_context_streams_from_its_cache() -> None:
    options: dict[str, Any] = {"embed_dim": 8, "num_heads": 2, "attention_dim": 4, "num_layers": 4, "attn_order": 6, "block_length": 4}
    stack = Case("jukebox_transformer", {}, options).layer()
    x, context, there = torch.randn(2, 11, 8).double(), torch.randn(2, 5, 8).double(), torch.rand(2, 5) < 0.7
    want = stack(x, context=context, context_mask=there)
    state, outputs = None, []
    for i, chunk in enumerate(x.split([3, 1, 5, 2], 1)):
        out, state = stack.step(chunk, context=context if i == 0 else None, context_mask=there, state=state)
        outputs.append(out)
    torch.testing.assert_close(torch.cat(outputs, 1), want, rtol=1e-10, atol=1e-11)


THREE = [1, 2, 3]
ORDERS = {
    0: [0] * 8,
    1: [1, 2] * 4,
    2: THREE * 4,
    3: [1, 4] * 3,
    4: [1, 5] * 3,
    5: [1, 4, 1, 1] * 2,
    6: [*THREE, 6] * 3,
    7: [*THREE * 5, 6] * 2,
    8: [*THREE * 3, 6] * 2,
    9: [*THREE, 0] * 2,
    10: THREE * 3 + [*THREE * 3, 6] * 7,
    11: [*THREE * 5, 6, 2, 3, *THREE * 4, 1, 6, 3, *THREE * 4, 1, 2, 0],
    12: [*THREE * 5, 7, 2, 3, *THREE * 4, 1, 7, 3, *THREE * 4, 1, 2, 0],
}


@pytest.mark.parametrize("order", ORDERS)
def test_orders_of_layers(order: int) -> None:
    """The same stack, its layers named one by one."""
    layers = ORDERS[order]
    options: dict[str, Any] = {"embed_dim": 4, "attention_dim": 2, "num_layers": len(layers), "block_length": 3, "spread": 2, "prime_len": 2}
    one = Case("jukebox_transformer", {}, {**options, "attn_order": order, "res_scale": 1 / len(layers)}).layer()
    two = Case("jukebox_transformer", {}, {**options, "patterns": layers, "res_scale": 1 / len(layers)}).layer()
    x, context = torch.randn(1, 8, 4).double(), torch.randn(1, 3, 4).double()
    torch.testing.assert_close(one(x, context=context), two(x, context=context), rtol=0, atol=0)


def test_projections_of_cross_layers_start_at_zero() -> None:
    stack = foveate.nn.JukeboxTransformer(embed_dim=8, num_layers=4, attn_order=6, block_length=2, init_scale=0.5)
    zero = {name for name, p in stack.named_parameters() if name.endswith("weight") and not p.any()}
    assert zero == {"blocks.3.attention.out.weight", "blocks.3.feed_forward.down.weight"}
    x, context = torch.randn(1, 5, 8), torch.randn(1, 3, 8)
    assert not torch.equal(stack(x, context=context), x)


def test_dropout_is_for_training() -> None:
    layer = foveate.nn.JukeboxBlock(embed_dim=8, num_heads=1, block_length=2, dropout=0.5)
    x = torch.randn(1, 5, 8)
    torch.testing.assert_close(layer.eval()(x), layer(x), rtol=0, atol=0)
    assert not torch.equal(layer.train()(x), layer.eval()(x))


def test_names_of_published_weights() -> None:
    """A layer of Hugging Face's stack with cross attention, and one without."""
    shapes = {"attn.c_attn": (8, 6), "attn.c_proj": (2, 8), "mlp.c_fc": (8, 8), "mlp.c_proj": (8, 8), "layer_norm_0": (8,), "layer_norm_1": (8,)}
    cross = {**shapes, "attn.c_attn": (8, 2), "attn.c_enc_kv": (8, 4)}
    given = {
        f"_attn_mods.{layer}.{name}.{leaf}": torch.randn(shape if leaf == "weight" else shape[-1:])
        for layer, groups in ((0, shapes), (1, cross))
        for name, shape in groups.items()
        for leaf in ("weight", "bias")
    }
    stack = foveate.nn.JukeboxTransformer(embed_dim=8, num_layers=2, patterns=[1, 6])
    assert foveate.nn.load_published(stack, given) == "transformers"
    torch.testing.assert_close(stack.state_dict()["blocks.1.attention.value.weight"], given["_attn_mods.1.attn.c_enc_kv.weight"][:, 2:].T)
