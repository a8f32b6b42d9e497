"""What is peculiar to axial attention and its image model."""

from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate.nn import AxialImageTransformer, AxialSampler, AxialSampler3d, AxialTransformer, AxialTransformer3d
from tests.contract import kept_for_the_gradient

SIZE: dict[str, Any] = {"height": 4, "width": 5, "num_embs": 7, "embed_dim": 8, "num_heads": 2, "num_outer_layers": 4, "num_inner_layers": 2}
VOLUME: dict[str, Any] = SIZE | {"height": 3, "width": 4, "channels": 3, "num_exterior_layers": 2}


def stirred(layer: Any) -> Any:
    """In double, with weights that are not nearly nothing."""
    torch.manual_seed(0)
    layer.double().eval()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return layer


def pair(model: Any, sampler: Any, options: dict[str, Any], **more: Any) -> tuple[Any, Any]:
    one, two = stirred(model(**options)), sampler(**options, **more).double()
    two.load_state_dict(one.state_dict())
    return one, two


def gumbel(*shape: int) -> Tensor:
    return -torch.empty(shape, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(1)).log()


def test_logits_see_the_pixels_before_them_and_no_others() -> None:
    model, ids = stirred(AxialTransformer(**SIZE)), torch.randint(6, (1, 4, 5))
    before = model(ids).logits.flatten(1, 2)
    for place in range(20):
        changed = ids.flatten().clone()
        changed[place] += 1
        moved = (model(changed.view(1, 4, 5)).logits.flatten(1, 2) != before).any(-1)[0]
        assert not moved[: place + 1].any() and moved[place + 1 :].all(), f"pixel {place}"


def test_channels_see_all_of_the_channels_before_them() -> None:
    model, ids = stirred(AxialTransformer3d(**VOLUME)), torch.randint(6, (1, 3, 4, 3))
    before = model(ids)
    for channel in range(3):
        changed = ids.clone()
        changed[0, 1, 2, channel] += 1
        moved = (model(changed) != before).any(-1)[0]
        assert not moved[..., :channel].any() and moved[..., channel + 1 :].all()
        assert torch.equal(moved[..., channel].flatten(), torch.arange(12) > 6)


def test_one_channel_alone_has_the_logits_that_it_has_among_all() -> None:
    model, ids = stirred(AxialTransformer3d(**VOLUME)), torch.randint(7, (2, 3, 4, 3))
    one = AxialTransformer3d(**VOLUME, channel=1).double()
    one.load_state_dict(model.state_dict())
    torch.testing.assert_close(one(ids)[..., 0, :], model(ids)[..., 1, :])


@pytest.mark.parametrize("known", [0, 5, 7, 20])
def test_logits_of_a_drawn_image_are_those_of_the_model(known: int) -> None:
    model, sampler = pair(AxialTransformer, AxialSampler, SIZE, known=known)
    ids, condition, noise = torch.randint(7, (2, 4, 5)), torch.randn(2, 4, 5, 8).double(), gumbel(2, 4, 5, 7)
    drawn = sampler(ids, condition, noise)
    torch.testing.assert_close(drawn.logits, model(drawn.ids, condition).logits)
    assert torch.equal(drawn.ids.flatten(1)[:, :known], ids.flatten(1)[:, :known])
    assert torch.equal(drawn.ids.flatten(1)[:, known:], (drawn.logits + noise).argmax(-1).flatten(1)[:, known:])


def test_channels_are_drawn_one_after_another() -> None:
    model, sampler = pair(AxialTransformer3d, AxialSampler3d, VOLUME, known=6)
    ids, noise = torch.randint(7, (2, 3, 4, 3)), gumbel(2, 3, 4, 3, 7)
    drawn = sampler(ids, noise=noise)
    torch.testing.assert_close(drawn.logits, model(drawn.ids))
    assert torch.equal(drawn.ids.flatten(1, 2)[:, :6], ids.flatten(1, 2)[:, :6])
    assert torch.equal(drawn.ids.flatten(1, 2)[:, 6:], (drawn.logits + noise).argmax(-1).flatten(1, 2)[:, 6:])


def test_without_heat_the_likeliest_is_taken_and_without_noise_it_is_drawn_by_the_generator() -> None:
    _, cold = pair(AxialTransformer, AxialSampler, SIZE, temperature=0.0)
    nothing = torch.zeros(3, 4, 5, dtype=torch.int64)
    drawn = cold(nothing)
    assert torch.equal(drawn.ids, drawn.logits.argmax(-1)) and torch.equal(drawn.ids[0], drawn.ids[1])
    _, warm = pair(AxialTransformer, AxialSampler, SIZE)
    torch.manual_seed(3)
    one = warm(nothing).ids
    torch.manual_seed(3)
    assert torch.equal(warm(nothing).ids, one) and not torch.equal(one[0], one[1])


