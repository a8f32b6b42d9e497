"""What is peculiar to the non-local block."""

import pytest
import torch
from torch import Tensor

import foveate


def pairs(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    """Concatenation with its map of all pairs."""
    a, b = weight.chunk(2)
    scores = (q @ a).unsqueeze(-1) + (k @ b).unsqueeze(-2)
    return scores.relu() @ v / k.shape[-2]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 9), (9, 1), (40, 33)])
def test_concatenation_equals_the_map_of_pairs(n: int, m: int) -> None:
    leaves = [x.requires_grad_() for x in (random(2, 3, n, 4), random(2, 3, m, 4, seed=1), random(2, 3, m, 5, seed=2), random(8, seed=3))]
    got = foveate.non_local_attention(*leaves[:3], leaves[3], mode="concatenation")
    want = pairs(*leaves)
    torch.testing.assert_close(got, want)
    cotangent = random(*want.shape, seed=4)
    torch.testing.assert_close(torch.autograd.grad(got, leaves, cotangent), torch.autograd.grad(want, leaves, cotangent))


def test_concatenation_with_many_equal_scores_equals_the_map_of_pairs() -> None:
    q, k = (random(1, 1, 20, 2, seed=s).round().requires_grad_() for s in (0, 1))  # a_i + b_j is often exactly 0, b_j often repeated
    v, weight = random(1, 1, 20, 3, seed=2), torch.ones(4, dtype=torch.float64)
    got, want = foveate.non_local_attention(q, k, v, weight, mode="concatenation"), pairs(q, k, v, weight)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got.square().sum(), [q, k]), torch.autograd.grad(want.square().sum(), [q, k]))


def test_concatenation_of_a_large_map_makes_no_map_of_pairs() -> None:
    x = torch.randn(1, 1, 100_000, 2)  # the map would take 40 GB
    assert foveate.non_local_attention(x, x, x, torch.randn(4), mode="concatenation").isfinite().all()


@pytest.mark.parametrize(("n", "d"), [(3, 16), (50, 2)])
def test_dot_product_is_the_same_in_either_order(n: int, d: int) -> None:
    q, k, v = (random(2, 1, n, d, seed=s) for s in range(3))
    torch.testing.assert_close(foveate.non_local_attention(q, k, v, mode="dot_product"), q @ k.transpose(-1, -2) @ v / n)


@pytest.mark.parametrize("mode", ["embedded_gaussian", "gaussian", "dot_product", "concatenation"])
@pytest.mark.parametrize("bn", [True, False])
def test_a_fresh_block_is_the_identity(mode: str, bn: bool) -> None:
    x = torch.randn(2, 6, 4, 5)
    assert torch.equal(foveate.nn.NonLocalBlock(in_channels=6, mode=mode, bn=bn)(x), x)


def test_maps_that_do_not_fit_are_refused() -> None:
    block = foveate.nn.NonLocalBlock(in_channels=4)
    with pytest.raises(ValueError, match=r"non_local_block: x must be 2 or more wide where sub_sample pools it, got \[1, 4, 1, 6\]"):
        block(torch.randn(1, 4, 1, 6))
    with pytest.raises(ValueError, match=r"non_local_block: x must be \[B,C,\*S\] with C = 4 and 2 dimensions S, got \[1, 4, 6\]"):
        block(torch.randn(1, 4, 6))
    video = foveate.nn.NonLocalBlock(in_channels=4, dimension=3).eval()
    assert video(torch.randn(1, 4, 1, 2, 2)).shape == (1, 4, 1, 2, 2)  # time is not pooled


def test_pair_weight_belongs_to_concatenation() -> None:
    q = torch.randn(1, 1, 3, 4)
    with pytest.raises(ValueError, match="pair_weight is for the mode concatenation"):
        foveate.non_local_attention(q, q, q, mode="concatenation")
    with pytest.raises(ValueError, match="pair_weight is for the mode concatenation"):
        foveate.non_local_attention(q, q, q, torch.randn(8))
    with pytest.raises(ValueError, match=r"pair_weight must be \[2D\] with D = 4 as in q, got \[6\]"):
        foveate.non_local_attention(q, q, q, torch.randn(6), mode="concatenation")


@pytest.mark.parametrize(
    ("options", "message"), [({"in_channels": 0}, "in_channels"), ({"inter_channels": 0}, "inter_channels"), ({"dimension": 4}, "dimension")]
)
def test_impossible_options_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=rf"non_local_block: {message} must be"):
        foveate.nn.NonLocalBlock(**{"in_channels": 4, **options})


def test_the_pair_network_may_have_a_bias() -> None:
    block = foveate.nn.NonLocalBlock(in_channels=4, mode="concatenation", biased_pair=True, sub_sample=False, bn=False, dtype=torch.float64)
    with torch.no_grad():
        for p in block.parameters():
            p.normal_()
    x = random(1, 4, 2, 3)
    flat = x.flatten(2).transpose(1, 2)
    q, k, v = (flat @ getattr(block, name).weight.flatten(1).T + getattr(block, name).bias for name in ("theta", "phi", "g"))
    a, b = block.pair.weight.flatten().chunk(2)
    y = ((q @ a).unsqueeze(-1) + (k @ b).unsqueeze(-2) + block.pair.bias).relu() @ v / 6
    want = (y @ block.out.weight.flatten(1).T + block.out.bias).transpose(1, 2).view_as(x) + x
    torch.testing.assert_close(block(x), want)


def test_initial_values_of_the_authors() -> None:
    torch.manual_seed(0)
    block = foveate.nn.NonLocalBlock(in_channels=64, weight_std=0.01, bn_gain=1.0)
    assert block.theta.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert (block.theta.bias == 0).all() and (block.norm.weight == 1).all()
