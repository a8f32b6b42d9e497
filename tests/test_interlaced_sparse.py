"""What is peculiar to interlaced sparse self-attention."""

import pytest
import torch

import foveate

WIDTHS = {"in_channels": 6, "key_channels": 4, "value_channels": 5, "out_channels": 6}


@pytest.mark.parametrize(("H", "W"), [(6, 8), (5, 7), (1, 9), (2, 2)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_either_memory_format_gives_the_same(H: int, W: int, memory_format: torch.memory_format) -> None:
    block = foveate.nn.InterlacedSparseBlock(**WIDTHS, dh=2, dw=3).double().eval()
    x = torch.randn(1, 6, H, W).double()
    torch.testing.assert_close(block(x.to(memory_format=memory_format)), block(x))


def test_every_position_hears_of_every_other() -> None:
    torch.manual_seed(0)
    block = foveate.nn.InterlacedSparseBlock(**WIDTHS, dh=2, dw=3, negative_slope=0.1).double().eval()
    x = torch.randn(1, 6, 6, 6).double().requires_grad_()
    (gradient,) = torch.autograd.grad(block(x)[0, :, 1, 4].square().sum(), x)
    assert (gradient[0] != 0).any(0).all()


@pytest.mark.parametrize(("dh", "dw"), [(2, 3), (4, 4), (1, 5), (9, 9)])
def test_no_position_sees_a_later_one_where_it_is_causal(dh: int, dw: int) -> None:
    block = foveate.nn.InterlacedSparseBlock(**WIDTHS, dh=dh, dw=dw, causal=True).double().eval()
    x = torch.randn(1, 6, 5, 7).double()
    before = block(x).flatten(2)
    for place in range(1, 35):
        changed = x.flatten(2).clone()
        changed[..., place:] += 1
        assert torch.equal(block(changed.view_as(x)).flatten(2)[..., :place], before[..., :place])


def test_hidden_padding_is_as_if_it_were_not_there() -> None:
    seen, hidden = (foveate.nn.InterlacedSparseBlock(**WIDTHS, dh=8, dw=8, mask_padding=m).double().eval() for m in (False, True))
    hidden.load_state_dict(seen.state_dict())
    x = torch.randn(1, 6, 5, 6).double()  # one tile either way
    whole = foveate.nn.InterlacedSparseBlock(**WIDTHS, dh=5, dw=6).double().eval()
    whole.load_state_dict(seen.state_dict())
    torch.testing.assert_close(hidden(x), whole(x))
    assert not torch.allclose(seen(x), whole(x))


def test_positions_that_a_mask_hides_are_seen_by_none_but_themselves() -> None:
    block = foveate.nn.InterlacedSparseBlock(**WIDTHS, dh=2, dw=2, negative_slope=0.1).double().eval()
    x, mask = torch.randn(1, 6, 4, 4).double(), torch.ones(1, 4, 4, dtype=torch.bool)
    mask[0, 1, 2] = False
    other = x.clone()
    other[:, :, 1, 2] += 1
    moved = (block(x, mask) != block(other, mask)).any(1)
    assert moved[0, 1, 2] and not (moved & mask).any()