def test_draws_follow_the_logits() -> None:
    _, sampler = pair(AxialTransformer, AxialSampler, SIZE | {"height": 1, "width": 1})
    torch.manual_seed(0)
    drawn = sampler(torch.zeros(20000, 1, 1, dtype=torch.int64))
    shares = torch.bincount(drawn.ids.flatten(), minlength=7) / 20000
    torch.testing.assert_close(shares.double(), drawn.logits[0, 0, 0].softmax(-1), atol=0.015, rtol=0)


def test_a_fresh_model_adds_almost_nothing_and_finds_all_values_alike() -> None:
    logits = AxialTransformer(**SIZE)(torch.randint(7, (1, 4, 5))).logits
    torch.testing.assert_close(logits, torch.zeros_like(logits), atol=1e-3, rtol=0)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_an_axis_attends_as_sequences_do(axis: int) -> None:
    q, k, v = (torch.randn(2, 3, 4, 5, 2, 6).double() for _ in range(3))
    lines = [x.movedim(axis, -2).flatten(0, -3) for x in (q, k, v)]  # [B others H,L,D]
    for causal in (False, True):
        want = torch.nn.functional.scaled_dot_product_attention(*lines, is_causal=causal)
        got = foveate.axis_attention(q, k, v, axis=axis, causal=causal)
        torch.testing.assert_close(got.movedim(axis, -2).flatten(0, -3), want)


def test_new_rows_attend_to_those_before_as_in_decoding() -> None:
    q, k, v = (torch.randn(1, 5, 3, 2, 4).double() for _ in range(3))
    whole = foveate.axis_attention(q, k, v, axis=1, causal=True)
    torch.testing.assert_close(foveate.axis_attention(q[:, 3:], k, v, axis=1, causal=True), whole[:, 3:])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_either_memory_format_gives_the_same(memory_format: torch.memory_format) -> None:
    layer, x = foveate.nn.AxialAttention(dim=8, num_heads=2, dim_index=1).double(), torch.randn(1, 8, 5, 9).double()
    torch.testing.assert_close(layer(x.to(memory_format=memory_format)), layer(x.contiguous()))


def test_a_line_that_is_hidden_gets_nothing_but_the_bias() -> None:
    layer = foveate.nn.AxialAttention(dim=8, num_heads=2, num_dimensions=1).double()
    x, mask = torch.randn(2, 5, 8).double(), torch.tensor([[True] * 5, [False] * 5])
    out = layer(x, mask)
    torch.testing.assert_close(out[1], layer.state_dict()["axes.0.out.bias"].expand(5, -1))
    torch.testing.assert_close(out[:1], layer(x[:1]))


def test_what_does_not_fit_is_refused_by_name() -> None:
    x = torch.randn(1, 5, 4, 2, 3)
    with pytest.raises(ValueError, match=r"axis_attention: axis must be 1 to 2 for q \[1, 5, 4, 2, 3\], got 3"):
        foveate.axis_attention(x, x, x, axis=3)
    with pytest.raises(ValueError, match="axis_attention: q, k and v may differ along axis 1"):
        foveate.axis_attention(x, x[:, :, :3], x[:, :, :3], axis=1)
    with pytest.raises(ValueError, match="axial_attention: dim_index must not be 0"):
        foveate.nn.AxialAttention(dim=8, dim_index=0)
    with pytest.raises(ValueError, match=r"axial_attention: .*num_heads"):
        foveate.nn.AxialAttention(dim=9, num_heads=2)
    with pytest.raises(ValueError, match="axial_transformer: num_outer_layers must be even"):
        AxialTransformer(**SIZE | {"num_outer_layers": 3})
    with pytest.raises(ValueError, match=r"axial_sampler: known must be 0 to height \* width = 20, got 21"):
        AxialSampler(**SIZE, known=21)
    with pytest.raises(ValueError, match="axial_transformer: ids must be of height = 4 by width = 5"):
        AxialTransformer(**SIZE)(torch.zeros(1, 4, 4, dtype=torch.int64))


def test_what_a_reversible_stack_keeps_for_training_does_not_grow_with_depth() -> None:
    def kept(depth: int) -> int:
        layer = stirred(AxialImageTransformer(dim=6, depth=depth, num_heads=2))
        return kept_for_the_gradient(layer, torch.randn(2, 6, 5, 7, dtype=torch.float64))

    assert 0 < kept(1) == kept(4)
