"""Random feature attention: the function, its gate, the layer."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, published, random_mask

QKV = {"B": 2, "H": 2, "N": 6, "M": 6, "D": 4, "Dv": 3, "R": 7}
SMALL = {"B": 1, "N": 3, "M": 3, "D": 2, "Dv": 2, "R": 3}
LAYER = {"embed_dim": 8, "num_heads": 2, "proj_dim": 5, "pool_size": 3}
X = {"B": 2, "N": 6, "E": 8}
W = ("random_matrices",)


def _gate(sizes: Any, generator: torch.Generator) -> Tensor:
    return 0.1 + 0.8 * torch.rand(sizes["B"], sizes["H"], sizes["M"], generator=generator, dtype=torch.float64)


CASES = [
    Case("random_feature_attention", {**QKV, "M": 9}, {"denominator_eps": 0.5}, given=(*W, "key_mask", "sigma"), mask="key_mask",
         gradcheck={**SMALL, "M": 4}),
    Case("random_feature_attention", QKV, {"causal": True, "tau": 0.8, "denominator": "clamp", "denominator_eps": 1.0, "feature_scale": 0.3,
         "norm_eps": 1e-3}, given=W, causal=True, gradcheck=SMALL),
    Case("random_feature_attention", QKV, {"causal": True}, given=(*W, "gate"), make={"gate": _gate}, causal=True, name="gated", gradcheck=SMALL),
    Case("random_feature_attention", QKV, {"causal": True, "feature_map": "arccos", "denominator_eps": 0.1}, given=(*W, "gate", "key_mask"),
         make={"gate": _gate}, mask="key_mask", name="gated", gradcheck=SMALL),
    Case("random_feature_attention", {**QKV, "M": 9}, {"denominator_eps": 0.5}, given=(*W, "mask", "key_mask"), mask="mask", name="pairs",
         make={"mask": lambda s, g: torch.rand(s["N"], s["M"], generator=g) < 0.7}, gradcheck=SMALL),
    Case("rfa", X, {**LAYER, "causal": True, "gated": True}, causal=True, gradcheck={"B": 1, "N": 3}),
    Case("rfa", X, {**LAYER, "causal": True, "feature_map": "arccos", "reparam_proj": False, "draw": "orf", "denominator": "clamp",
         "denominator_eps": 1.0}, causal=True, gradcheck={"B": 1, "N": 3}),
    Case("rfa", {**X, "M": 5}, {**LAYER, "context_dim": 6, "pool_size": 0, "denominator_eps": 0.5}, given=("context", "key_mask", *W), name="cross",
         make={"context": lambda s, g: torch.randn(s["B"], s["M"], 6, generator=g, dtype=torch.float64),
               "key_mask": random_mask("M", 0.7),
               "random_matrices": lambda s, g: torch.randn(2, 5, 4, generator=g, dtype=torch.float64)},
         mask="key_mask", hidden_is_zero=False, gradcheck={"B": 1, "N": 3, "M": 2}),
]  # fmt: skip

OPTIONS = ("causal", "tau", "feature_map", "feature_scale", "norm_eps", "denominator", "denominator_eps", "proj_dim")


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases name the mask `mask`; the states recorded are those after all keys."""
    inputs = {name.removeprefix("input."): x for name, x in t.items() if name.startswith("input.")}
    if "mask" in inputs:
        inputs["key_mask"] = inputs.pop("mask").bool()
    chosen = {n: options[n] for n in OPTIONS if options.get(n) is not None}
    if options.get("level", "function") == "function":
        out = call("random_feature_attention", inputs, **chosen)
        stepped, (S, z, _) = call("random_feature_attention", inputs, step=True, **chosen)
    else:
        parameters = published("rfa", t)
        chosen |= {"embed_dim": inputs["x"].shape[-1], "num_heads": options["num_heads"], "gated": "gate.weight" in parameters}
        chosen |= {"reparam_proj": "sigma" in parameters}
        if "context" in inputs:
            chosen["context_dim"] = inputs["context"].shape[-1]
        out = call("rfa", inputs, parameters, **chosen)
        stepped, (S, z, _) = call("rfa", inputs, parameters, step=True, **chosen)
    torch.testing.assert_close(stepped, out)
    return {"output.out": out, "output.state_S": S, "output.state_z": z}
