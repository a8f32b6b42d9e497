"""Attention through landmarks, as a function and a layer."""

from typing import Any

from torch import Tensor

from tests.contract import Case, call, published

QKV = {"B": 2, "H": 2, "N": 14, "M": 14, "D": 4, "Dv": 3}
SMALL = {"B": 1, "N": 5, "M": 5}
X = {"B": 2, "N": 14, "E": 8}
FEW: Any = {"smallest": 1, "exported_from": 5}  # with fewer tokens than landmarks the attention is exact: another graph
LAYER = {"embed_dim": 8, "num_heads": 2, "num_landmarks": 4}

CASES = [
    Case("nystrom_attention", QKV, {"num_landmarks": 4}, given=("key_mask", "query_mask"), mask="key_mask", gradcheck=SMALL, **FEW),
    Case("nystrom_attention", {**QKV, "M": 9}, {"num_landmarks": 3, "inverse_init": "original", "masking": "keys", "scale": 0.7},
         given=("key_mask", "query_mask"), mask="key_mask", gradcheck=SMALL, **FEW),
    Case("nystrom_attention", QKV, {"num_landmarks": 4, "inverse_init": "global_both", "segments": "left_padded", "masking": "counted",
         "exact_when_short": False, "conv_kernel_size": 3, "num_heads": 2}, given=("key_mask", "query_mask"), mask="key_mask", gradcheck=SMALL),
    Case("nystrom_attention", {**QKV, "M": 9}, {"num_landmarks": 4, "segments": "left_padded", "exact_when_short": False}, gradcheck=SMALL),
    Case("nystrom_attention", QKV, {"num_landmarks": 4, "masking": "counted"}, given=("key_mask",), mask="key_mask", gradcheck=SMALL, **FEW),
    Case("nystromformer", X, {**LAYER, "conv_kernel_size": 5}, given=("key_mask",), mask="key_mask", hidden_is_zero=False,
         gradcheck={"B": 1, "N": 5}, **FEW),
    Case("nystromformer", X, {**LAYER, "head_dim": 3, "bias": False, "value_residual": True, "pinv_iterations": 4},
         gradcheck={"B": 1, "N": 5}, **FEW),
    Case("nystromformer", X, {**LAYER, "out_projection": False, "masking": "keys"}, given=("key_mask",), mask="key_mask", gradcheck={"B": 1, "N": 5},
         **FEW),
]  # fmt: skip


# What each published module is, in our options.
MODULES: dict[str, dict[str, Any]] = {
    "hf": {"masking": "keys", "out_projection": False},
    "lucidrains": {"masking": "counted", "segments": "left_padded", "exact_when_short": False, "bias": False},
    "t2t": {"exact_when_short": False, "value_residual": True, "bias": False},
}


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases have one mask for queries and keys, and a filter [H,K] a head."""
    t = {name: x[:, None, :, None] if name == "param.conv" else x for name, x in t.items()}
    inputs = {name.removeprefix("input."): x for name, x in t.items() if name.startswith("input.") and name != "input.mask"}
    form = "nystrom_attention" if options["level"] == "function" else "nystromformer"
    if "input.mask" in t:
        inputs["key_mask"] = t["input.mask"].bool()
        if form == "nystrom_attention":
            inputs["query_mask"] = inputs["key_mask"]
    common = {n: options[n] for n in ("num_landmarks", "pinv_iterations", "conv_kernel_size", "scale") if n in options}
    common["inverse_init"] = options.get("init", "original")
    if form == "nystrom_attention":
        return {"output.out": call(form, inputs, published(form, t), **common)}
    layer = {"embed_dim": inputs["x"].shape[-1], "num_heads": options["heads"], "head_dim": t["param.wq"].shape[0] // options["heads"]}
    return {"output.out": call(form, inputs, published(form, t), **common, **layer, **MODULES[options["module"]])}
