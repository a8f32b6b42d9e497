"""The non-local operation and block, maps of one to three dimensions."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, published

QKV = {"B": 2, "H": 1, "N": 6, "M": 5, "D": 4, "Dv": 3}
MAP = {"B": 2, "H": 4, "W": 5}


def _map(*axes: str, channels: int = 6) -> Any:
    return {"x": lambda s, g: torch.randn(s["B"], channels, *(s[a] for a in axes), generator=g, dtype=torch.float64)}


def _block(*axes: str, name: str = "", smallest: int = 2, **options: Any) -> Case:
    sizes = {"B": 2, "T": 4, "L": 7, "H": 4, "W": 5}
    return Case(
        "non_local_block", {n: sizes[n] for n in ("B", *axes)}, {"in_channels": 6, "dimension": len(axes), **options}, make=_map(*axes),
        length=axes, smallest=smallest, exported_from=2 * smallest, gradcheck={"B": 1, "T": 2, "H": 2, "W": 3}, name=name or f"{len(axes)}d",
    )  # fmt: skip


CASES = [
    Case("non_local_attention", QKV, {"mode": "gaussian", "scale": 0.7}, gradcheck={"B": 1, "N": 3, "M": 2}),
    Case("non_local_attention", QKV, {"mode": "dot_product"}, gradcheck={"B": 1, "N": 3, "M": 2}),
    Case("non_local_attention", QKV, {"mode": "concatenation"}, given=("pair_weight",),
         make={"pair_weight": lambda s, g: torch.randn(2 * s["D"], generator=g, dtype=torch.float64)}, gradcheck={"B": 1, "N": 3, "M": 2}),
    _block("H", "W"),
    _block("L", mode="dot_product", inter_channels=2),
    _block("T", "H", "W", mode="gaussian", sub_sample=False, smallest=1),
    _block("T", "H", "W", pool_position="before", scale=0.5, bn=False),
    _block("H", "W", mode="concatenation", inter_channels=2),
    _block("H", "W", mode="concatenation", biased_pair=True, bn_gain=1.0, weight_std=0.3, name="biased pair"),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases name the way back W, the pair network concat, and say of bn whether it trains."""
    parameters = published("non_local_block", t)
    bn = options.get("bn", "train")
    known = ("mode", "dimension", "inter_channels", "sub_sample", "pool_position", "scale", "bn_eps", "bn_momentum")
    chosen = {"dimension": t["input.x"].dim() - 2, **{n: options[n] for n in known if options.get(n) is not None}}
    out = call(
        "non_local_block", {"x": t["input.x"]}, parameters, training=bn == "train",
        in_channels=options.get("in_channels", t["input.x"].shape[1]), bn=bn != "none", **chosen,
    )  # fmt: skip
    statistics = {f"output.{n}": parameters[f"norm.{n}"] for n in ("running_mean", "running_var") if bn == "train"}
    return {"output.out": out, **statistics}
