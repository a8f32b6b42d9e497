"""What is peculiar to fractal Tanimoto attention."""

import pytest
import torch

import foveate

AXES = {"positions": (2, 3), "channels": (1,), "all": (1, 2, 3)}


@pytest.mark.parametrize("over", AXES)
@pytest.mark.parametrize("depth", [0, 1, 4])
def test_the_similarity_is_that_of_the_paper(over: str, depth: int) -> None:
    p, q = torch.rand(2, 2, 3, 4, 5).double()

    def tanimoto(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        ab, squares = ((x).sum(AXES[over], True) for x in (a * b, a * a + b * b))
        terms = [(ab + 1e-5) / (2**d * squares - (2 ** (d + 1) - 1) * ab + 1e-5) for d in range(max(depth, 1))]
        return torch.stack(terms).mean(0)

    want = (tanimoto(p, q) + tanimoto(1 - p, 1 - q)) / 2
    torch.testing.assert_close(foveate.tanimoto_similarity(p, q, over=over, depth=depth), want)


@pytest.mark.parametrize("over", AXES)
def test_equal_maps_are_as_similar_as_can_be_and_depth_sharpens(over: str) -> None:
    p, q = torch.rand(2, 2, 3, 4, 5).double()
    one = foveate.tanimoto_similarity(p, p, over=over)
    torch.testing.assert_close(one, torch.ones_like(one))
    shallow, deep = (foveate.tanimoto_similarity(p, q, over=over, depth=d) for d in (1, 5))
    assert (deep < shallow).all()


@pytest.mark.parametrize("norm", ["batch", "group", "instance", "layer"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_either_memory_format_gives_the_same(norm: str, memory_format: torch.memory_format) -> None:
    layer, x = foveate.nn.FractalAttention(channels=8, norm=norm).double(), torch.randn(1, 8, 5, 7).double()
    torch.testing.assert_close(layer(x.to(memory_format=memory_format)), layer(x))


def test_a_fresh_unit_is_a_residual_block_and_a_fresh_fusion_joins_the_maps_as_they_are() -> None:
    unit, x = foveate.nn.FractalResidualUnit(channels=8).eval(), torch.randn(2, 8, 5, 6)
    eps = (1 + 1e-5) ** 0.5
    hidden = torch.nn.functional.conv2d((x / eps).relu(), unit.conv1.weight, padding=1)
    want = x + torch.nn.functional.conv2d((hidden / eps).relu(), unit.conv2.weight, unit.conv2.bias, padding=1)
    torch.testing.assert_close(unit(x), want)
    fusion = foveate.nn.FractalFusion(channels=8).eval()
    joined = torch.nn.functional.conv2d(torch.cat([x, -x], 1), fusion.fuse.conv.weight, padding=1)
    torch.testing.assert_close(fusion(x, -x), (joined / eps).relu())


def test_statistics_follow_the_batch_in_training_only() -> None:
    layer, x = foveate.nn.FractalAttention(channels=4), torch.randn(2, 4, 3, 5) + 1
    before = {n: b.clone() for n, b in layer.named_buffers()}
    layer.eval()(x)
    assert all(torch.equal(b, before[n]) for n, b in layer.named_buffers())
    layer.train()(x)
    assert not any(torch.equal(b, before[n]) for n, b in layer.named_buffers())
