"""What is peculiar to random features: how they are drawn, what they estimate, what their stabilisers do."""

import math

import pytest
import torch
from torch import Tensor

import foveate


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


ROTATIONS = ("uniform", "hadamard", "givens")


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("row_norm", ["gaussian", "sqrt_dim"])
def test_rows_are_orthogonal_by_blocks(row_norm: str, rotation: str) -> None:
    W = foveate.random_projection(11, 4, row_norm=row_norm, rotation=rotation, generator=generator(), dtype=torch.float64)
    assert W.shape == (11, 4)
    for block in W.split(4):
        products = block @ block.T
        torch.testing.assert_close(products, products.diagonal().diag())
    if row_norm == "sqrt_dim":
        torch.testing.assert_close(W.norm(dim=1), torch.full((11,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_draws_follow_the_generator(rotation: str) -> None:
    def draw(seed: int) -> Tensor:
        return foveate.random_projection(16, 8, rotation=rotation, generator=generator(seed))

    torch.testing.assert_close(draw(3), draw(3), rtol=0, atol=0)
    assert not torch.equal(draw(3), draw(4))
    directions = torch.nn.functional.normalize(draw(3))
    assert not torch.allclose(directions[:8], directions[8:]), "blocks are drawn one by one"


def test_half_precision_and_unknown_choices() -> None:
    assert foveate.random_projection(6, 4, dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="row_norm must be one of"):
        foveate.random_projection(6, 4, row_norm="long")
    with pytest.raises(ValueError, match="rotation must be one of"):
        foveate.random_projection(6, 4, rotation="none")
    with pytest.raises(ValueError, match="a power of two, got 6"):
        foveate.random_projection(6, 6, rotation="hadamard")


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("orthogonal", [True, False])
def test_directions_prefer_no_side(orthogonal: bool, rotation: str) -> None:
    D = 4 if rotation == "hadamard" else 3
    W = torch.stack([foveate.random_projection(D, D, orthogonal=orthogonal, rotation=rotation, generator=generator(seed)) for seed in range(2000)])
    assert W.mean(0).abs().max() < 0.12  # five standard deviations
    assert (W.square().mean(0) - 1).abs().max() < 0.2


def estimate_error(features: str, m: int, orthogonal: bool, form: str = "performer_attention", rotation: str = "uniform") -> float:
    """Mean squared error against softmax over twenty draws."""
    q, k, v = (0.8 * torch.randn(1, 1, 32, 8, generator=generator(seed), dtype=torch.float64) for seed in range(3))
    want = foveate.attention(q, k, v)
    errors: list[Tensor] = []
    for seed in range(20):
        W = foveate.random_projection(m, 8, orthogonal=orthogonal, rotation=rotation, generator=generator(seed), dtype=torch.float64)
        errors.append((getattr(foveate, form)(q, k, v, projection=W, features=features) - want).square().mean())
    return float(torch.stack(errors).mean())


def test_more_features_estimate_better_and_orthogonal_ones_best() -> None:
    few, many = estimate_error("positive", 16, True), estimate_error("positive", 1024, True)
    assert many < few / 4
    for features, form in (("positive", "performer_attention"), ("hyperbolic", "performer_attention"), ("sincos", "favor_attention")):
        assert estimate_error(features, 64, True, form) < estimate_error(features, 64, False, form)
    assert estimate_error("hyperbolic", 512, True) < 0.01
    for rotation in ROTATIONS[1:]:
        assert estimate_error("positive", 64, True, rotation=rotation) < estimate_error("positive", 64, False)


def test_the_stabilizers_agree_without_eps() -> None:
    q, k, v = torch.randn(3, 2, 2, 9, 4, dtype=torch.float64)
    W = foveate.random_projection(12, 4, dtype=torch.float64)
    for features in ("positive", "hyperbolic"):
        for causal in (False, True):
            outs = [foveate.performer_attention(q, k, v, projection=W, features=features, causal=causal, stabilizer=s)
                    for s in ("running", "sequence", "none")]  # fmt: skip
            torch.testing.assert_close(outs[0], outs[1])
            torch.testing.assert_close(outs[0], outs[2])


def test_running_maxima_keep_long_vectors_in_range() -> None:
    q, k, v = torch.randn(3, 1, 2, 300, 16)
    W = foveate.random_projection(64, 16)
    for causal in (False, True):
        leaf = (60 * k).requires_grad_()
        out = foveate.performer_attention(60 * q, leaf, v, projection=W, causal=causal)
        assert out.isfinite().all() and torch.autograd.grad(out.sum(), leaf)[0].isfinite().all()


def test_hidden_keys_may_hold_anything() -> None:
    q, k, v = torch.randn(3, 1, 2, 7, 4, dtype=torch.float64)
    W = foveate.random_projection(12, 4, dtype=torch.float64)
    mask = torch.arange(7)[None] < 5
    for stabilizer in ("running", "sequence"):
        want = foveate.performer_attention(q, k[:, :, :5], v[:, :, :5], projection=W, stabilizer=stabilizer, eps=1e-4)
        far = k.clone()
        far[:, :, 5:] = 1e4
        leaf = far.requires_grad_()
        got = foveate.performer_attention(q, leaf, v, projection=W, stabilizer=stabilizer, eps=1e-4, key_mask=mask)
        torch.testing.assert_close(got, want)
        assert torch.autograd.grad(got.sum(), leaf)[0].isfinite().all()


def test_redraw_changes_the_draw_alone() -> None:
    for layer in (
        foveate.nn.PerformerMultiheadAttention(embed_dim=8, num_heads=2),
        foveate.nn.FavorMultiheadAttention(embed_dim=8, num_heads=2, features="cos_phase"),
    ):
        before = {n: x.clone() for n, x in layer.state_dict().items()}
        layer.redraw()
        changed = {n for n, x in layer.state_dict().items() if not torch.equal(x, before[n])}
        assert changed == {n for n in before if n.startswith("drawn.")} != set()
    with pytest.raises(TypeError, match="keeps no random draw"):
        foveate.nn.MultiheadAttention(embed_dim=8, num_heads=2).redraw()


def test_states_of_other_implementations_load() -> None:
    theirs = {f"to_{n}.weight": torch.randn(12, 8) for n in "qkv"} | {"to_out.weight": torch.randn(8, 12), "to_out.bias": torch.randn(8)}
    theirs["fast_attention.projection_matrix"] = torch.randn(14, 6)
    layer = foveate.nn.PerformerMultiheadAttention(embed_dim=8, num_heads=2, head_dim=6, nb_features=14)
    assert foveate.nn.load_published(layer, theirs) == "lucidrains/performer-pytorch"
    assert torch.equal(layer.drawn.projection, theirs["fast_attention.projection_matrix"])
    idiap = {f"{n}_projection.{p}": torch.randn(8, 8) if p == "weight" else torch.randn(8) for n in ("query", "key", "value", "out")
             for p in ("weight", "bias")} | {"inner_attention.feature_map.omega": torch.randn(4, 3)}  # fmt: skip
    layer = foveate.nn.PerformerMultiheadAttention(embed_dim=8, num_heads=2, nb_features=3, bias=True, features="hyperbolic")
    assert foveate.nn.load_published(layer, idiap) == "idiap/fast-transformers"
    assert torch.equal(layer.drawn.projection, idiap["inner_attention.feature_map.omega"].T)


def test_add_to_keys_adds_to_every_sum() -> None:
    q, k, v = torch.randn(3, 1, 2, 7, 4, dtype=torch.float64)
    W, s = foveate.random_projection(5, 4, dtype=torch.float64), 0.1

    def phi(x: Tensor) -> Tensor:
        x = x * 4**-0.25
        return (x @ W.T - x.square().sum(-1, keepdim=True) / 2).exp() / math.sqrt(5)

    weights = (phi(q) @ phi(k).transpose(-1, -2)).tril()
    want = weights @ v / (weights.sum(-1, keepdim=True) + s * phi(q).sum(-1, keepdim=True))
    options = {"stabilizer": "none", "denominator": "add_to_keys", "denominator_eps": s}
    torch.testing.assert_close(foveate.performer_attention(q, k, v, projection=W, causal=True, **options), want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"renormalize": False}, "renormalize=False needs the stabilizer"),
        ({"denominator": "add_to_keys"}, "add_to_keys needs the stabilizer"),
        ({"eps": -1.0}, "eps must not be negative"),
        ({"scale": 0.0}, "scale must be positive"),
        ({"nb_features": 0}, "nb_features must be positive"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    x = torch.randn(1, 1, 3, 4)
    with pytest.raises(ValueError, match=message):
        foveate.performer_attention(x, x, x, **options)


def test_a_draw_must_be_given_to_stream() -> None:
    x = torch.randn(1, 1, 3, 4)
    assert foveate.performer_attention(x, x, x).isfinite().all()
    with pytest.raises(ValueError, match="projection must be given"):
        foveate.performer_attention_step(x, x, x, causal=True)
    with pytest.raises(ValueError, match="phase must be given"):
        foveate.favor_attention_step(x, x, x, projection=torch.randn(5, 4), causal=True, features="cos_phase")
    with pytest.raises(ValueError, match="stabilizer must be running or none"):
        foveate.performer_attention_step(x, x, x, projection=torch.randn(5, 4), causal=True, stabilizer="sequence")
