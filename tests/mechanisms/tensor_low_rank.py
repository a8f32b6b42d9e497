"""A low-rank gate over channels, rows and columns."""

from typing import Any

from torch import Tensor

from tests.contract import Case, call, published

MORE: Any = {"length": (), "lengths_fixed": "the parameters fix the size of the map", "gradcheck": {"B": 1}}

CASES = [
    Case("tensor_low_rank_gate", {"B": 2, "C": 4, "H": 3, "W": 5}, {"channels": 4, "height": 3, "width": 5, "rank": 3, "weights": "raw"}, **MORE),
    Case("tensor_low_rank_gate", {"B": 2, "C": 3, "H": 4, "W": 4}, {"channels": 3, "height": 4, "width": 4, "rank": 2, "axes": "code",
         "output": "concat_relu"}, **MORE),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases take the sizes from the map."""
    _, C, H, W = t["input.x"].shape
    chosen = {"axes": options["axes"], "weights": options["lambda"], "output": options["output"], "rank": options["rank"]}
    form = "tensor_low_rank_gate"
    return {"output.out": call(form, {"x": t["input.x"]}, published(form, t), channels=C, height=H, width=W, **chosen)}
