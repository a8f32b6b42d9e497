"""What is peculiar to ETC: labels of pairs, masks of pieces, neighbourhoods wider than a block or than the sequence."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate

B, G, E, H, V = 2, 3, 8, 2, 9


def streams(n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(B, n, E, dtype=torch.float64), torch.randn(B, G, E, dtype=torch.float64)


def layer(radius: int, **options: Any) -> Any:
    torch.manual_seed(radius)
    made = foveate.nn.GlobalLocalAttention(embed_dim=E, num_heads=H, local_radius=radius, dtype=torch.float64, **options)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made


def pieces(n: int, radius: int, labels: bool, masks: bool) -> dict[str, Tensor]:
    shapes = {"l2l": (n, 2 * radius + 1), "l2g": (n, G), "g2g": (G, G), "g2l": (G, n)}
    made = {}
    for piece, shape in shapes.items():
        if labels:
            made[f"{piece}_ids"] = torch.randint(V, (B, *shape))
        if masks:
            made[f"{piece}_mask"] = torch.rand(B, *shape) < 0.7
            made[f"{piece}_mask"][0, 0] = False  # a row that sees nothing
    return made


def long_stream(made: Any, long: Tensor, summary: Tensor, given: dict[str, Tensor], radius: int) -> Tensor:
    """The long stream's result, pair by pair."""
    n, width = long.shape[1], E // H

    def project(name: str, x: Tensor) -> Tensor:
        return getattr(made, name)(x).unflatten(-1, (H, width)) if hasattr(made, name) else x

    linear = {name: (group.weight, group.bias) for name, group in made.named_children() if hasattr(group, "weight")}
    q, k, v, gk, gv = (
        torch.nn.functional.linear(x, *linear[name]).unflatten(-1, (H, width))
        for name, x in (("long_query", long), ("l2l_key", long), ("l2l_value", long), ("l2g_key", summary), ("l2g_value", summary))
    )
    out = torch.zeros(B, n, H, width, dtype=torch.float64)
    for b in range(B):
        for i in range(n):
            seen = [("l2l", u, k[b, i - radius + u], v[b, i - radius + u]) for u in range(2 * radius + 1) if 0 <= i - radius + u < n]
            seen += [("l2g", u, gk[b, u], gv[b, u]) for u in range(G)]
            seen = [s for s in seen if f"{s[0]}_mask" not in given or given[f"{s[0]}_mask"][b, i, s[1]]]
            if not seen:
                continue
            scores = []
            for piece, u, key, _ in seen:
                score = (q[b, i] * key).sum(-1)
                if f"{piece}_ids" in given:
                    label = int(given[f"{piece}_ids"][b, i, u])
                    score = score + (q[b, i] * made.long_relative.emb[label]).sum(-1) + made.long_relative.bias[label]
                scores.append(score / math.sqrt(width))
            weights = torch.stack(scores).softmax(0)[..., None]  # [keys,H,1]
            out[b, i] = (weights * torch.stack([value for *_, value in seen])).sum(0)
    return torch.nn.functional.linear(out.flatten(2), *linear["long_out"])


@pytest.mark.parametrize(("n", "radius"), [(1, 2), (5, 1), (6, 9), (13, 3), (12, 0), (150, 70)])
@pytest.mark.parametrize(("labels", "masks"), [(False, False), (True, False), (False, True), (True, True)])
def test_neighbours_and_global_tokens_in_one_softmax(n: int, radius: int, labels: bool, masks: bool) -> None:
    made = layer(radius, relative_vocab_size=V)
    long, summary = streams(n)
    given = pieces(n, radius, labels, masks)
    found = made(long, summary, **given).long_output
    torch.testing.assert_close(found, long_stream(made, long, summary, given, radius))


