"""Fast attention of FANet: the function, frames of a video, the block, the fusion module."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, published

QKV = {"B": 2, "H": 2, "Hk": 2, "N": 6, "M": 9, "D": 4, "Dv": 3}
SMALL = {"B": 1, "N": 2, "M": 3, "D": 2, "Dv": 2}
FRAMES = {"B": 2, "N": 4, "H": 2, "P": 5, "D": 4, "Dv": 3}
MAP = {"B": 2, "C": 6, "H": 4, "W": 5}
ONE = {"B": 1, "H": 2, "W": 2}


def _coarse(sizes: Any, generator: torch.Generator) -> Tensor:
    return torch.randn(sizes["B"], 6, 3, 2, generator=generator, dtype=torch.float64)


CASES = [
    Case("fast_attention", QKV, given=("key_mask",), mask="key_mask", gradcheck=SMALL),
    Case("fast_attention", {**QKV, "H": 4}, {"normalize_by_n": True}, given=("key_mask",), mask="key_mask", name="grouped", gradcheck=SMALL),
    Case("fast_attention", {**QKV, "M": 6}, {"causal": True}, causal=True, gradcheck={**SMALL, "M": 2}),
    Case("fast_attention", {**QKV, "M": 6}, {"causal": True, "normalize_by_n": True}, causal=True, name="mean", gradcheck={**SMALL, "M": 2}),
    Case("fast_attention_video", FRAMES, {"frames": 3}, causal=True, length=("N",), gradcheck={"B": 1, "N": 2, "P": 2, "D": 2, "Dv": 2}),
    Case("fast_attention_video", FRAMES, {"frames": 2, "normalize_by_n": True}, given=("key_mask",), mask="key_mask", length=("P",),
         gradcheck={"B": 1, "N": 2, "P": 2, "D": 2, "Dv": 2}),
    Case("fast_attention_block", MAP, {"in_chan": 6, "qk_dim": 4, "normalize_by_n": True}, length=("H", "W"), gradcheck=ONE),
    Case("fast_attention_fusion", MAP, {"in_chan": 6, "out_chan": 4, "qk_dim": 4}, length=("H", "W"), gradcheck=ONE),
    Case("fast_attention_fusion", MAP, {"in_chan": 6, "out_chan": 4, "qk_dim": 4, "up_flag": False}, given=("up",), make={"up": _coarse},
         length=("H", "W"), gradcheck=ONE),
    Case("fast_attention_fusion", MAP, {"in_chan": 6, "out_chan": 4, "qk_dim": 4, "smf_flag": False, "leaky_slope": 0.2}, length=("H", "W"),
         name="no_smooth", gradcheck=ONE),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases keep the names of the original's state; their `out` is the smooth map, or up_feat where that is all."""
    inputs = {name.removeprefix("input."): x for name, x in t.items() if name.startswith("input.")}
    if "mask" in inputs:
        inputs["key_mask"] = inputs.pop("mask").bool()
    chosen = {n: x for n, x in options.items() if n not in ("module", "training") and x is not None}
    if options["module"] == "core":
        return {"output.out": call("fast_attention", inputs, **chosen)}
    parameters = published("fast_attention_fusion", t, "feinanshan/FANet")
    chosen.setdefault("in_chan", inputs["x"].shape[1])
    smooth, up_feat = call("fast_attention_fusion", inputs, parameters, training=options.get("training", False), **chosen)
    outputs = {"output.out": smooth if options.get("smf_flag", True) else up_feat, "output.up_feat": up_feat}
    return outputs | {n.replace("param.", "output.new."): x for n, x in t.items() if "running" in n}  # as the call left them
