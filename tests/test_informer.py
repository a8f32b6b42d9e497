"""Informer as a whole: its embeddings, how its parts are joined, weights by the authors' names."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import foveate

SIZES: dict[str, Any] = {"enc_in": 3, "dec_in": 2, "c_out": 2, "d_model": 8, "num_heads": 2, "d_ff": 12, "dtype": torch.float64}


class Embedding(nn.Module):
    """The authors', of time features or of a learned calendar, under their names."""

    def __init__(self, columns: int, times: dict[str, int] | None) -> None:
        super().__init__()
        self.value_embedding = nn.ModuleDict({"tokenConv": nn.Conv1d(columns, 8, 3, padding=1, padding_mode="circular")})
        tables = {f"{name}_embed": nn.Embedding(rows, 8) for name, rows in (times or {}).items()}
        self.temporal_embedding = nn.ModuleDict(tables or {"embed": nn.Linear(4, 8)})
        self.order = list(times or {})

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        place = torch.arange(x.shape[1], dtype=x.dtype)[:, None]
        rate = torch.exp(torch.arange(0, 8, 2, dtype=x.dtype) * -(math.log(10000) / 8))
        table = torch.zeros(x.shape[1], 8, dtype=x.dtype)
        table[:, ::2], table[:, 1::2] = (place * rate).sin(), (place * rate).cos()
        out: Tensor = self.value_embedding["tokenConv"](x.mT).mT + table
        if not self.order:
            return out + self.temporal_embedding["embed"](time)
        return out + sum(self.temporal_embedding[f"{name}_embed"](time[..., i].long()) for i, name in enumerate(self.order))


@pytest.mark.parametrize("calendar", [False, True])
@pytest.mark.parametrize("encoders", [[2], [2, 1]])
def test_the_whole_is_its_parts_and_takes_weights_by_the_authors_names(calendar: bool, encoders: list[int]) -> None:
    torch.manual_seed(0)
    times = {"month": 13, "day": 32, "weekday": 7, "hour": 24, "minute": 4} if calendar else None
    kind = {"time_kind": "learned", "time_columns": 5} if calendar else {}
    model = foveate.nn.Informer(encoder_layers=encoders, **kind, **SIZES).eval()
    own, target = Embedding(3, times).double(), Embedding(2, times).double()
    shared = {n: x for n, x in SIZES.items() if n in ("d_model", "num_heads", "d_ff", "dtype")}
    stack = foveate.nn.InformerStack(num_layers=encoders, **shared).eval()
    layer = foveate.nn.InformerDecoderLayer(**shared).eval()
    norm, head = nn.LayerNorm(8).double(), nn.Linear(8, 2).double()

    inside = "encoder" if len(encoders) == 1 else "encoder.encoders.{}"
    saved = {f"enc_embedding.{n}": x for n, x in own.state_dict().items()} | {f"dec_embedding.{n}": x for n, x in target.state_dict().items()}
    saved |= {"enc_embedding.position_embedding.pe": torch.zeros(1, 9, 8), "decoder.norm.weight": norm.weight, "decoder.norm.bias": norm.bias}
    saved |= {f"projection.{n}": x for n, x in head.state_dict().items()}
    theirs = {"up": "conv1", "down": "conv2", "conv": "downConv"}
    attention = {n: f"{n}_projection" for n in ("query", "key", "value", "out")}
    for name, x in stack.state_dict().items():
        _, which, *rest = name.split(".")
        place = {"layers": "attn_layers", "distilling": "conv_layers"}
        saved[".".join([inside.format(which), *(place.get(p) or theirs.get(p) or attention.get(p) or p for p in rest)])] = x
    for name, x in layer.state_dict().items():
        saved["decoder.layers.0." + ".".join(theirs.get(p) or attention.get(p) or p for p in name.split("."))] = x
    assert foveate.nn.load_published(model, saved) == "zhouhaoyi/Informer2020"

    x, start = torch.randn(2, 16, 3, dtype=torch.float64), torch.randn(2, 4, 2, dtype=torch.float64)
    made = torch.randint(1, 4, (2, 22, 5)).double() if calendar else torch.randn(2, 22, 4, dtype=torch.float64)
    time, later = made[:, :16], made[:, 12:]
    sample = torch.randint(8, (sum(encoders), 16, 5))
    picked = torch.randint(10, (1, 10, 5))
    encoded = stack(own(x, time), sample)
    rows = torch.cat([start, start.new_zeros(2, 6, 2)], 1)
    want = head(norm(layer(target(rows, later), encoded, picked[0])))[:, 4:]
    torch.testing.assert_close(model(x, time, start, later, sample, picked), want, rtol=1e-10, atol=1e-10)


def test_a_fixed_calendar_knows_an_hour_by_its_sinusoid() -> None:
    model = foveate.nn.Informer(time_kind="fixed", **SIZES).eval()
    x, start = torch.randn(1, 16, 3, dtype=torch.float64), torch.randn(1, 4, 2, dtype=torch.float64)
    time = torch.randint(1, 4, (1, 22, 4)).double()
    torch.manual_seed(1)
    once = model(x, time[:, :16], start, time[:, 12:])
    assert once.shape == (1, 6, 2)
    torch.manual_seed(1)
    assert not torch.allclose(model(x, time[:, :16] + 1, start, time[:, 12:]), once)


def test_times_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="time_columns must be 4 or 5, got 3"):
        foveate.nn.Informer(time_kind="learned", time_columns=3, **SIZES)
    model = foveate.nn.Informer(**SIZES)
    x = torch.zeros(1, 16, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="target_time must have a row for each of the 4 of start"):
        model(x, torch.zeros(1, 16, 4, dtype=torch.float64), x[:, :4, :2], torch.zeros(1, 3, 4, dtype=torch.float64))
