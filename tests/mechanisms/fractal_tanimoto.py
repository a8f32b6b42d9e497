"""FracTAL: gates from the fractal Tanimoto similarity."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, published

MAP = {"B": 2, "C": 4, "H": 4, "W": 5}
MORE: Any = {"length": ("H", "W"), "gradcheck": {"B": 1, "H": 2, "W": 3}}


def _unit(s: Any, g: torch.Generator) -> Tensor:
    return torch.rand(s["B"], s["C"], s["H"], s["W"], generator=g, dtype=torch.float64)


CASES = [
    Case("tanimoto_similarity", MAP, make={"p": _unit, "l": _unit}, **MORE),
    Case("tanimoto_similarity", MAP, {"over": "channels", "depth": 0}, make={"p": _unit, "l": _unit}, **MORE),
    Case("tanimoto_similarity", MAP, {"over": "all", "depth": 2}, make={"p": _unit, "l": _unit}, **MORE),
    Case("fractal_attention", MAP, {"channels": 6, "in_channels": 4, "num_heads": 2, "norm": "group", "norm_groups": 3}, given=("key", "value"),
         **MORE),
    Case("fractal_attention", MAP, {"channels": 4, "depth": 2, "kernel_size": 1}, **MORE),
    Case("fractal_residual_unit", MAP, {"channels": 4, "norm": "layer", "groups": 2}, **MORE),
    Case("fractal_residual_unit", MAP, {"channels": 4}, **MORE),
    Case("fractal_fusion", MAP, {"channels": 4, "norm": "instance"}, **MORE),
    Case("fractal_fusion", MAP, {"channels": 4, "num_heads": 2}, name="heads", **MORE),
]  # fmt: skip

FORMS = {
    "self_attention": "fractal_attention",
    "relative_attention": "fractal_attention",
    "resnet_unit": "fractal_residual_unit",
    "fusion": "fractal_fusion",
}
SOURCE = "feevos/ceecnet"


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases keep the names of the original; where batches are normalised in training, running statistics are not stored."""
    if options["block"] == "similarity":
        over = {(2, 3): "positions", (1,): "channels", (1, 2, 3): "all"}[tuple(options["axis"])]
        chosen = {"over": over, "depth": options["depth"], "smooth": options["smooth"]}
        return {"output.out": call("tanimoto_similarity", {"p": t["input.p"], "l": t["input.l"]}, **chosen)}
    form = FORMS[options["block"]]
    parameters = published(form, t, SOURCE + (", self-attention" if options["block"] == "self_attention" else ""))
    kinds = {"BatchNorm": "batch", "GroupNorm": "group", "InstanceNorm": "instance", "LayerNorm": "layer"}
    if kinds[options["norm"]] == "batch":
        for name in [n.removesuffix("bias") for n, x in parameters.items() if n.endswith("bias") and f"{n.removesuffix('bias')}weight" in parameters]:
            if parameters[f"{name}weight"].dim() == 1 and name != "conv2.":
                parameters.setdefault(f"{name}running_mean", torch.zeros_like(parameters[f"{name}bias"].detach()))
                parameters.setdefault(f"{name}running_var", torch.ones_like(parameters[f"{name}bias"].detach()))
    names = {"q_in": "x", "k_in": "key", "v_in": "value"}
    inputs = {names.get(n.removeprefix("input."), n.removeprefix("input.")): x for n, x in t.items() if n.startswith("input.")}
    chosen = {"channels": options["channels"], "num_heads": options["nheads"], "norm": kinds[options["norm"]], "depth": options["ftdepth"]}
    if options["norm_groups"]:
        chosen["norm_groups"] = options["norm_groups"]
    if form == "fractal_attention":
        chosen["in_channels"] = inputs["x"].shape[1]
    if form == "fractal_residual_unit":
        chosen["groups"] = options["ngroups"]
    return {"output.out": call(form, inputs, parameters, training=options["training"], **chosen)}
