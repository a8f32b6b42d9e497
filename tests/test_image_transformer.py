"""What is peculiar to the Image Transformer: its sets, the order of blocks, streams of images, what tensor2tensor's code does."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import foveate

Point = tuple[int, int]


def shown(run: Callable[[Tensor, Tensor, Tensor], Tensor], n: int) -> Tensor:
    """Which of n keys each of n queries sees, of a run that takes [1,1,n,D]."""
    q = torch.zeros(1, 1, n, n, dtype=torch.float64)
    return run(q, q, torch.eye(n, dtype=torch.float64)[None, None])[0, 0] > 1e-6


@pytest.mark.parametrize("n", [1, 4, 9, 17, 40])
@pytest.mark.parametrize(("block", "memory", "width"), [(4, None, 4), (5, 11, 3), (3, 0, 0), (6, 2, 13), (64, None, 64)])
def test_each_query_sees_the_memory_of_its_block(n: int, block: int, memory: int | None, width: int) -> None:
    before = block if memory is None else memory

    def run(causal: bool, **more: bool) -> Tensor:
        options = {"block_length": block, "memory_length": memory, "filter_width": width, "causal": causal, **more}
        return shown(lambda q, k, v: foveate.image_transformer_attention(q, k, v, **options), n)

    i, j = torch.arange(n)[:, None], torch.arange(n)
    start = i // block * block
    assert torch.equal(run(True), (j <= i) & (j >= start - before))
    assert torch.equal(run(False), (j >= start - width) & (j < start + block + width))
    shift = block if width % block == 0 else 0  # as tensor2tensor's local_attention_1d does
    assert torch.equal(run(False, shift_whole_blocks=True), (j >= start - width - shift) & (j < start + block + width - shift))


def order(Y: int, X: int, block: Point) -> list[Point]:
    """The positions of an image in the order of its blocks."""
    corners = itertools.product(range(0, Y, block[0]), range(0, X, block[1]))
    return [(y, x) for t, s in corners for y in range(t, min(Y, t + block[0])) for x in range(s, min(X, s + block[1]))]


def grid_shown(Y: int, X: int, block: Point, flange: Point, causal: bool) -> Tensor:
    """Entry by entry, in raster order."""
    turn = {point: p for p, point in enumerate(order(Y, X, block))}
    points = list(itertools.product(range(Y), range(X)))

    def sees(query: Point, key: Point) -> bool:
        t, s = (query[0] // block[0] * block[0], query[1] // block[1] * block[1])
        across = s - flange[1] <= key[1] < s + block[1] + flange[1]
        if not causal:
            return across and t - flange[0] <= key[0] < t + block[0] + flange[0]
        in_band = t <= key[0] < t + block[0]
        own = in_band and s <= key[1] < s + block[1] and turn[key] <= turn[query]
        return own or (in_band and s - flange[1] <= key[1] < s) or (across and t - flange[0] <= key[0] < t)

    return torch.tensor([[sees(query, key) for key in points] for query in points])


GRIDS = [((6, 8), (3, 4), (2, 3)), ((7, 9), (3, 2), (1, 4)), ((5, 3), (8, 16), (8, 16)), ((4, 7), (2, 3), (0, 0)), ((1, 10), (2, 4), (3, 9))]


@pytest.mark.parametrize(("image", "block", "flange"), GRIDS)
@pytest.mark.parametrize("causal", [True, False])
def test_each_query_sees_the_flange_of_its_block(image: Point, block: Point, flange: Point, causal: bool) -> None:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        given = (x.unflatten(2, image) for x in (q, k, v))
        return foveate.image_transformer_grid_attention(*given, query_shape=block, memory_flange=flange, causal=causal).flatten(2, 3)

    assert torch.equal(shown(run, image[0] * image[1]), grid_shown(*image, block, flange, causal))


@pytest.mark.parametrize(("image", "block", "flange"), GRIDS)
@pytest.mark.parametrize("padding", [False, True])
def test_an_image_streams_block_by_block(image: Point, block: Point, flange: Point, padding: bool) -> None:
    torch.manual_seed(0)
    options = {"query_shape": block, "memory_flange": flange, "padding_takes_part": padding, "image_shape": image}
    q, k, v = torch.randn(3, 2, 2, *image, 4, dtype=torch.float64)
    want = foveate.image_transformer_grid_attention(q, k, v, **options)
    y, x = torch.tensor(order(*image, block)).T
    for sizes in ([1] * len(y), [5, 1, 7, 2, len(y)]):
        state, outputs = None, []
        for part in torch.arange(len(y)).tensor_split(list(itertools.accumulate(sizes))):
            if len(part):
                chunk = (a[:, :, None, y[part], x[part]] for a in (q, k, v))
                out, state = foveate.image_transformer_grid_attention_step(*chunk, state=state, **options)
                outputs.append(out)
        torch.testing.assert_close(torch.cat(outputs, 3)[:, :, 0], want[:, :, y, x])
    assert state is not None
    assert state[0].shape[2] <= (-(-flange[0] // block[0]) + 1) * block[0] * image[1]


def test_a_layer_streams_an_image() -> None:
    torch.manual_seed(0)
    image, block = (5, 7), (2, 3)
    layer = foveate.nn.ImageTransformerLayer(
        embed_dim=8, num_heads=2, ff_dim=8, image_shape=image, query_shape=block, memory_flange=(2, 2)
    ).double().eval()  # fmt: skip
    x = torch.randn(2, 35, 8, dtype=torch.float64)
    turns = torch.tensor([y * image[1] + s for y, s in order(*image, block)])
    state, outputs = None, []
    for part in turns.split(4):
        out, state = layer.step(x[:, part], state=state)
        outputs.append(out)
    torch.testing.assert_close(torch.cat(outputs, 1), layer(x)[:, turns])
    # A raster that ends inside a row is the image cut short: nothing there is seen.
    torch.testing.assert_close(layer(x[:, :30])[:, :28], layer(x)[:, :28])


def test_padding_that_takes_part_is_keys_of_zeros() -> None:
    torch.manual_seed(0)
    image, options = (5, 7), {"query_shape": (2, 3), "memory_flange": (1, 2)}
    q, k, v = torch.randn(3, 2, 2, *image, 4, dtype=torch.float64)
    wide = torch.ones(2, 6, 9, dtype=torch.bool)
    wide[:, :, 7:] = wide[:, 5:] = False
    filled = [torch.nn.functional.pad(x, (0, 0, 0, 2, 0, 1)) for x in (q, k, v)]
    out = foveate.image_transformer_grid_attention(q, k, v, padding_takes_part=True, **options)
    theirs = foveate.image_transformer_grid_attention(*filled, **options)  # no flange reaches the columns at the right but their own block
    torch.testing.assert_close(out[:, :, :2], theirs[:, :, :2, :7])
    ours = foveate.image_transformer_grid_attention(*filled, key_mask=wide, **options)
    torch.testing.assert_close(foveate.image_transformer_grid_attention(q, k, v, **options), ours[:, :, :5, :7])
    assert not torch.allclose(out, ours[:, :, :5, :7])


def test_padding_that_takes_part_beside_nothing_else() -> None:
    q = torch.randn(1, 1, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    hidden = torch.zeros(1, 3, 4, dtype=torch.bool)
    out = foveate.image_transformer_grid_attention(q, q, q, key_mask=hidden, query_shape=(2, 3), memory_flange=(1, 1), padding_takes_part=True)
    assert (out == 0).all()
    assert (torch.autograd.grad(out.sum(), q)[0] == 0).all()


def test_a_step_needs_the_shape_of_the_image() -> None:
    q = torch.randn(1, 1, 1, 4, 2)
    with pytest.raises(ValueError, match="image_shape must be given"):
        foveate.image_transformer_grid_attention_step(q, q, q)
    with pytest.raises(ValueError, match="causal must be True"):
        foveate.image_transformer_grid_attention_step(q, q, q, causal=False, image_shape=(4, 4))
    with pytest.raises(ValueError, match=r"q must be \[B,H,1,X,D\]"):
        foveate.image_transformer_grid_attention_step(*[q.transpose(2, 3)] * 3, image_shape=(4, 4))
