"""What is peculiar to the light non-local block."""

import pytest
import torch

import foveate


@pytest.mark.parametrize(("channels", "side"), [(48, 3), (8, 20)])  # pairs first, channels first
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_product_is_the_same_in_either_order(channels: int, side: int, memory_format: torch.memory_format) -> None:
    block = foveate.nn.LightNonLocalBlock(in_channels=channels, ratio=0.5, stride=2).double().eval()
    torch.nn.init.normal_(block.norm.weight)
    x = torch.randn(2, channels, side, side + 1).double()
    few, thin = x[:, : channels // 2].flatten(2), x[:, :, ::2, ::2].flatten(2)
    f = torch.einsum("bcn,bcm,bdm->bdn", few, thin[:, : channels // 2], thin).view_as(x) / (side * (side + 1))
    f = torch.nn.functional.conv2d(f, block.depthwise.weight, padding=1, groups=channels)
    want = x + f / (1 + 1e-3) ** 0.5 * block.norm.weight.view(-1, 1, 1)
    torch.testing.assert_close(block(x.to(memory_format=memory_format)), want)


def test_fresh_blocks_are_the_identity() -> None:
    x = torch.randn(2, 8, 5, 6)
    for training in (False, True):
        assert torch.equal(foveate.nn.LightNonLocalBlock(in_channels=8).train(training)(x), x)
