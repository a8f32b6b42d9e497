"""What is peculiar to random feature attention: the kernel it stands for, gates, masks of pairs, the pool of draws."""

from typing import Any

import pytest
import torch

import foveate


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("draw", ["gaussian", "orf"])
def test_many_features_come_near_to_softmax_of_unit_vectors(draw: str) -> None:
    torch.manual_seed(0)
    q, k, v = random(2, 2, 5, 4), random(2, 2, 9, 4), random(2, 2, 9, 3)
    unit_q, unit_k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
    want = torch.nn.functional.scaled_dot_product_attention(unit_q, unit_k, v, scale=1 / 0.8**2)
    errors = [(foveate.random_feature_attention(q, k, v, proj_dim=m, tau=0.8, draw=draw) - want).norm() / want.norm() for m in (16, 10000)]
    assert errors[1] < 0.03
    assert errors[1] < errors[0]


def test_arc_cosine_features_come_near_to_their_kernel() -> None:
    torch.manual_seed(0)
    q, k, v = random(1, 1, 5, 4), random(1, 1, 9, 4), random(1, 1, 9, 3)
    angle = torch.nn.functional.cosine_similarity(q.unsqueeze(3), k.unsqueeze(2), -1).acos()
    weights = angle.sin() + (torch.pi - angle) * angle.cos()
    want = weights @ v / weights.sum(-1, keepdim=True)
    got = foveate.random_feature_attention(q, k, v, proj_dim=50000, feature_map="arccos")
    assert (got - want).norm() / want.norm() < 0.03


def test_orf_rows() -> None:
    torch.manual_seed(0)
    for m in (4, 3):
        W = foveate.nn.RFA(embed_dim=8, num_heads=2, proj_dim=m, draw="orf", pool_size=9).pool
        products = W @ W.transpose(-1, -2)
        torch.testing.assert_close(products - torch.diag_embed(products.diagonal(dim1=-2, dim2=-1)), torch.zeros(9, m, m), atol=1e-4, rtol=0)
    W = foveate.nn.RFA(embed_dim=8, num_heads=2, proj_dim=64, draw="orf", pool_size=200).pool
    assert (W.square().mean() - 1).abs() < 0.05


