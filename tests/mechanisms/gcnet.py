"""One context for all positions of a map."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, published

MAP = {"B": 2, "H": 4, "W": 5}
MAKE: Any = {
    "x": lambda s, g: torch.randn(s["B"], 6, s["H"], s["W"], generator=g, dtype=torch.float64),
    "mask": lambda s, g: torch.rand(s["B"], s["H"], s["W"], generator=g) < 0.7,
}
MORE: Any = {"make": MAKE, "length": ("H", "W"), "gradcheck": {"B": 1, "H": 2, "W": 3}}

CASES = [
    Case("global_context_block", MAP, {"in_channels": 6, "ratio": 0.5}, given=("mask",), **MORE),
    Case("global_context_block", MAP, {"in_channels": 6, "ratio": 0.34, "channel_mul": True}, **MORE),
    Case("global_context_block", MAP, {"in_channels": 6, "ratio": 0.5, "pooling": "avg", "channel_add": False, "channel_mul": True}, **MORE),
    Case("global_context_block", MAP, {"in_channels": 6, "ratio": 0.5, "pooling": "avg"}, given=("mask",), name="masked", **MORE),
    Case("simplified_non_local_block", MAP, {"in_channels": 6}, given=("mask",), **MORE),
]


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases keep the names of the original's state."""
    inputs = {"x": t["input.x"]}
    if options["module"] == "snl":
        form = "simplified_non_local_block"
        return {"output.out": call(form, inputs, published(form, t), in_channels=options["inplanes"])}
    form = "global_context_block"
    chosen = {"in_channels": options["inplanes"], "ratio": options["ratio"], "pooling": options["pooling_type"], "ln_eps": options["ln_eps"]}
    fusions = {name: name in options["fusion_types"] for name in ("channel_add", "channel_mul")}
    return {"output.out": call(form, inputs, published(form, t, "xvjiarui/GCNet"), **chosen, **fusions)}
