"""What is peculiar to efficient attention: weights that sum to one, the scaled form that is dot-product attention, ragged channels."""

import pytest
import torch

import foveate


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("masked", [False, True])
def test_softmax_outputs_are_weighted_means_of_values(masked: bool) -> None:
    torch.manual_seed(0)
    q, k, mask = random(2, 2, 5, 4), random(2, 2, 7, 4), torch.rand(2, 7) < 0.6
    weights = foveate.efficient_attention(q, k, torch.eye(7, dtype=torch.float64).expand(2, 2, 7, 7), mask if masked else None)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 5, dtype=torch.float64))
    assert not masked or (weights.masked_select(~mask[:, None, None]) == 0).all()


def test_scaling_is_dot_product_attention_over_the_keys_that_take_part() -> None:
    torch.manual_seed(0)
    q, k, v = random(2, 2, 5, 4), random(2, 2, 7, 4), random(2, 2, 7, 3)
    torch.testing.assert_close(foveate.efficient_attention(q, k, v, normalization="scaling"), q @ k.transpose(-1, -2) @ v / 7)
    mask = torch.arange(7).expand(2, 7) < torch.tensor([[7], [3]])
    got = foveate.efficient_attention(q, k, v, mask, normalization="scaling")
    torch.testing.assert_close(got[1:], foveate.efficient_attention(q[1:], k[1:, :, :3], v[1:, :, :3], normalization="scaling"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("normalization", ["softmax", "scaling"])
def test_padding_changes_nothing_whatever_it_holds(normalization: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = (random(2, 2, 6, 4).to(dtype) for _ in range(3))
    padded_k, padded_v = (torch.cat([x, torch.full_like(x[:, :, :2], filler)], 2) for x, filler in ((k, 60.0), (v, torch.nan)))
    mask = torch.arange(8).expand(2, 8) < 6
    got = foveate.efficient_attention(q, padded_k, padded_v, mask, normalization=normalization)
    want = foveate.efficient_attention(q, k, v, normalization=normalization)
    torch.testing.assert_close(got, want, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


def test_temperature_divides_queries_and_keys() -> None:
    torch.manual_seed(0)
    q, k, v = random(2, 2, 5, 4), random(2, 2, 7, 4), random(2, 2, 7, 3)
    torch.testing.assert_close(foveate.efficient_attention(q, k, v, temperature=2.0), foveate.efficient_attention(q / 2, k / 2, v))
    with pytest.raises(ValueError, match="temperature must be 1 with normalization scaling"):
        foveate.efficient_attention(q, k, v, normalization="scaling", temperature=2.0)


def test_channels_beyond_a_multiple_of_the_heads_go_unused() -> None:
    torch.manual_seed(0)
    block = foveate.nn.EfficientAttentionBlock(in_channels=4, key_channels=7, head_count=3, value_channels=6)
    block(torch.randn(1, 4, 3, 5)).square().sum().backward()
    for projection in (block.keys, block.queries):
        assert (projection.weight.grad[6:] == 0).all()
        assert (projection.weight.grad[:6] != 0).any()
    with pytest.raises(ValueError, match="value_channels must be a multiple of head_count, got 7 and 3"):
        foveate.nn.EfficientAttentionBlock(in_channels=4, key_channels=6, head_count=3, value_channels=7)
    with pytest.raises(ValueError, match="key_channels must give every head one, got 2 for 3"):
        foveate.nn.EfficientAttentionBlock(in_channels=4, key_channels=2, head_count=3, value_channels=6)


def running(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The causal form, a query at a time."""
    rows = [q[:, :, i : i + 1].softmax(-1) @ (k[:, :, : i + 1].softmax(2).transpose(-1, -2) @ v[:, :, : i + 1]) for i in range(q.shape[2])]
    return torch.cat(rows, 2)


@pytest.mark.parametrize("spread", [1.0, 40.0])
def test_the_causal_form_normalises_keys_over_what_came_before(spread: float) -> None:
    torch.manual_seed(0)
    q, k, v = random(2, 2, 70, 4), random(2, 2, 70, 4), random(2, 2, 70, 3)
    k = (k * spread).clamp(-60, 0)
    torch.testing.assert_close(foveate.efficient_attention(q, k, v, causal=True), running(q, k, v), rtol=1e-9, atol=1e-10)


def test_the_causal_form_stays_finite_whatever_the_keys() -> None:
    q = v = torch.randn(1, 1, 6, 2)
    k = torch.tensor([-3e4, 0.0, 3e4, -1e3, 2e4, 3e4]).view(1, 1, 6, 1).expand(-1, -1, -1, 2).clone().requires_grad_()
    out = foveate.efficient_attention(q, k, v, causal=True)
    (gradient,) = torch.autograd.grad(out.sum(), k)
    assert out.isfinite().all() and gradient.isfinite().all()
    torch.testing.assert_close(out[:, :, 0], v[:, :, 0])


def test_the_causal_scaled_form_divides_by_the_keys_so_far() -> None:
    torch.manual_seed(0)
    q, k, v = random(1, 1, 5, 4), random(1, 1, 5, 4), random(1, 1, 5, 3)
    scores = (q @ k.transpose(-1, -2)).tril() / torch.arange(1, 6, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(foveate.efficient_attention(q, k, v, causal=True, normalization="scaling"), scores @ v)


def test_causal_needs_as_many_queries_as_keys() -> None:
    with pytest.raises(ValueError, match="causal needs as many queries as keys, got 3 and 4"):
        foveate.efficient_attention(random(1, 1, 3, 2), random(1, 1, 4, 2), random(1, 1, 4, 2), causal=True)