def gated_by_loop(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gate: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
    def phi(x: torch.Tensor) -> torch.Tensor:
        u = torch.nn.functional.normalize(x, dim=-1) @ W.transpose(-1, -2)
        return torch.cat([u.sin(), u.cos()], -1) * W.shape[1] ** -0.5

    S, z, outs = 0, 0, []
    for i in range(q.shape[2]):
        g, f = gate[:, :, i, None], phi(k[:, :, i : i + 1]).squeeze(2)
        S = g[..., None] * S + (1 - g)[..., None] * f[..., None] * v[:, :, i, None]
        z = g * z + (1 - g) * f
        read = phi(q[:, :, i : i + 1])
        R = (read @ z[..., None]).abs().clamp_min(1e-6)
        outs.append(read @ S / R)
    return torch.cat(outs, 2)


@pytest.mark.parametrize("closed", [(), (0, 3, 4)], ids=["open", "closed"])
def test_gates(closed: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    q, k, v, W = random(2, 2, 70, 4), random(2, 2, 70, 4), random(2, 2, 70, 3), random(2, 9, 4)
    gate = torch.rand(2, 2, 70, dtype=torch.float64)
    gate[:, :, list(closed)] = 0
    gate.requires_grad_()
    out = foveate.random_feature_attention(q, k, v, gate=gate, random_matrices=W, causal=True)
    torch.testing.assert_close(out, gated_by_loop(q, k, v, gate, W))
    assert torch.autograd.grad(out.square().sum(), gate)[0].isfinite().all()


def test_a_hidden_token_leaves_a_gated_memory_as_it_is() -> None:
    torch.manual_seed(0)
    q, k, v, W, gate = random(1, 2, 9, 4), random(1, 2, 9, 4), random(1, 2, 9, 3), random(2, 9, 4), torch.rand(1, 2, 9, dtype=torch.float64)
    seen = torch.tensor([0, 1, 3, 4, 7])
    mask = torch.isin(torch.arange(9), seen).expand(1, 9)
    got = foveate.random_feature_attention(q, k, v, mask, gate=gate, random_matrices=W, causal=True)
    cut = [x[:, :, seen] for x in (q, k, v, gate)]
    want = foveate.random_feature_attention(*cut[:3], gate=cut[3], random_matrices=W, causal=True)
    torch.testing.assert_close(got[:, :, seen], want)


@pytest.mark.parametrize("denominator", ["clamp", "abs_clamp"])
def test_a_mask_of_pairs_equals_the_sums_where_both_can_say_it(denominator: str) -> None:
    torch.manual_seed(0)
    q, k, v, W, keys = random(2, 2, 6, 4), random(2, 2, 6, 4), random(2, 2, 6, 3), random(2, 9, 4), torch.rand(2, 6) < 0.7
    options: dict[str, Any] = {"random_matrices": W, "denominator": denominator, "denominator_eps": 0.3}
    want = foveate.random_feature_attention(q, k, v, keys, causal=True, **options)
    lower = torch.ones(6, 6, dtype=torch.bool).tril()
    torch.testing.assert_close(foveate.random_feature_attention(q, k, v, keys, mask=lower, **options), want)
    torch.testing.assert_close(foveate.random_feature_attention(q, k, v, keys, mask=torch.ones_like(lower), causal=True, **options), want)
    with pytest.raises(ValueError, match="mask and gate exclude each other"):
        foveate.random_feature_attention(q, k, v, mask=lower, gate=torch.rand(2, 2, 6).double(), causal=True, **options)


@pytest.mark.parametrize("norm_eps", [0.0, 1e-3])
def test_vectors_of_length_zero(norm_eps: float) -> None:
    torch.manual_seed(0)
    q, k, v = (random(1, 1, 5, 4) for _ in range(3))
    q[:, :, 1], k[:, :, 2] = 0, 0
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = foveate.random_feature_attention(*leaves, random_matrices=random(1, 9, 4), norm_eps=norm_eps)
    first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    assert all(x.isfinite().all() for x in (out, *first, *second))


def test_the_pool_of_draws() -> None:
    torch.manual_seed(0)
    layer = foveate.nn.RFA(embed_dim=8, num_heads=2, proj_dim=5, pool_size=6, causal=True)
    x = torch.randn(1, 6, 8)
    assert "pool" in layer.state_dict()
    assert "pool" not in dict(layer.named_parameters())
    assert not torch.equal(layer(x), layer(x))
    taken = layer.step(x[:, :1])[1][2]
    place = [next(i for i in range(6) if torch.equal(layer.pool[i], W)) for W in taken]
    assert len(set(place)) == 2
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    torch.testing.assert_close(layer(x), layer(x, random_matrices=layer.pool[:2]))
    layer.train()
    first, state = layer.step(x[:, :3])  # a stream keeps its draw
    rest, _ = layer.step(x[:, 3:], state=state)
    torch.testing.assert_close(torch.cat([first, rest], 1), layer(x, random_matrices=state[2]))
    with pytest.raises(ValueError, match="pool_size must be 0 or num_heads = 2 and more, got 1"):
        foveate.nn.RFA(embed_dim=8, num_heads=2, pool_size=1)


def test_a_memory_is_given_once() -> None:
    torch.manual_seed(0)
    layer = foveate.nn.RFA(embed_dim=8, num_heads=2, proj_dim=5, pool_size=2).double().eval()
    x, context = random(2, 4, 8), random(2, 7, 8)
    whole = layer(x, context=context)
    first, state = layer.step(x[:, :1], context=context)
    rest, _ = layer.step(x[:, 1:], context=context[:, :0], state=state)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole)


def test_gate_and_order_go_together() -> None:
    with pytest.raises(ValueError, match="gated needs causal"):
        foveate.nn.RFA(embed_dim=8, num_heads=2, gated=True)
    q = torch.randn(1, 1, 3, 2)
    with pytest.raises(ValueError, match="gate needs causal"):
        foveate.random_feature_attention(q, q, q, gate=torch.rand(1, 1, 3))
