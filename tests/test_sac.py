"""What is peculiar to SAC: fixed lists of edges are the patterns they describe, and the predictor's choices are its probabilities'."""

import pytest
import torch
import torch.nn.functional as F

import foveate


def test_edges_of_a_window_are_window_attention() -> None:
    q, k, v = torch.randn(3, 1, 2, 9, 4, dtype=torch.float64)
    i, j = torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")
    near = (i - j).abs() <= 2
    edges = torch.stack([i[near], j[near]], -1)[None, None]
    result = foveate.edge_attention(q, k, v, edges[:, :, torch.randperm(edges.shape[2])])
    torch.testing.assert_close(result.out, foveate.attention(q, k, v, mask=near), rtol=1e-10, atol=1e-11)
    assert torch.equal(result.degree[0, 0], near.sum(1))


def test_an_edge_counts_once_and_none_of_minus_one() -> None:
    q, k, v = torch.randn(3, 1, 1, 4, 4, dtype=torch.float64)
    once = foveate.edge_attention(q, k, v, torch.tensor([[[[0, 2], [1, 3]]]]))
    several = foveate.edge_attention(q, k, v, torch.tensor([[[[0, 2], [1, 3], [0, 2], [-1, 3], [2, -1], [0, 0]]]]))
    torch.testing.assert_close(several.out, once.out, rtol=0, atol=1e-12)
    assert torch.equal(several.degree, once.degree)


def test_a_token_without_an_edge_gets_zeros() -> None:
    q, k, v = torch.randn(3, 1, 1, 3, 4)
    result = foveate.edge_attention(q, k, v, torch.tensor([[[[0, 1]]]]), self_loops=False)
    assert (result.out[0, 0, 1:] == 0).all() and result.degree[0, 0].tolist() == [1, 0, 0]


def _layer(**options) -> foveate.nn.SparseAdaptiveConnection:
    torch.manual_seed(0)
    return foveate.nn.SparseAdaptiveConnection(embed_dim=6, num_heads=2, alpha=1, lstm_hidden=5, max_distance=2, **options).double()


def test_the_log_probabilities_of_all_edges_sum_to_one() -> None:
    layer, x = _layer(), torch.randn(1, 2, 6).double()
    lists = torch.cartesian_prod(*[torch.arange(2)] * 4).view(16, 1, 1, 2, 2)  # two edges of two tokens
    total = sum(layer(x, edges=edges).edge_log_prob.exp().item() for edges in lists)
    assert total == pytest.approx(1, abs=1e-9)


def test_a_beam_finds_edges_at_least_as_probable_and_all_beams_the_best() -> None:
    x = torch.randn(3, 2, 6).double()
    greedy, beam = _layer()(x).edge_log_prob, _layer(mode="beam", beams=16)(x).edge_log_prob
    assert (beam >= greedy - 1e-12).all()
    lists = torch.cartesian_prod(*[torch.arange(2)] * 4).view(16, 1, 1, 2, 2)
    best = torch.stack([_layer()(x, edges=edges.expand(3, 1, 2, 2)).edge_log_prob for edges in lists]).amax(0)
    torch.testing.assert_close(beam, best)


def test_samples_come_as_often_as_they_are_probable() -> None:
    layer, x = _layer(mode="sample", source="given"), torch.randn(1, 2, 6).double().expand(4000, 2, 6)
    _, edges, log_prob = layer(x)
    code = edges[:, 0, 0, 1] * 2 + edges[:, 0, 1, 1]
    for n in range(4):
        drawn = code == n
        if drawn.any():
            assert drawn.double().mean().item() == pytest.approx(log_prob[drawn][0, 0].exp().item(), abs=0.03)


def test_the_policy_gradient_reaches_the_sequence_unless_detached() -> None:
    x = torch.randn(1, 5, 6).double().requires_grad_()
    assert torch.autograd.grad(_layer()(x).edge_log_prob.sum(), x)[0].abs().sum() > 0
    log_prob = _layer(detach_input=True)(x).edge_log_prob
    assert torch.autograd.grad(log_prob.sum(), x, allow_unused=True)[0] is None


def test_tokens_that_take_no_part_are_not_named() -> None:
    x, there = torch.randn(2, 7, 6).double(), torch.ones(2, 7, dtype=torch.bool)
    there[:, 4:] = False
    out, edges, _ = _layer()(x, key_mask=there)
    assert (edges < 4).all()
    torch.testing.assert_close(out[:, 4:], torch.zeros_like(out[:, 4:]))
    short = _layer()(x[:, :4], edges=F.pad(edges, (0, 0, 0, 0)))
    torch.testing.assert_close(out[:, :4], short.out)
