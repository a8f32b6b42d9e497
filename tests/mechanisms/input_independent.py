"""Learned maps, as a layer."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, all_but_last, call, published
from tests.mechanisms.synthesizer import FIXED, LONG, SMALL

X = {"B": 2, "N": 9, "E": 8}
LAYER = {"embed_dim": 8, "num_heads": 2}
TABLE: Any = {
    "length": (),
    "lengths_fixed": FIXED,
    "gradcheck": SMALL,
    "make": {"key_mask": all_but_last("N"), "head_gate": lambda s, g: torch.randn(2, generator=g, dtype=torch.float64)},
}

CASES = [
    Case("input_independent_attention", X, {**LAYER, "max_len": 12}, given=("key_mask", "head_gate"), mask="key_mask", **TABLE),
    Case("input_independent_attention", X, {**LAYER, "max_len": 12, "table_init": "free", "causal": True}, causal=True, **TABLE),
    Case("input_independent_attention", X, {**LAYER, "max_len": LONG, "kind": "dense", "bottleneck": 3}, given=("key_mask",), mask="key_mask",
         gradcheck=SMALL, make={"key_mask": all_but_last("N")}),
    Case("input_independent_attention", X, {**LAYER, "max_len": LONG, "kind": "dense", "causal": True}, causal=True, gradcheck=SMALL),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases write the options our way."""
    inputs = {name.removeprefix("input."): x.bool() if name.endswith("mask") else x for name, x in t.items() if name.startswith("input.")}
    chosen = {"num_heads": options["heads"], "embed_dim": inputs["x"].shape[-1], **{n: options[n] for n in ("kind", "max_len", "causal")}}
    if options["kind"] == "dense":
        chosen["bottleneck"] = options["bottleneck"]
    form = "input_independent_attention"
    return {"output.out": call(form, inputs, published(form, t), **chosen)}
