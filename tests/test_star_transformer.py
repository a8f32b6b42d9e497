"""What is peculiar to the Star-Transformer: padding leaves no trace, a sequence of padding is defined, dropout follows its draw."""

from typing import Any

import pytest
import torch

import foveate
from tests.contract import Case

ENCODER: dict[str, Any] = {"embed_dim": 6, "num_layers": 3, "num_heads": 2, "head_dim": 5}


@pytest.mark.parametrize("length", [1, 2, 7])
def test_padding_leaves_no_trace(length: int) -> None:
    encoder = Case("star_transformer", {}, ENCODER).layer()
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    there = (torch.arange(9) < length).expand(2, -1)
    padded, alone = encoder(x, key_mask=there), encoder(x[:, :length])
    torch.testing.assert_close(padded.satellites[:, :length], alone.satellites)
    torch.testing.assert_close(padded.relay, alone.relay)
    assert not padded.satellites[:, length:].any()
    as_published = Case("star_transformer", {}, {**ENCODER, "mask_ring": False, "mask_mean": False}).layer()
    assert not torch.allclose(as_published(x, key_mask=there).relay, alone.relay)


def test_nothing_but_padding() -> None:
    encoder = Case("star_transformer", {}, ENCODER).layer()
    there = torch.tensor([[True] * 4, [False] * 4])
    satellites, relay = encoder(torch.randn(2, 4, 6, dtype=torch.float64), key_mask=there)
    assert relay.isfinite().all()
    assert not satellites[1].any()


def test_dropout_follows_its_draw() -> None:
    encoder = Case("star_transformer", {}, {**ENCODER, "dropout": 0.25}).layer()
    x, keep = torch.randn(2, 9, 6, dtype=torch.float64), torch.rand(2, 9, 6) < 0.75
    torch.testing.assert_close(encoder.train()(x, dropout_keep=keep)[0], encoder.eval()(x * keep / 0.75)[0])
    torch.manual_seed(0)
    one = encoder.train()(x)[0]
    torch.manual_seed(0)
    assert torch.equal(one, encoder(x)[0])
    assert not torch.equal(one, encoder(x)[0])


def test_too_many_tokens_are_refused_by_name() -> None:
    encoder = foveate.nn.StarTransformer(**ENCODER, max_len=4)
    with pytest.raises(ValueError, match="max_len = 4 tokens, got 5"):
        encoder(torch.randn(1, 5, 6))


def test_names_of_published_weights() -> None:
    """A state_dict of the authors' code."""
    given = {"pos_emb.weight": torch.randn(4, 6)}
    for t in range(3):
        given |= {f"norm.{t}.weight": torch.randn(6), f"norm.{t}.bias": torch.randn(6)}
        for kind in ("ring_att", "star_att"):
            for name in ("WQ", "WK", "WV"):
                given |= {f"{kind}.{t}.{name}.weight": torch.randn(10, 6, 1, 1), f"{kind}.{t}.{name}.bias": torch.randn(10)}
            given |= {f"{kind}.{t}.WO.weight": torch.randn(6, 10, 1, 1), f"{kind}.{t}.WO.bias": torch.randn(6)}
    foveate.nn.load_published(foveate.nn.StarTransformer(**ENCODER, max_len=4), given)
