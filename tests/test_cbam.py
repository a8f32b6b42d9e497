"""What is peculiar to CBAM and BAM."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import foveate


def test_a_fresh_spatial_gate_halves() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 5, 6)
    whole = foveate.nn.CBAM(gate_channels=8, reduction_ratio=2)
    channel = foveate.nn.CBAM(gate_channels=8, reduction_ratio=2, no_spatial=True)
    channel.load_state_dict({n: p for n, p in whole.state_dict().items() if n.startswith("channel.")})
    torch.testing.assert_close(whole(x), channel(x) / 2)


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
def test_the_kernel_may_be_larger_than_the_map(kernel_size: int) -> None:
    gate = foveate.nn.CBAM(gate_channels=4, reduction_ratio=2, kernel_size=kernel_size).eval()
    assert gate.spatial.conv.weight.shape == (1, 2, kernel_size, kernel_size)
    assert gate(torch.randn(1, 4, 2, 1)).shape == (1, 4, 2, 1)


def test_lp_of_a_channel_of_zeros_has_no_gradient() -> None:
    gate = foveate.nn.CBAM(gate_channels=4, reduction_ratio=2, pools="lp", no_spatial=True)
    x = torch.randn(1, 4, 3, 3)
    x[:, 1] = 0
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(gate(x).square().sum(), x)
    assert gradient.isfinite().all()
    assert (gradient[:, 1] == 0).all()


def test_lse_of_large_values_is_finite() -> None:
    gate = foveate.nn.CBAM(gate_channels=4, reduction_ratio=2, pools="lse", no_spatial=True)
    assert gate(1e4 * torch.randn(1, 4, 3, 3)).isfinite().all()


def test_equal_maxima_send_their_gradient_to_the_first() -> None:
    gate = foveate.nn.CBAM(gate_channels=2, reduction_ratio=1, pools="max", no_spatial=True, dtype=torch.float64)
    x = torch.ones(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(gate(x).sum(), x)
    flat = gradient.flatten(2)
    torch.testing.assert_close(flat[..., 1], flat[..., 3])
    assert not torch.equal(flat[..., 0], flat[..., 1])


@pytest.mark.parametrize("pools", ["", "avg+", "avg,max", "mean", "+max"])
def test_unknown_pools_are_refused(pools: str) -> None:
    with pytest.raises(ValueError, match="cbam: pools must join avg, max, lp, lse"):
        foveate.nn.CBAM(gate_channels=32, pools=pools)


@pytest.mark.parametrize("form", ["CBAM", "BAM"])
def test_impossible_options_are_refused(form: str) -> None:
    layer = getattr(foveate.nn, form)
    with pytest.raises(ValueError, match=r"reduction_ratio must lie between 1 and gate_channels = 8, got 16"):
        layer(gate_channels=8)
    with pytest.raises(ValueError, match=r"x must be \[B,C,H,W\] with C = gate_channels = 8, got \[1, 4, 3, 3\]"):
        layer(gate_channels=8, reduction_ratio=2)(torch.randn(1, 4, 3, 3))
    with pytest.raises(ValueError, match="x must have positions to pool over"):
        layer(gate_channels=8, reduction_ratio=2)(torch.randn(1, 8, 0, 3))


@pytest.mark.parametrize(("height", "width"), [(3, 7), (7, 3), (4, 9), (1, 5)])
def test_bam_pools_every_position_of_a_map_that_is_not_square(height: int, width: int) -> None:
    torch.manual_seed(0)
    gate = foveate.nn.BAM(gate_channels=4, reduction_ratio=2, dtype=torch.float64).eval()
    x = torch.randn(2, 4, height, width, dtype=torch.float64)

    def normalised(y: Tensor, norm: torch.nn.Module) -> Tensor:
        return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias).relu()

    first = gate.channel.hidden.get_submodule("0")
    z = normalised(F.linear(x.sum((2, 3)) / (height * width), first.linear.weight, first.linear.bias), first.norm)
    z = F.linear(z, gate.channel.out.weight, gate.channel.out.bias)
    t = x
    for i, layer in enumerate(gate.spatial.hidden.children()):
        around = 4 if i else 0
        t = normalised(F.conv2d(t, layer.conv.weight, layer.conv.bias, padding=around, dilation=max(1, around)), layer.norm)
    t = F.conv2d(t, gate.spatial.out.weight, gate.spatial.out.bias)
    torch.testing.assert_close(gate(x), x * (1 + torch.sigmoid(z[:, :, None, None] * t)))


@pytest.mark.parametrize("form", ["CBAM", "BAM"])
def test_a_padded_map_is_as_the_map_alone(form: str) -> None:
    torch.manual_seed(0)
    options = {"pools": "avg+max+lp+lse"} if form == "CBAM" else {"dilation_val": 2}
    gate = getattr(foveate.nn, form)(gate_channels=4, reduction_ratio=2, **options, dtype=torch.float64).eval()
    with torch.no_grad():
        for p in gate.parameters():
            p.normal_()
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    padded = F.pad(x, (0, 3, 0, 2), value=7.0)
    mask = F.pad(torch.ones(2, 5, 6, dtype=torch.bool), (0, 3, 0, 2))
    torch.testing.assert_close(gate(padded, mask)[..., :5, :6], gate(x))
    assert gate(padded, torch.zeros_like(mask)).isfinite().all()
