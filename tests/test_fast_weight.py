"""What is peculiar to fast weights: DPFP features, overwriting, keys that vanish, the normalised removal, redrawn features."""

import pytest
import torch

import foveate


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("nu", [1, 2, 3])
def test_dpfp_features(nu: int) -> None:
    torch.manual_seed(0)
    k = random(1, 1, 1, 4)
    _, (_, z, _) = foveate.fast_weight_attention_step(k, k, k, update="sum", feature_map="dpfp", nu=nu)
    r = [max(x, 0.0) for x in k.flatten().tolist()] + [max(-x, 0.0) for x in k.flatten().tolist()]
    want = [r[i] * r[(i - j) % 8] for j in range(1, nu + 1) for i in range(8)]
    torch.testing.assert_close(z.flatten(), torch.tensor(want, dtype=torch.float64))


@pytest.mark.parametrize("update", ["delta", "sum"])
def test_the_delta_rule_gives_a_key_a_new_value(update: str) -> None:
    torch.manual_seed(0)
    key, values = random(1, 1, 1, 4), random(1, 1, 2, 3)
    # One feature vector of length one: the memory then gives back what was last written, or the sum of all.
    _, (_, z, _) = foveate.fast_weight_attention_step(key, key, values[:, :, :1], update="sum", feature_map="elu+1", sum_norm=True)
    power = 1 / z.square().sum()
    beta = {"beta": power.expand(1, 1, 2)} if update == "delta" else {}
    out = foveate.fast_weight_attention(
        key.expand(1, 1, 2, 4), key.expand(1, 1, 2, 4), values, update=update, feature_map="elu+1", sum_norm=True, **beta
    )
    want = values[:, :, 1] if update == "delta" else values.sum(2) / power
    torch.testing.assert_close(out[:, :, 1], want)


@pytest.mark.parametrize("attention_norm", ["none", "query", "both"])
def test_a_key_whose_features_vanish_writes_nothing(attention_norm: str) -> None:
    torch.manual_seed(0)
    q, k, v = (random(1, 1, 6, 3) for _ in range(3))
    k[:, :, 2] = torch.tensor([1.0, -1.0, 1.0])  # alternating signs of an odd number: with nu = 1 all products are 0
    beta = torch.rand(1, 1, 6, dtype=torch.float64)
    options = {"feature_map": "dpfp", "nu": 1, "attention_norm": attention_norm}
    leaves = [x.requires_grad_() for x in (q, k, v, beta)]
    out = foveate.fast_weight_attention(*leaves, **options)
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.square().sum(), leaves))
    mask = torch.arange(6).expand(1, 6) != 2
    torch.testing.assert_close(out, foveate.fast_weight_attention(*leaves, mask, **options))


@pytest.mark.parametrize("update", ["delta", "sum"])
@pytest.mark.parametrize("attention_norm", ["none", "query", "both"])
def test_padding_on_either_side_changes_nothing(update: str, attention_norm: str) -> None:
    torch.manual_seed(0)
    q, k, v, beta = (*(random(1, 2, 9, 4) for _ in range(3)), torch.rand(1, 2, 9, dtype=torch.float64))
    mask = ((torch.arange(9) >= 2) & (torch.arange(9) < 7)).expand(1, 9)
    options = {"update": update, "feature_map": "elu+1", "attention_norm": attention_norm}
    arguments = [q, k, v, *([beta] if update == "delta" else [])]
    got = foveate.fast_weight_attention(*arguments, key_mask=mask, **options)
    assert (got[:, :, :2] == 0).all()
    torch.testing.assert_close(got[:, :, 2:7], foveate.fast_weight_attention(*(x[:, :, 2:7] for x in arguments), **options))


def test_what_is_removed_is_what_a_normalised_read_gives() -> None:
    torch.manual_seed(0)
    q, k, v, beta = (*(random(1, 1, 5, 4) for _ in range(3)), torch.rand(1, 1, 5, dtype=torch.float64))
    got = foveate.fast_weight_attention(q, k, v, beta, feature_map="elu+1", attention_norm="both", eps=0.0)

    def phi(x: torch.Tensor) -> torch.Tensor:
        f = torch.nn.functional.elu(x) + 1
        return f / f.sum(-1, keepdim=True)

    S, z, outs = torch.zeros(4, 4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64), []
    for i in range(5):
        key, read = phi(k[0, 0, i]), phi(q[0, 0, i])
        held = key @ S / (z @ key) if i > 0 else key @ S
        S, z = S + torch.outer(key, beta[0, 0, i] * (v[0, 0, i] - held)), z + key
        outs.append(read @ S / (z @ read))
    torch.testing.assert_close(got[0, 0], torch.stack(outs))


def test_random_features_are_redrawn_in_training_and_kept_in_a_stream() -> None:
    torch.manual_seed(0)
    layer = foveate.nn.FastWeightLayer(d_model=8, n_head=2, feature_map="favor+", m=6)
    x = torch.randn(1, 6, 8)
    assert "projection" in layer.state_dict()
    assert not torch.equal(layer(x), layer(x))
    _, state = layer.step(x[:, :3])
    _, after = layer.step(x[:, 3:], state=state)
    assert torch.equal(after[2], state[2])
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    blocks = layer.projection.T[:4]  # rows of a block are orthogonal
    products = blocks @ blocks.T
    torch.testing.assert_close(products, torch.diag(products.diagonal()), atol=1e-5, rtol=1e-5)


def test_the_delta_rule_needs_write_strengths() -> None:
    q = torch.randn(1, 1, 3, 2)
    with pytest.raises(ValueError, match="beta is for update = delta, which needs it"):
        foveate.fast_weight_attention(q, q, q)
    with pytest.raises(ValueError, match="beta is for update = delta"):
        foveate.fast_weight_attention(q, q, q, torch.rand(1, 1, 3), update="sum")
    with pytest.raises(ValueError, match="causal needs as many queries as keys, got 3 and 2"):
        foveate.fast_weight_attention(q, q[:, :, :2], q[:, :, :2], torch.rand(1, 1, 2))
