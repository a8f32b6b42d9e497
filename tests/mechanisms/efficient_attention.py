"""Efficient attention: the function and the block on feature maps."""

from typing import Any

from torch import Tensor

from tests.contract import Case, call, published

QKV = {"B": 2, "H": 2, "Hk": 2, "N": 6, "M": 9, "D": 4, "Dv": 3}
SMALL = {"B": 1, "N": 2, "M": 3, "D": 2, "Dv": 2}
MAP = {"B": 2, "C": 6, "H": 4, "W": 5}
BLOCK = {"in_channels": 6, "key_channels": 7, "head_count": 2, "value_channels": 4}

CASES = [
    Case("efficient_attention", QKV, given=("key_mask",), mask="key_mask", gradcheck=SMALL),
    Case("efficient_attention", {**QKV, "H": 4}, {"temperature": 1.7}, name="grouped", gradcheck=SMALL),
    Case("efficient_attention", QKV, {"normalization": "scaling"}, given=("key_mask",), mask="key_mask", gradcheck=SMALL),
    Case("efficient_attention", QKV, {"normalization": "scaling"}, name="all", gradcheck=SMALL),
    Case("efficient_attention", {**QKV, "M": 6}, {"causal": True, "temperature": 0.7}, causal=True, gradcheck={**SMALL, "M": 2}),
    Case("efficient_attention", {**QKV, "H": 4, "M": 6}, {"causal": True}, given=("key_mask",), mask="key_mask", name="masked",
         gradcheck={**SMALL, "M": 2}),
    Case("efficient_attention", {**QKV, "M": 6}, {"causal": True, "normalization": "scaling"}, causal=True, gradcheck={**SMALL, "M": 2}),
    Case("efficient_attention_block", MAP, BLOCK, length=("H", "W"), gradcheck={"B": 1, "H": 2, "W": 2}),
    Case("efficient_attention_block", MAP, {**BLOCK, "head_count": 1, "normalization": "scaling"}, length=("H", "W"),
         gradcheck={"B": 1, "H": 2, "W": 2}),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases name the mask `mask`."""
    inputs = {name.removeprefix("input."): x for name, x in t.items() if name.startswith("input.")}
    if "mask" in inputs:
        inputs["key_mask"] = inputs.pop("mask").bool()
    chosen = {n: options[n] for n in ("normalization", "temperature", "causal") if n in options}
    if options.get("level", "function") == "function":
        return {"output.out": call("efficient_attention", inputs, **chosen)}
    chosen |= {n: options[n] for n in ("in_channels", "key_channels", "head_count", "value_channels") if n in options}
    chosen.setdefault("in_channels", inputs["x"].shape[1])
    chosen.pop("causal", None)
    parameters = published("efficient_attention_block", t, "cmsflash/efficient-attention")
    return {"output.out": call("efficient_attention_block", inputs, parameters, **chosen)}
