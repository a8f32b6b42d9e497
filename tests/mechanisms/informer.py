"""Informer: ProbSparse attention, the distilling encoder, several of them, the decoder's layer, the whole model."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tests.contract import Case, Maker, call, published

QKV = {"B": 2, "H": 2, "N": 14, "M": 14, "D": 4, "Dv": 3}
SMALL = {"B": 1, "N": 6, "M": 6}
X = {"B": 2, "N": 16, "M": 7, "E": 8}
LAYER = {"d_model": 8, "num_heads": 2, "d_ff": 12, "factor": 1}


def _sample(columns: int, *layers: int, keys: str = "M") -> Maker:
    return lambda s, g: torch.randint(s[keys], (*layers, s["N"], columns), generator=g)


def _layers(s: Any, g: Any) -> Tensor:
    """Of two layers, the second half as long."""
    return torch.randint((s["N"] + 1) // 2, (2, s["N"], 3), generator=g)


def _stack(s: Any, g: Any) -> Tensor:
    """Of two layers, and of one that sees the latest half."""
    return torch.randint((s["N"] + 1) // 2, (3, s["N"], 3), generator=g)


def _time(columns: int, rows: int) -> Maker:
    """Months, days, weekdays, hours, quarters of an hour."""
    return lambda s, g: torch.randint(1, 4, (s["B"], s["N"] if rows == 0 else rows, columns), generator=g).double()


SERIES = {"B": 2, "N": 16, "L": 3, "T": 7}
MODEL = {"enc_in": 3, "dec_in": 2, "c_out": 2, **LAYER}
SERIES_MADE: Any = {
    "x": lambda s, g: torch.randn(s["B"], s["N"], 3, generator=g, dtype=torch.float64),
    "start": lambda s, g: torch.randn(s["B"], s["L"], 2, generator=g, dtype=torch.float64),
    "time": _time(4, 0),
    "target_time": _time(4, 7),
    "index_sample": _layers,
    "decoder_sample": lambda s, g: torch.randint(s["T"], (1, s["T"], 3), generator=g),
}
FIXED: Any = {"length": (), "lengths_fixed": "the number of active queries is a logarithm of the length"}

CASES = [
    Case("prob_sparse_attention", QKV, {"factor": 2}, given=("index_sample", "key_mask"), make={"index_sample": _sample(6)}, mask="key_mask",
         gradcheck=SMALL),
    Case("prob_sparse_attention", QKV, {"factor": 1, "causal": True}, given=("index_sample", "key_mask"), make={"index_sample": _sample(3)},
         mask="key_mask", gradcheck=SMALL, **FIXED),
    Case("prob_sparse_attention", QKV | {"M": 9}, {"factor": 1, "scale": 0.5}, given=("index_sample",), make={"index_sample": _sample(3)},
         name="cross", gradcheck=SMALL | {"M": 4}),
    Case("informer_encoder", X, LAYER, given=("index_sample",), make={"index_sample": _layers}, gradcheck={"B": 1, "N": 6}, length=(),
         lengths_fixed="the halved length is a quotient, which torch's convolution compares"),
    Case("informer_encoder", X, {**LAYER, "num_layers": 1, "distil": False, "activation": "relu"}, given=("index_sample",),
         make={"index_sample": _sample(3, 1, keys="N")}, gradcheck={"B": 1, "N": 5}),
    Case("informer_stack", X, {**LAYER, "num_layers": [2, 1]}, given=("index_sample",), make={"index_sample": _stack},
         gradcheck={"B": 1, "N": 6}, length=(),
         lengths_fixed="the encoders take parts of the sequence, whose lengths are quotients"),
    Case("informer_decoder_layer", X, LAYER, given=("index_sample",), make={"index_sample": _sample(3, keys="N")},
         gradcheck={"B": 1, "N": 5, "M": 3}, **FIXED),
    Case("informer_decoder_layer", X, {**LAYER, "mix": False}, given=("index_sample",), make={"index_sample": _sample(3, keys="N")},
         gradcheck={"B": 1, "N": 5, "M": 3}, **FIXED),
    Case("informer", SERIES, MODEL, given=("index_sample", "decoder_sample"), make=SERIES_MADE, gradcheck={"B": 1, "N": 6}, **FIXED),
    Case("informer", SERIES, {**MODEL, "encoder_layers": [2, 1], "time_kind": "learned", "time_columns": 5, "mix": False},
         given=("index_sample", "decoder_sample"), gradcheck={"B": 1, "N": 6}, **FIXED,
         make=SERIES_MADE | {"time": _time(5, 0), "target_time": _time(5, 7), "index_sample": _stack}),
    Case("informer", SERIES, {**MODEL, "time_kind": "fixed", "encoder_layers": [1], "decoder_layers": 2, "activation": "relu"},
         given=("index_sample", "decoder_sample"), gradcheck={"B": 1, "N": 5}, **FIXED,
         make=SERIES_MADE | {"index_sample": _sample(3, 1, keys="N"),
                             "decoder_sample": lambda s, g: torch.randint(s["T"], (2, s["T"], 3), generator=g)}),
]  # fmt: skip

SOURCE = "zhouhaoyi/Informer2020"


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases say how many queries are active and by how many keys they are measured; architectures have a sample for each layer."""
    inputs = {n.removeprefix("input."): x for n, x in t.items() if n.startswith("input.")}
    if options["level"] == "prob_attention":
        out = call("prob_sparse_attention", inputs, factor=_factor(options, inputs), causal=options["causal"], scale=options["scale"])
        return {"output.out": out.out, "output.top_queries": out.active_order[..., : options["n_top"]]}
    samples = [inputs.pop(f"index_sample.{i}") for i in range(3) if f"index_sample.{i}" in inputs]
    chosen = {n: options[n] for n in ("factor", "activation", "d_ff", "layer_norm_eps")} | {"num_heads": options["heads"]}
    chosen["d_model"] = inputs["x"].shape[-1]
    if options["level"] == "decoder_layer":
        form = "informer_decoder_layer"
        return {"output.out": call(form, inputs | {"index_sample": samples[0]}, published(form, t, SOURCE), mix=options["mix"], **chosen)}
    rows, columns = (max(x.shape[axis] for x in samples) for axis in (0, 1))
    inputs["index_sample"] = torch.stack([pad(x, (0, columns - x.shape[1], 0, rows - x.shape[0]), value=-1) for x in samples])
    parameters = published("informer_encoder", t, SOURCE)
    chosen |= {n: options[n] for n in ("distil", "batch_norm_eps", "batch_norm_momentum")} | {"num_layers": options["layers"]}
    out = call("informer_encoder", inputs, parameters, training=options["training"], **chosen)
    after = {n: x for n, x in parameters.items() if "running" in n and options["training"]}
    return {"output.out": out, **{f"output.conv_layers.{n.split('.')[1]}.norm.{n.split('.')[-1]}.after": x for n, x in after.items()}}


def _factor(options: dict[str, Any], inputs: dict[str, Tensor]) -> int:
    """The one given, which must lead to as many active queries."""
    length = inputs["q"].shape[2]
    assert options["n_top"] == min(options["factor"] * math.ceil(math.log(length)), length)
    return int(options["factor"])
