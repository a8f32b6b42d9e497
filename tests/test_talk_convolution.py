"""TaLK convolution: what is peculiar to it: its divisor, its dropout, its state, its padding."""

import torch

import foveate
from foveate import nn


def sequence(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_constant_stays_what_it_is_where_windows_are_divided_by_their_length() -> None:
    x, offsets = torch.ones(1, 30, 4, dtype=torch.float64), torch.rand(1, 30, 2, dtype=torch.float64)
    out = foveate.window_sum(x, offsets, 1 - offsets, max_left=9, max_right=4, divisor="length")
    torch.testing.assert_close(out, x)
    whole = foveate.window_sum(x, torch.ones_like(offsets), torch.ones_like(offsets), max_left=2, max_right=3)
    torch.testing.assert_close(whole[:, 2:-3], x[:, 2:-3])
    assert (whole[:, :2] < 1).all() and (whole[:, -3:] < 1).all()  # a window that is cut is not divided by less


def test_a_side_that_is_dropped_ends_at_its_token_and_the_others_reach_further() -> None:
    conv = nn.TalkConvolution(hid_dim=4, num_heads=2, max_left=3, offsets_dropout=0.5, divisor="one").double().eval()
    x = sequence(1, 20, 4)
    nobody = torch.zeros(1, 20, 4, dtype=torch.bool)
    torch.testing.assert_close(conv(x, offset_keep=nobody), x)
    offsets = torch.sigmoid(torch.nn.functional.linear(x, conv.offsets.weight, conv.offsets.bias)) / 0.5
    want = foveate.window_sum(x, offsets[..., :2], offsets[..., 2:], max_left=3, divisor="one")
    torch.testing.assert_close(conv(x, offset_keep=~nobody), want)


def test_windows_that_dropout_stretches_stream_too() -> None:
    conv = nn.TalkConvolution(hid_dim=4, num_heads=2, max_left=4, causal=True, offsets_dropout=0.5).double().eval()
    with torch.no_grad():
        conv.offsets.bias.fill_(4)  # windows as long as they can be
    x, keep = sequence(2, 30, 4), torch.rand(2, 30, 2) < 0.5
    state, outputs = None, []
    for t in range(30):
        out, state = conv.step(x[:, t : t + 1], offset_keep=keep[:, t : t + 1], state=state)
        outputs.append(out)
        assert state[0].shape == (2, min(t + 1, 9), 4)  # twice as far, and no more than a window reaches
    torch.testing.assert_close(torch.cat(outputs, 1), conv(x, offset_keep=keep))


def test_the_state_does_not_grow() -> None:
    layer = nn.TalkConvolutionLayer(embed_dim=8, ffn_dim=8, num_heads=2, max_left=3, causal=True).eval()
    state = None
    for _ in range(9):
        _, state = layer.step(torch.randn(1, 2, 8), state=state)
    assert [s.shape for s in state] == [(1, 3, 8)]


def test_padding_is_zeros_to_its_neighbours() -> None:
    layer = nn.TalkConvolutionLayer(embed_dim=8, ffn_dim=8, num_heads=2, max_left=3).double().eval()
    x, mask = sequence(1, 12, 8), torch.arange(12)[None] < 9
    other = torch.where(mask.unsqueeze(-1), x, 7.0)
    torch.testing.assert_close(layer(x, key_mask=mask)[:, :9], layer(other, key_mask=mask)[:, :9], rtol=0, atol=0)
    assert not torch.equal(layer(x, key_mask=mask)[:, 8], layer(x)[:, 8])


def test_a_window_is_learned() -> None:
    torch.manual_seed(0)
    conv = nn.TalkConvolution(hid_dim=4, num_heads=1, max_left=8, causal=True, divisor="one")
    x = torch.randn(8, 40, 4)
    want = foveate.window_sum(x, torch.full((8, 40, 1), 2.5 / 8), max_left=8, causal=True, divisor="one")
    optimiser = torch.optim.Adam(conv.parameters(), lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        loss = (conv(x) - want).square().mean()
        loss.backward()
        optimiser.step()
    assert abs(8 * conv.offsets.bias.sigmoid().item() - 2.5) < 0.3
