"""Permutohedral attention: what is peculiar to it: normalisation, hidden points, the lattice, the module by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import foveate
from foveate import nn


def points(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_constant_stays_what_it_is_where_rows_are_normalised() -> None:
    features = points(2, 2, 30, 4)
    out = foveate.lattice_filter(features, torch.full((2, 2, 30, 3), 0.7, dtype=torch.float64), normalize="row")
    torch.testing.assert_close(out, torch.full_like(out, 0.7))


def test_the_symmetric_filter_is_divided_on_both_sides() -> None:
    features, identity = points(1, 1, 12, 2), torch.eye(12, dtype=torch.float64)[None, None]
    n = foveate.lattice_filter(features, torch.ones_like(features[..., :1]))
    want = n.rsqrt() * foveate.lattice_filter(features, n.rsqrt() * identity)
    torch.testing.assert_close(foveate.lattice_filter(features, identity, normalize="symmetric"), want)


@pytest.mark.parametrize("normalize", ["none", "row", "symmetric"])
def test_hidden_points_are_not_there(normalize: str) -> None:
    features, values, mask = points(1, 2, 25, 3), points(1, 2, 25, 4, seed=1), torch.arange(25)[None] % 3 != 0
    got = foveate.lattice_filter(features, values, mask, normalize=normalize)
    want = foveate.lattice_filter(features[:, :, mask[0]], values[:, :, mask[0]], normalize=normalize)
    torch.testing.assert_close(got[:, :, mask[0]], want)
    assert (got[:, :, ~mask[0]] == 0).all()


@pytest.mark.parametrize("d", [1, 2, 5, 16])
def test_the_vertices_of_a_point_hold_it(d: int) -> None:
    features = 3 * points(1, 1, 40, d)
    weights, vertices, rank = foveate.permutohedral_simplex(features)
    whole = torch.cat([vertices, -vertices.sum(-1, keepdim=True)], -1).double()  # [1,1,N,d+1,d+1]
    k = torch.arange(1, d + 1, dtype=torch.float64)
    embedding = torch.stack([torch.cat([torch.ones(i), torch.tensor([-float(i)]), torch.zeros(d - i)]).double() for i in range(1, d + 1)], 1)
    embedding = embedding / (k * (k + 1)).sqrt() * (2 / 3) ** 0.5 * (d + 1)
    torch.testing.assert_close((weights.unsqueeze(-1) * whole).sum(-2), features @ embedding.T, rtol=1e-9, atol=1e-9)
    assert (weights > -1e-12).all() and torch.equal(rank.sort(-1).values, torch.arange(d + 1).expand_as(rank))
    assert torch.equal(vertices.remainder(d + 1), torch.arange(d + 1)[:, None].expand_as(vertices))


@pytest.mark.parametrize("shape", [(9,), (4, 5), (3, 4, 2)])
def test_the_module_by_hand(shape: tuple[int, ...]) -> None:
    axes = len(shape)
    block = nn.PermutohedralAttention(in_features=4, filter_features=3, out_features=2, dimension=axes, normalize="row").double()
    x = points(2, 4, *shape)
    places = torch.stack(torch.meshgrid(*[torch.arange(n) - n // 2 for n in shape], indexing="ij")).double()
    coordinates = places * block.spatial_scale.view(-1, *[1] * axes)
    whole = torch.cat([x, coordinates.expand(2, *coordinates.shape)], 1)

    def mapped(layer: nn.Group, given: Tensor) -> Tensor:  # -> [B,split,N,*]
        flat = torch.einsum("oc,bcn->bno", layer.weight.flatten(1), given.flatten(2)) + layer.bias
        return flat.unflatten(-1, (2, -1)).transpose(1, 2)

    out = foveate.lattice_filter(F.leaky_relu(mapped(block.features, whole), 0.01), mapped(block.values, x), normalize="row")
    torch.testing.assert_close(block(x), out.transpose(2, 3).flatten(1, 2).unflatten(2, shape))


def test_features_learn_which_points_belong_together() -> None:
    torch.manual_seed(0)
    label = torch.arange(40) % 2
    values = F.one_hot(label).double()[None, None]
    features = (0.3 * points(1, 1, 40, 2)).requires_grad_()
    optimiser = torch.optim.Adam([features], lr=0.05)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        mixed = foveate.lattice_filter(features, values, normalize="row")
        loss = (mixed - values).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.2 * losses[0]


def test_too_many_features_are_refused() -> None:
    with pytest.raises(ValueError, match="features must be 1 to 16 wide, got 17"):
        foveate.lattice_filter(torch.randn(1, 1, 3, 17), torch.randn(1, 1, 3, 2))
    with pytest.raises(ValueError, match="filter_features must lie between 1 and 16"):
        nn.PermutohedralAttention(in_features=4, filter_features=17)
