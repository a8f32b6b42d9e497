"""Fast-weight programmer: the memory with either update and every feature map, the layer."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, published

QKV = {"B": 2, "H": 2, "N": 6, "M": 6, "D": 4, "Dv": 3, "R": 5}
SMALL = {"B": 1, "N": 3, "M": 3, "D": 2, "Dv": 2, "R": 2}
LAYER = {"d_model": 8, "n_head": 2}
X = {"B": 2, "N": 6, "E": 8}


def _beta(sizes: Any, generator: torch.Generator) -> Tensor:
    return torch.rand(sizes["B"], sizes["H"], sizes["M"], generator=generator, dtype=torch.float64)


BETA = {"make": {"beta": _beta}}
CASES = [
    Case("fast_weight_attention", QKV, {"feature_map": "dpfp"}, given=("beta",), **BETA, causal=True, gradcheck=SMALL),
    Case("fast_weight_attention", QKV, {"feature_map": "elu+1", "attention_norm": "both", "output_scale": 0.5}, given=("beta",), **BETA, causal=True,
         gradcheck=SMALL),
    Case("fast_weight_attention", QKV, {"feature_map": "favor+", "attention_norm": "both"}, given=("beta", "projection", "key_mask"), **BETA,
         mask="key_mask", name="masked", gradcheck=SMALL),
    Case("fast_weight_attention", {**QKV, "M": 9}, {"feature_map": "elu+1", "causal": False, "attention_norm": "query"}, given=("beta", "key_mask"),
         **BETA, mask="key_mask", name="cross", gradcheck={**SMALL, "M": 4}),
    Case("fast_weight_attention", QKV, {"update": "sum", "feature_map": "dpfp", "nu": 1, "attention_norm": "query"}, causal=True, gradcheck=SMALL),
    Case("fast_weight_layer", X, {**LAYER, "attention_norm": "query", "dropout": 0.25}, causal=True, gradcheck={"B": 1, "N": 3}),
    Case("fast_weight_layer", X, {**LAYER, "feature_map": "favor+", "m": 5, "attention_norm": "both"}, causal=True, gradcheck={"B": 1, "N": 3}),
    Case("fast_weight_layer", X, {**LAYER, "d_head": 3, "update": "sum", "feature_map": "elu+1", "pre_lnorm": True, "dropout": 0.25},
         given=("key_mask", "dropout_keep"), name="masked", gradcheck={"B": 1, "N": 3}),
]  # fmt: skip

OPTIONS = ("update", "feature_map", "nu", "sum_norm", "attention_norm", "eps", "output_scale", "kernel_eps")


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases record the final memory; one starts from a memory of its own."""
    inputs = {name.removeprefix("input."): x for name, x in t.items() if name.startswith("input.")}
    if "mask" in inputs:
        inputs["key_mask"] = inputs.pop("mask").bool()
    chosen = {n: options[n] for n in OPTIONS if options.get(n) is not None}
    S, z, projection = inputs.pop("state_S", None), inputs.pop("state_z", None), inputs.get("projection")
    state = None if S is None else [S, z, S.new_empty(0, 0) if projection is None else projection]
    if options.get("level", "function") == "function":
        if chosen.get("update") == "sum":
            inputs.pop("beta", None)
        form, parameters = "fast_weight_attention", {}
    else:
        form, parameters = "fast_weight_layer", published("fast_weight_layer", t, "IDSIA/lmtool-fwp")
        if projection is not None:
            parameters["projection"] = inputs.pop("projection")
        chosen |= {"d_model": inputs["x"].shape[-1]} | {n: options[n] for n in ("n_head", "d_head", "pre_lnorm") if options.get(n) is not None}
    out, (S, z, _) = call(form, {**inputs, "state": state}, parameters, step=True, **chosen)
    if state is None:
        torch.testing.assert_close(out, call(form, inputs, parameters, **chosen))
    return {"output.out": out, "output.state_S": S, "output.state_z": z}
