"""What is peculiar to the Linear Transformer: a memory summed once, a state that is never changed in place, every feature map."""

import pytest
import torch

import foveate
from foveate._catalog import forms

FEATURE_MAPS = {
    "elu+1": lambda x: torch.nn.functional.elu(x) + 1,
    "relu": torch.relu,
    "square": torch.square,
    "abs": torch.abs,
    "exp": torch.exp,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "cos": torch.cos,
    "gelu": torch.nn.functional.gelu,
    "identity": lambda x: x,
    "relu_squared": lambda x: torch.relu(x).square(),
}


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_feature_maps(name: str) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 2, 6, 4, dtype=torch.float64)
    v = torch.randn(1, 2, 6, 3, dtype=torch.float64)
    q[..., 0] = 0  # the corner of the maps that have one
    found, expected = (x.clone().requires_grad_() for x in (q, q))
    out = foveate.linear_transformer_attention(found, k, v, feature_map=name, eps=0.5)
    phi = FEATURE_MAPS[name]
    weights = phi(expected) @ phi(k).transpose(-1, -2)
    want = weights @ v / (weights.sum(-1, keepdim=True) + 0.5)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(*(torch.autograd.grad(x.square().sum(), leaf)[0] for x, leaf in ((out, found), (want, expected))))


def test_every_feature_map_is_tested() -> None:
    field = next(f for f in forms()["linear_transformer_attention"].options if f.name == "feature_map")
    assert list(field.choices) == list(FEATURE_MAPS)


def test_features_of_far_negative_numbers_keep_their_digits() -> None:
    q = torch.full((1, 1, 1, 1), -20.0)
    out = foveate.linear_transformer_attention(q, q, torch.ones_like(q), eps=0.0)
    torch.testing.assert_close(out, torch.ones_like(out))


def test_a_memory_is_given_once_and_read_token_by_token() -> None:
    torch.manual_seed(0)
    layer = foveate.nn.LinearTransformer(d_model=8, n_heads=2, d_model_keys=5).double()
    x, memory = torch.randn(2, 6, 8, dtype=torch.float64), torch.randn(2, 9, 5, dtype=torch.float64)
    mask = torch.rand(2, 9) < 0.6
    want = layer(x, memory, mask)
    state, outs = None, []
    for i in range(6):
        out, state = layer.step(x[:, i : i + 1], memory if i == 0 else memory[:, :0], mask if i == 0 else None, state=state)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 1), want)


def test_an_old_state_may_be_continued_twice() -> None:
    torch.manual_seed(0)
    layer = foveate.nn.LinearTransformer(d_model=8, n_heads=2, causal=True)
    x = torch.randn(1, 5, 8)
    with torch.no_grad():
        _, state = layer.step(x[:, :4])
        kept = [s.clone() for s in state]
        once, twice = layer.step(x[:, 4:], state=state)[0], layer.step(x[:, 4:], state=state)[0]
    assert torch.equal(once, twice)
    assert all(torch.equal(a, b) for a, b in zip(state, kept, strict=True))


def test_the_state_of_half_precision_is_float32() -> None:
    layer = foveate.nn.LinearTransformer(d_model=8, n_heads=2, causal=True).bfloat16()
    out, state = layer.step(torch.randn(1, 3, 8, dtype=torch.bfloat16))
    out, state = layer.step(torch.randn(1, 3, 8, dtype=torch.bfloat16), state=state)
    assert out.dtype == torch.bfloat16
    assert all(s.dtype == torch.float32 for s in state)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="n_heads must divide d_model unless"):
        foveate.nn.LinearTransformer(d_model=8, n_heads=3)
    assert foveate.nn.LinearTransformer(d_model=8, n_heads=3, d_keys=2, d_values=4)(torch.randn(1, 2, 8)).shape == (1, 2, 8)
    with pytest.raises(ValueError, match="d_keys must be positive, got 0"):
        foveate.nn.LinearTransformer(d_model=8, n_heads=2, d_keys=0)
