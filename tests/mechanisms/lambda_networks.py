"""Lambda layers: contexts that become linear maps."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, published

QKV = {"B": 2, "H": 2, "N": 8, "M": 8, "K": 3, "V": 4, "U": 2, "R": 3}
MAP = {"B": 2, "H": 4, "W": 5}


def _map(side: str = "W") -> Any:
    return {
        "x": lambda s, g: torch.randn(s["B"], 6, s["H"], s[side], generator=g, dtype=torch.float64),
        "mask": lambda s, g: torch.rand(s["B"], s["H"], s[side], generator=g) < 0.8,
    }


CASES = [
    Case("lambda_attention", {**QKV, "M": 7}, given=("table", "key_mask"), mask="key_mask", gradcheck={"B": 1, "N": 3, "M": 4}),
    Case("lambda_attention", QKV, {"causal": True, "key_norm": "context"}, given=("taps",), causal=True, gradcheck={"B": 1, "N": 4, "M": 4}),
    Case("lambda_attention", QKV, {"causal": True}, given=("table",), name="leaks", gradcheck={"B": 1, "N": 3, "M": 3}),
    Case("lambda_attention", QKV, given=("table", "context_mask"), mask="context_mask", gradcheck={"B": 1, "N": 3, "M": 3}, name="masked"),
    Case("lambda_attention", QKV, {"key_norm": "context"}, given=("context_mask",), mask="context_mask", gradcheck={"B": 1, "N": 3, "M": 3}),
    Case("lambda_layer", MAP, {"in_channels": 6, "dim_k": 3, "r": 3, "num_heads": 2, "dim_u": 2}, given=("mask",), make=_map(),
         length=("H", "W"), gradcheck={"B": 1, "H": 2, "W": 3}),
    Case("lambda_layer", {"B": 2, "H": 4}, {"in_channels": 6, "dim_k": 3, "n": 4, "num_heads": 2, "out_channels": 4}, make=_map("H"),
         length=(), lengths_fixed="maps are n by n", gradcheck={"B": 1}, name="global"),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases write 1x1 maps as matrices; those of a stream hold its last state."""
    if options["level"] == "module":
        t = {n: x[..., None, None] if n in ("param.wq", "param.wk", "param.wv") else x for n, x in t.items()}
        x, heads, U = t["input.x"], options["heads"], options["dim_u"]
        chosen = {"in_channels": x.shape[1], "out_channels": t["param.wv"].shape[0] // U * heads, "num_heads": heads}
        chosen |= {n: options[n] for n in ("dim_k", "dim_u", "n", "r")}
        out = call("lambda_layer", {"x": x}, published("lambda_layer", t), training=options["training"], **chosen)
        return {"output.out": out}
    inputs = {n.removeprefix("input."): x.bool() if n.endswith("mask") else x for n, x in t.items() if n.startswith("input.")}
    inputs |= {ours: t[f"param.{theirs}"] for ours, theirs in (("table", "e"), ("taps", "e_rel")) if f"param.{theirs}" in t}
    chosen = {n: options[n] for n in ("key_norm", "causal")}
    if "taps" not in inputs:
        return {"output.out": call("lambda_attention", inputs, **chosen)}
    _, (maximum, z, s, _) = call("lambda_attention", inputs, step=True, **chosen)
    return {"output.out": call("lambda_attention", inputs, **chosen), "output.state_max": maximum, "output.state_z": z, "output.state_s": s}
