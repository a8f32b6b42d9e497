"""What is peculiar to criss-cross attention."""

import pytest
import torch
from torch import Tensor

import foveate


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention among all positions, with those hidden that differ along more than one axis."""
    axes = [torch.arange(n) for n in q.shape[2:]]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
    seen = (places.unsqueeze(0) != places.unsqueeze(1)).sum(-1) <= 1
    a, b, c = (x.flatten(2).mT for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(a, b, c, attn_mask=seen, scale=1).mT.view_as(v)


@pytest.mark.parametrize("shape", [(7,), (5, 8), (1, 6), (6, 1), (3, 4, 5), (1, 1, 1)])
def test_every_key_counts_once(shape: tuple[int, ...]) -> None:
    leaves = [random(2, c, *shape, seed=i).requires_grad_() for i, c in enumerate((3, 3, 4))]
    got, want = foveate.criss_cross(*leaves), dense(*leaves)
    torch.testing.assert_close(got, want)
    cotangent = random(*want.shape, seed=5)
    torch.testing.assert_close(torch.autograd.grad(got, leaves, cotangent), torch.autograd.grad(want, leaves, cotangent))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_either_memory_format_gives_the_same(memory_format: torch.memory_format) -> None:
    layer, x = foveate.nn.CrissCrossAttention(channels=16).double(), random(1, 16, 5, 9)
    torch.nn.init.constant_(layer.gamma, 0.7)
    torch.testing.assert_close(layer(x.to(memory_format=memory_format)), layer(x))


@pytest.mark.parametrize(("recurrence", "reaches"), [(1, False), (2, True)])
def test_twice_reaches_every_position(recurrence: int, reaches: bool) -> None:
    layer, x = foveate.nn.CrissCrossAttention(channels=8, recurrence=recurrence).double(), random(1, 8, 4, 5).requires_grad_()
    torch.nn.init.constant_(layer.gamma, 1.0)
    (gradient,) = torch.autograd.grad(layer(x)[0, :, 1, 2].sum(), x)
    met = (gradient[0] != 0).any(0)
    if reaches:
        assert met.all()
    else:
        cross = torch.zeros(4, 5, dtype=torch.bool)
        cross[1], cross[:, 2] = True, True
        assert torch.equal(met, cross)


def test_a_fresh_module_is_the_identity_and_learns_from_there() -> None:
    layer, x = foveate.nn.CrissCrossAttention(channels=512), torch.randn(1, 512, 3, 4)
    out = layer(x)
    assert torch.equal(out, x)
    out.square().sum().backward()
    assert layer.gamma.grad.abs().sum() > 0 and layer.query.weight.grad.abs().sum() == 0


def test_a_large_map_needs_no_matrix_of_all_pairs() -> None:
    x = torch.randn(1, 2, 300, 301)  # all pairs would take 33 GB
    assert foveate.criss_cross(x, x, x).isfinite().all()
