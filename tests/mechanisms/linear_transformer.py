"""Linear Transformer: the function, its recurrence, the layer."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, published, random_mask

QKV = {"B": 2, "H": 2, "Hk": 2, "N": 6, "M": 6, "D": 4, "Dv": 3}
SMALL = {"B": 1, "N": 3, "M": 3, "D": 2, "Dv": 2}
LAYER = {"d_model": 8, "n_heads": 2}

CASES = [
    Case("linear_transformer_attention", {**QKV, "M": 9}, given=("key_mask",), mask="key_mask", gradcheck={**SMALL, "M": 4}),
    Case("linear_transformer_attention", QKV, {"causal": True}, causal=True, gradcheck=SMALL),
    Case("linear_transformer_attention", {**QKV, "H": 4, "N": 9}, {"causal": True, "feature_map": "exp"}, given=("key_mask",), mask="key_mask",
         name="grouped", gradcheck=SMALL),
    Case("linear_transformer", {"B": 2, "N": 6, "E": 8}, {**LAYER, "d_keys": 3, "d_values": 5, "causal": True}, causal=True,
         gradcheck={"B": 1, "N": 3}),
    Case("linear_transformer", {"B": 2, "N": 6, "M": 5, "E": 8}, {**LAYER, "d_model_keys": 6}, given=("context", "key_mask"), name="cross",
         make={"context": lambda s, g: torch.randn(s["B"], s["M"], 6, generator=g, dtype=torch.float64),
               "key_mask": random_mask("M", 0.7)},
         mask="key_mask", hidden_is_zero=False, gradcheck={"B": 1, "N": 3, "M": 2}),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases name the mask `mask` and the weights `<name>_projection`; recurrent ones record the state after every token."""
    inputs = {name.removeprefix("input."): x for name, x in t.items() if name.startswith("input.")}
    if "mask" in inputs:
        inputs["key_mask"] = inputs.pop("mask").bool()
    level = options.get("level", "function")
    chosen = {n: options[n] for n in ("causal", "feature_map", "eps") if n in options}
    if level == "layer":
        parameters = published("linear_transformer", t, "idiap/fast-transformers")
        chosen |= {n: options[n] for n in ("n_heads", "d_keys", "d_values", "d_model_keys") if options.get(n) is not None}
        return {"output.out": call("linear_transformer", inputs, parameters, d_model=inputs["x"].shape[-1], **chosen)}
    if level == "function":
        return {"output.out": call("linear_transformer_attention", inputs, **chosen)}
    return _recurrence(inputs, cross=level == "recurrent_cross", **chosen)


def _recurrence(inputs: dict[str, Tensor], cross: bool, **options: Any) -> dict[str, Tensor]:
    """Token by token. Across sequences, the memory is given with the first query, and its sums are kept."""
    q, k, v, mask = (inputs.get(n) for n in ("q", "k", "v", "key_mask"))
    options["causal"] = not cross
    state, outs, sums = None, [], []
    for i in range(q.shape[2]):
        now = slice(None) if cross and i == 0 else slice(0) if cross else slice(i, i + 1)
        piece = {"q": q[:, :, i : i + 1], "k": k[:, :, now], "v": v[:, :, now]} | ({} if mask is None else {"key_mask": mask[:, now]})
        out, state = call("linear_transformer_attention", {**piece, "state": state}, step=True, **options)
        outs.append(out)
        sums.append(state)
    S, z = sums[0] if cross else (torch.stack(x, 2) for x in zip(*sums, strict=True))
    return {"output.out": torch.cat(outs, 2), "output.state_S": S, "output.state_Z": z}