@pytest.mark.parametrize("ignore_direction", [False, True])
@pytest.mark.parametrize("n", [1, 4, 20])
def test_labels_by_distance(n: int, ignore_direction: bool) -> None:
    radius, far = 5, 3
    made = layer(radius, relative_vocab_size=V, max_distance=far, ignore_direction=ignore_direction)
    plain = layer(radius, relative_vocab_size=V)
    long, summary = streams(n)
    ids = [min(abs(d), far) + (far if d < 0 and not ignore_direction else 0) for d in range(-radius, radius + 1)]
    l2g_ids = torch.randint(V, (B, n, G))
    found = made(long, summary, l2g_ids=l2g_ids).long_output
    want = plain(long, summary, l2g_ids=l2g_ids, l2l_ids=torch.tensor(ids).expand(B, n, -1)).long_output
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize("n", [3, 17])
def test_key_masks_are_masks_of_every_piece(n: int) -> None:
    radius = 4
    made = layer(radius)
    long, summary = streams(n)
    real, there = torch.rand(B, n) < 0.6, torch.rand(B, G) < 0.6
    real[0] = there[0] = False  # all padding
    places = torch.arange(n)[:, None] + torch.arange(-radius, radius + 1)
    neighbours = real[:, places.clamp(0, n - 1)] & (places >= 0) & (places < n)
    as_masks = {
        "l2l_mask": neighbours,
        "l2g_mask": there[:, None].expand(B, n, G),
        "g2g_mask": there[:, None].expand(B, G, G),
        "g2l_mask": real[:, None].expand(B, G, n),
    }
    by_keys = made(long, summary, long_key_mask=real, global_key_mask=there)
    for found, want, out in zip(by_keys, made(long, summary, **as_masks), (made.long_out, made.global_out), strict=True):
        torch.testing.assert_close(found, want)
        torch.testing.assert_close(found[0], out.bias.expand_as(found[0]))
    both = made(long, summary, l2l_mask=torch.ones(B, n, 2 * radius + 1, dtype=torch.bool), long_key_mask=real, global_key_mask=there)
    torch.testing.assert_close(both.long_output, by_keys.long_output)


def test_shared_projections_are_copies_of_separate_ones() -> None:
    shared, separate = layer(3, share_qkv=True, share_out=True), layer(3)
    assert {name for name, _ in shared.named_children() if any(True for _ in getattr(shared, name).parameters())} == {
        "long_query", "l2l_key", "l2l_value", "long_out"
    }  # fmt: skip
    weights = shared.state_dict()
    copies = {"l2g_key": "l2l_key", "g2g_key": "l2l_key", "g2l_key": "l2l_key", "l2g_value": "l2l_value", "g2g_value": "l2l_value",
              "g2l_value": "l2l_value", "global_query": "long_query", "global_out": "long_out"}  # fmt: skip
    for leaf in ("weight", "bias"):
        weights |= {f"{to}.{leaf}": weights[f"{of}.{leaf}"] for to, of in copies.items()}
    separate.load_state_dict(weights)
    long, summary = streams(11)
    for found, want in zip(shared(long, summary), separate(long, summary), strict=True):
        torch.testing.assert_close(found, want)


def test_inputs_that_do_not_go_together_are_refused() -> None:
    long, summary = streams(6)
    ids = pieces(6, 2, labels=True, masks=False)
    with pytest.raises(ValueError, match="l2l_ids and l2g_ids go together"):
        layer(2, relative_vocab_size=V)(long, summary, l2l_ids=ids["l2l_ids"])
    with pytest.raises(ValueError, match="g2g_ids and g2l_ids go together"):
        layer(2, relative_vocab_size=V)(long, summary, g2l_ids=ids["g2l_ids"])
    with pytest.raises(ValueError, match="need the option relative_vocab_size"):
        layer(2)(long, summary, **ids)
    with pytest.raises(ValueError, match=r"l2l_ids must be \[B,N,7\], got \[2, 6, 5\]"):
        layer(3, relative_vocab_size=V)(long, summary, **ids)
    with pytest.raises(ValueError, match="max_distance 4 needs 9 labels, got relative_vocab_size 8"):
        layer(3, relative_vocab_size=8, max_distance=4)
    with pytest.raises(ValueError, match="global_dim other than embed_dim"):
        layer(3, global_dim=4, share_kv=True)
