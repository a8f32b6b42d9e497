"""What is peculiar to the multi-scale Transformer: the past is covered once, models of any length, streams that keep little."""

import pytest
import torch
from torch import Tensor

import foveate

SCALES = [([1, 2, 8], [2, 2]), ([1, 4], [1]), ([1], []), ([1, 3, 6, 24], [1, 2, 1]), ([1, 4, 16], [4, 4])]


def weights(n: int, scales: list[int], windows: list[int], log_count: bool = False) -> Tensor:
    """How much of each value each query takes where all scores are equal: [n,n]"""
    q = torch.zeros(1, 1, n, 1, dtype=torch.float64)
    values = torch.eye(n, dtype=torch.float64)[None, None]
    return foveate.retina_attention(q, q, values, scales=scales, windows=windows, log_count=log_count)[0, 0]


@pytest.mark.parametrize(("scales", "windows"), SCALES)
@pytest.mark.parametrize("n", [1, 2, 5, 29, 65])
def test_the_past_is_covered_once_and_nothing_else(scales: list[int], windows: list[int], n: int) -> None:
    counted = weights(n, scales, windows, log_count=True)
    torch.testing.assert_close(counted, torch.ones(n, n, dtype=torch.float64).tril() / torch.arange(1.0, n + 1).double()[:, None])
    slots = weights(n, scales, windows)
    for i in range(n):
        high, want = i + 1, torch.zeros(n, dtype=torch.float64)
        for k, size in enumerate(scales):
            low = scales[k + 1] * max(0, high // scales[k + 1] - windows[k]) if k + 1 < len(scales) else 0
            want[low:high] = 1 / size  # each slot weighs as one key
            high = low
        torch.testing.assert_close(slots[i], want / want.sum())


@pytest.mark.parametrize(("scales", "windows"), SCALES)
def test_a_stream_keeps_what_is_still_seen(scales: list[int], windows: list[int]) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 130, 4, dtype=torch.float64)
    state, outputs = None, []
    for part in torch.arange(130).split([1, 1, 1, 40, 2, 33, 1, 51]):
        out, state = foveate.retina_attention_step(q[:, :, part], k[:, :, part], v[:, :, part], state=state, scales=scales, windows=windows)
        outputs.append(out)
        near = 0  # positions of this scale and finer ones
        for s, keys in enumerate(state[:-2:2]):
            near += windows[s] * scales[s + 1]
            assert keys.shape[2] <= (near + scales[s + 1]) // scales[s]
        assert state[-2].shape[2] == (part[-1] + 1) // scales[-1]
    torch.testing.assert_close(torch.cat(outputs, 2), foveate.retina_attention(q, k, v, scales=scales, windows=windows))


def model(name: str, aggregation: str) -> torch.nn.Module:
    torch.manual_seed(1)
    more = {"local_window": 3} if name == "MultiScaleBottomUp" else {}
    made = getattr(foveate.nn, name)(embed_dim=8, num_heads=2, scales=[1, 2, 6], layers=[1, 2, 1], aggregation=aggregation, **more)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return made.double()


@pytest.mark.parametrize("name", ["MultiScaleTopDown", "MultiScaleBottomUp"])
@pytest.mark.parametrize("aggregation", ["mean", "conv"])
def test_a_short_sequence_is_the_start_of_a_long_one(name: str, aggregation: str) -> None:
    layer, x = model(name, aggregation), torch.randn(2, 20, 8, dtype=torch.float64)
    want = layer(x)
    for n in range(1, 20):
        torch.testing.assert_close(layer(x[:, :n]), want[:, :n])


@pytest.mark.parametrize("name", ["MultiScaleTopDown", "MultiScaleBottomUp"])
def test_coarse_scales_are_heard_once_their_slots_are_complete(name: str) -> None:
    layer = model(name, "mean")
    x = torch.randn(1, 14, 8, dtype=torch.float64, requires_grad=True)
    far = torch.autograd.grad(layer(x)[0, 11].sum(), x)[0][0]  # position 11 completes slot 1 of scale 6
    assert (far[:12].abs().sum(1) > 0).all()
    assert (far[12:] == 0).all()


def test_training_starts_from_the_plain_model() -> None:
    torch.manual_seed(0)
    layer, x = foveate.nn.MultiScaleTopDown(embed_dim=8, num_heads=2, scales=[1, 4], layers=[1, 3]), torch.randn(2, 9, 8)
    plain = foveate.nn.MultiScaleTopDown(embed_dim=8, num_heads=2, scales=[1], layers=[1])
    plain.load_state_dict({n: p for n, p in layer.state_dict().items() if n in plain.state_dict()})
    torch.testing.assert_close(layer(x), plain(x))


def test_impossible_scales_are_refused() -> None:
    q = torch.randn(1, 1, 4, 2)
    for scales in ([], [2, 4], [1, 4, 6], [1, 4, 4]):
        with pytest.raises(ValueError, match="scales must begin with 1, grow, and each divide the next"):
            foveate.retina_attention(q, q, q, scales=scales, windows=[1] * max(0, len(scales) - 1))
    with pytest.raises(ValueError, match="windows must be positive, one fewer than scales"):
        foveate.retina_attention(q, q, q, scales=[1, 4], windows=[])
    with pytest.raises(ValueError, match="layers must be a count for each of the 3 scales"):
        foveate.nn.MultiScaleTopDown(embed_dim=8, num_heads=2, layers=[1])
