"""Positions rebuilt from bases."""

from typing import Any

from torch import Tensor

from tests.contract import Case, call, published

MAP = {"B": 2, "C": 6, "H": 4, "W": 5}
MORE: Any = {"length": ("H", "W"), "gradcheck": {"B": 1, "H": 2, "W": 3}}

CASES = [
    Case("emau", MAP, {"in_channels": 6, "num_bases": 3}, cut="none passes the rounds of expectation-maximisation", **MORE),
    Case("emau", MAP, {"in_channels": 6, "num_bases": 4, "grad_through_em": True, "iterations": 2}, given=("mask",), **MORE),
]


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases keep the names of the original's state; the bases are updated by training, and by a formula elsewhere."""
    parameters = published("emau", t, "XiaLiPKU/EMANet")
    before, training = parameters["bases"].clone(), options["training"]
    known = {"in_channels": "c", "num_bases": "k", "iterations": "stage_num", "momentum": "em_mom"}
    chosen = {ours: options[theirs] for ours, theirs in known.items()} | {n: options[n] for n in ("bn_eps", "bn_momentum", "norm_eps")}
    chosen["grad_through_em"] = options.get("grad_through_em", False)
    out, mu = call("emau", {"x": t["input.x"]}, parameters, training=training, **chosen)
    m = options["em_mom"]
    results = {"output.out": out, "output.mu": mu, **{f"output.new.conv2.1.{n}": parameters[f"norm.{n}"] for n in ("running_mean", "running_var")}}
    return results | {"output.mu_updated": parameters["bases"] if training else m * before + (1 - m) * mu.mean(0, keepdim=True)}
