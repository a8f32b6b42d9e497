"""Attention maps and their pictures."""

import base64
import io

import torch
import torch.nn.functional as F
from PIL import Image

from foveate.compare import maps


def test_what_a_pixel_reads_is_where_its_output_comes_from() -> None:
    def call(x: torch.Tensor) -> torch.Tensor:  # each pixel reads its left neighbour twice as much as its upper one
        return x + 2 * x.roll(1, 3) + x.roll(1, 2)

    found = maps.reading_map(call, torch.randn(1, 3, 4, 5), (2, 3), seed=0)
    assert found.nonzero().tolist() == [[1, 3], [2, 2]]
    torch.testing.assert_close(found[2, 2], 2 * found[1, 3])


def test_closed_gates_are_opened_and_other_parameters_stay() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.nn.init.zeros_(layer[1].weight)
    kept = layer[0].weight.clone()
    maps.opened(layer)
    assert (layer[1].weight == 1).all() and torch.equal(layer[0].weight, kept)


def test_a_photo_becomes_a_small_grey_picture() -> None:
    picture = Image.open(io.BytesIO(base64.b64decode(maps.jpeg_uri(torch.rand(3, 40, 60), 30).partition(",")[2])))
    assert (picture.format, picture.mode, picture.size) == ("JPEG", "L", (30, 20))


def test_map_of_exact_attention_is_its_softmax_whatever_the_width() -> None:
    torch.manual_seed(0)
    for n, width in [(10, 4), (8, 8), (5, 16)]:
        q, k = torch.randn(2, 3, n, width), torch.randn(2, 3, n, width)
        weights = maps.attention_map(F.scaled_dot_product_attention, q, k, seed=0)
        torch.testing.assert_close(weights, (q[0] @ k[0].mT / width**0.5).softmax(-1))


def test_random_mechanisms_draw_the_same_for_every_block() -> None:
    def random_mean(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.rand(q.shape[2], k.shape[2]).softmax(-1) @ v

    q = torch.zeros(1, 1, 9, 2)
    torch.testing.assert_close(maps.attention_map(random_mean, q, q, seed=3).sum(-1), torch.ones(1, 9))


def test_shades_keep_the_sign_and_clip_at_the_brightest() -> None:
    shades = maps.shades(torch.tensor([[-2.0, 0.0, 0.25, 5.0]]), brightest=1.0)
    assert shades.tolist() == [[1, maps.ZERO, maps.ZERO + 64, 255]]


def test_influence_is_how_much_an_output_changes_with_an_input() -> None:
    weights = torch.tensor([[1.0, 0.0, 2.0], [0.0, -3.0, 0.0], [0.5, 0.0, 0.0]], dtype=torch.float64)
    found = maps.influence_map(lambda x: weights @ x, torch.randn(1, 3, 5, dtype=torch.float64), seed=0)
    torch.testing.assert_close(found / found[0, 0], weights.abs())


def test_picture_has_one_enlarged_cell_per_weight() -> None:
    picture = Image.open(io.BytesIO(maps.png(torch.tensor([[0, 128], [255, 128]], dtype=torch.uint8), enlarge=3)))
    assert picture.size == (6, 6)
    assert picture.convert("RGB").getpixel((0, 5)) == maps.palette()[255]


def test_palette_has_a_colour_for_every_index() -> None:
    assert len(maps.palette()) == 256
    assert all(0 <= level <= 255 for colour in maps.palette() for level in colour)
