"""Kronecker attention of maps, with weights and without."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, published

SIZES = {"B": 2, "T": 3, "H": 4, "W": 5}


def _map(*axes: str) -> Any:
    return lambda s, g: torch.randn(s["B"], 4, *(s[a] for a in axes), generator=g, dtype=torch.float64)


def _case(form: str, *axes: str, given: tuple[str, ...] = (), **options: Any) -> Case:
    return Case(
        form, {n: SIZES[n] for n in ("B", *axes)}, options, given=given, make={"x": _map(*axes), "context": _map("W", "H")}, length=axes,
        gradcheck={"B": 1, "T": 2, "H": 2, "W": 3}, name=f"{len(axes)}d",
    )  # fmt: skip


LAYER: Any = {"in_channels": 4, "num_heads": 2, "head_dim": 3}

CASES = [
    _case("kronecker_attention_operator", "H", "W", num_heads=2),
    _case("kronecker_attention_operator", "H", "W", variant="kv", given=("context",), scale=0.5),
    _case("kronecker_attention_operator", "T", "H", "W", normalize="mean"),
    _case("kronecker_attention", "H", "W", **LAYER),
    _case("kronecker_attention", "T", "H", "W", variant="kv", **LAYER),
    _case("kronecker_attention", "H", "W", variant="kv", normalize="mean", given=("context",), **LAYER),
]


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases write 1x1 maps as matrices."""
    chosen = {"num_heads": options["heads"], **{n: options[n] for n in ("variant", "normalize", "scale")}}
    if options["level"] == "function":
        return {"output.out": call("kronecker_attention_operator", {"x": t["input.x"]}, **chosen)}
    t = {name: x.unsqueeze(-1) if name.startswith("param.w") else x for name, x in t.items()}
    layer = {"in_channels": t["input.x"].shape[1], "head_dim": t["param.wq"].shape[0] // options["heads"]}
    return {"output.out": call("kronecker_attention", {"x": t["input.x"]}, published("kronecker_attention", t), **chosen, **layer)}
