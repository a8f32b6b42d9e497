"""CBAM and BAM: gates over the channels and positions of a map."""

from typing import Any

from torch import Tensor

from tests.contract import Case, call, published

MAP = {"B": 2, "C": 6, "H": 4, "W": 5}
ONE = {"B": 1, "H": 2, "W": 3}

CASES = [
    Case("cbam", MAP, {"gate_channels": 6, "reduction_ratio": 2, "kernel_size": 3}, length=("H", "W"), gradcheck=ONE),
    Case("cbam", MAP, {"gate_channels": 6, "reduction_ratio": 4, "pools": "lse+lp+max+avg", "no_spatial": True}, length=("H", "W"), gradcheck=ONE),
    Case("cbam", MAP, {"gate_channels": 6, "reduction_ratio": 4, "pools": "lse+lp+max+avg", "kernel_size": 3}, given=("mask",), length=("H", "W"),
         name="masked", gradcheck=ONE),
    Case("bam", MAP, {"gate_channels": 6, "reduction_ratio": 2}, given=("mask",), length=("H", "W"), name="masked", gradcheck=ONE),
    Case("bam", MAP, {"gate_channels": 6, "reduction_ratio": 3, "dilation_val": 2}, length=("H", "W"), gradcheck=ONE),
    Case("bam", MAP, {"gate_channels": 6, "reduction_ratio": 2, "num_layers": 2, "dilation_conv_num": 0}, length=("H", "W"), gradcheck=ONE),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases keep the names of the original's state, and list the pools."""
    form = options["module"]
    parameters = published(form, t, "Jongchan/attention-module")
    chosen = {n: x for n, x in options.items() if n not in ("module", "pool_types")}
    if "pool_types" in options:
        chosen["pools"] = "+".join(options["pool_types"])
    chosen.setdefault("gate_channels", t["input.x"].shape[1])
    inputs = {n.removeprefix("input."): x for n, x in t.items() if n.startswith("input.")}
    out = call(form, inputs, parameters, **chosen)
    return {"output.out": out, **{n.replace("param.", "output.new."): x for n, x in t.items() if "running" in n}}  # as the call left them
