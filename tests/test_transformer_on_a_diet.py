"""What is peculiar to the Transformer on a Diet: its distances, what a stream keeps, weight dropout, positions."""

import math

import pytest
import torch
from torch import Tensor

import foveate


def distances(n: int = 70, **options: object) -> set[int]:
    """Which distances the last of n queries sees."""
    q = torch.zeros(1, 1, n, 1, dtype=torch.float64)
    values = torch.eye(n, dtype=torch.float64)[None, None]
    return {n - 1 - j for j in (foveate.diet_attention(q, q, values, **options)[0, 0, -1] > 0).nonzero().flatten().tolist()}


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({"pattern": "full"}, set(range(70))),
        ({"layer": 2}, set(range(16))),
        ({"layer": 1, "first_window_size": 3, "window_size_multiplier": 1.5}, set(range(4))),  # int(4.5)
        ({"layer": 3, "first_window_size": 3, "window_size_multiplier": 0.5}, set()),  # int(0.375)
        ({"layer": 90}, set(range(70))),
        ({"first_window_size": -1}, set(range(70))),
        ({"pattern": "dilated"}, {0, 1, 2}),
        ({"pattern": "dilated", "layer": 3, "kernel_size": 4, "d_base": 3}, {0, 27, 54}),
        ({"pattern": "dilated", "layer": 5, "kernel_size": 1}, {0}),
        ({"pattern": "dilated", "layer": 90}, {0}),
        ({"pattern": "dilated_mem", "layer": 2}, {0, 1, 2, 4, 8}),
        ({"pattern": "dilated_mem", "layer": 4, "d_base": 1}, {0, 1, 2}),
    ],
    ids=str,
)
def test_each_layer_sees_its_distances(options: dict[str, object], want: set[int]) -> None:
    assert distances(**options) == want


@pytest.mark.parametrize(
    ("options", "most"),
    [({"layer": 1}, 7), ({"pattern": "dilated", "layer": 2}, 8), ({"pattern": "dilated_mem", "layer": 1}, 4), ({"pattern": "full"}, 40)],
    ids=str,
)
def test_a_stream_keeps_what_later_queries_see(options: dict[str, object], most: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 40, 4, dtype=torch.float64)
    keep = torch.rand(2, 40) < 0.7
    state, outputs = None, []
    for part in torch.arange(40).split([1, 7, 1, 12, 19]):
        seen = keep[:, : int(part[-1]) + 1]
        out, state = foveate.diet_attention_step(q[:, :, part], k[:, :, part], v[:, :, part], key_mask=seen, state=state, **options)
        outputs.append(out)
    assert state is not None
    assert state[0].shape[2] == most
    torch.testing.assert_close(torch.cat(outputs, 2), foveate.diet_attention(q, k, v, key_mask=keep, **options))


def test_weight_dropout_drops_a_key_for_all_queries_of_a_head() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 9, 4, dtype=torch.float64)
    keep = torch.rand(1, 2, 9) < 0.5
    scores = (q @ k.mT / 2).masked_fill(torch.ones(9, 9).triu(1).bool(), -math.inf)
    want = (scores.softmax(-1) * keep[:, :, None] / 0.6) @ v
    torch.testing.assert_close(foveate.diet_attention(q, k, v, weight_keep=keep, pattern="full", weight_dropout=0.4), want)


def encoder(**options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return foveate.nn.DietEncoder(embed_dim=6, num_heads=2, num_layers=2, ff_dim=8, **options)


def test_positions_are_paired_as_usual_or_one_by_one_as_in_the_authors_code() -> None:
    def table(positions: str) -> Tensor:
        layer = encoder(positions=positions).double()
        with torch.no_grad():  # what is left of the layers is the sum
            for p in layer.parameters():
                p.zero_()
        return layer(torch.zeros(1, 50, 6, dtype=torch.float64))[0]

    for positions, power in (("paired", lambda c: c // 2 * 2), ("unpaired", lambda c: 2 * c)):
        want = [[(math.cos if c % 2 else math.sin)(p / 10000 ** (power(c) / 6)) for c in range(6)] for p in range(50)]
        torch.testing.assert_close(table(positions), torch.tensor(want, dtype=torch.float64))


def test_padding_goes_on_through_the_sums_and_leaves_the_rest() -> None:
    layer, x = encoder().double(), torch.randn(2, 9, 6, dtype=torch.float64)
    whole, some = layer(x), layer(x, valid_length=torch.tensor([4, 0]))
    torch.testing.assert_close(some[0, :4], whole[0, :4])
    assert not torch.allclose(some[0, 4:], whole[0, 4:])
    assert some.isfinite().all()


def test_dropout_is_drawn_in_training_only() -> None:
    x = torch.randn(1, 9, 6)
    for options in ({"dropout": 0.5}, {"weight_dropout": 0.5}):
        layer = encoder(**options)
        assert not torch.equal(layer(x), layer(x))
        layer.eval()
        assert torch.equal(layer(x), layer(x))
