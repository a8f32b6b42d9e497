"""The gradient of batch normalisation where libtorch's own is wrong on a CPU: one sample, and a gradient that arrives channels-last with a
degenerate batch stride, as it does behind flatten, transpose, matmul."""

import pytest
import torch
from torch import Tensor

import foveate

CHANNELS = 4


def loss(y: Tensor) -> Tensor:
    """A loss whose gradient with respect to y [B,C,H,W] has the awkward order."""
    weights = torch.linspace(-1, 1, 2 * CHANNELS, dtype=y.dtype).view(CHANNELS, 2)
    return (y.flatten(2).transpose(1, 2) @ weights).square().sum()


def normalised(x: Tensor, weight: Tensor, bias: Tensor, training: bool) -> Tensor:
    """Batch normalisation written out; the running statistics are the initial ones."""
    mean, var = x.new_zeros(1), x.new_ones(1)
    if training:
        mean, var = x.mean([0, 2, 3], keepdim=True), x.var([0, 2, 3], unbiased=False, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)


@pytest.fixture
def tensors() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, CHANNELS, 4, 5), (CHANNELS,), (CHANNELS,))
    x, weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes)
    return x, weight, bias


@pytest.mark.xfail(strict=True, reason="libtorch 2.13 differentiates this wrongly; once it does not, layers::BatchNorm needs no detour")
@pytest.mark.parametrize("training", [True, False])
def test_torch_differentiates_it_rightly(tensors: tuple[Tensor, Tensor, Tensor], training: bool) -> None:
    x, weight, bias = tensors
    statistics = x.new_zeros(CHANNELS), x.new_ones(CHANNELS)
    got = torch.autograd.grad(loss(torch.nn.functional.batch_norm(x, *statistics, weight, bias, training)), tensors)
    want = torch.autograd.grad(loss(normalised(x, weight, bias, training)), tensors)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("training", [True, False])
def test_the_layer_differentiates_it_rightly(tensors: tuple[Tensor, Tensor, Tensor], training: bool) -> None:
    x = tensors[0]
    torch.manual_seed(1)
    # The block normalises before it adds x; the same block without normalisation, its other weights shared, tells what it normalises.
    block = foveate.nn.NonLocalBlock(in_channels=CHANNELS, mode="dot_product", dtype=torch.float64).train(training)
    plain = foveate.nn.NonLocalBlock(in_channels=CHANNELS, mode="dot_product", bn=False, dtype=torch.float64)
    with torch.no_grad():
        block.norm.weight.copy_(tensors[1])
    shared = {name: p for name, p in block.named_parameters() if not name.startswith("norm.")}
    leaves = [x, *block.parameters()]
    got = torch.autograd.grad(loss(block(x)), leaves)
    z = torch.func.functional_call(plain, shared, (x,)) - x
    want = torch.autograd.grad(loss(normalised(z, block.norm.weight, block.norm.bias, training) + x), leaves)
    for name, a, b in zip(["x", *dict(block.named_parameters())], got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def test_training_on_one_value_per_channel_is_refused() -> None:
    block = foveate.nn.NonLocalBlock(in_channels=2, sub_sample=False)
    x = torch.randn(1, 2, 1, 1)
    with pytest.raises(ValueError, match="more than one value per channel, got \\[1, 2, 1, 1\\]"):
        block(x)
    assert torch.equal(block.eval()(x), x)
