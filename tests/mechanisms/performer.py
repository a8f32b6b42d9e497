"""Performer: the function with each kind of features, its recurrence, the layer."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, random_mask
from tests.mechanisms.favor import draw

QKV = {"B": 2, "H": 2, "Hk": 2, "N": 6, "M": 6, "D": 4, "Dv": 3, "R": 5}
SMALL = {"B": 1, "N": 3, "M": 3, "D": 2, "Dv": 2, "R": 3}
LAYER = {"embed_dim": 8, "num_heads": 2, "nb_features": 6}
DRAWN: Any = {"projection": draw}

CASES = [
    Case("performer_attention", {**QKV, "M": 9}, given=("key_mask", "projection"), make=DRAWN, mask="key_mask", gradcheck={**SMALL, "M": 4}),
    Case("performer_attention", QKV, {"causal": True}, given=("projection",), make=DRAWN, causal=True, gradcheck=SMALL),
    Case("performer_attention", QKV, {"causal": True, "features": "hyperbolic", "eps": 1e-3, "denominator": "add", "denominator_eps": 1e-6},
         given=("projection",), make=DRAWN, causal=True, gradcheck=SMALL),
    Case("performer_attention", {**QKV, "H": 4, "M": 9}, {"stabilizer": "sequence", "eps": 1e-4, "denominator_eps": 1e-4, "scale": 0.4},
         given=("key_mask", "projection"), make=DRAWN, mask="key_mask", name="grouped", gradcheck=SMALL),
    Case("performer_attention", QKV, {"stabilizer": "sequence", "features": "hyperbolic", "causal": True, "denominator": "add_to_keys",
         "denominator_eps": 1e-6}, given=("key_mask", "projection"), make=DRAWN, mask="key_mask", gradcheck=SMALL),
    Case("performer_attention", QKV, {"stabilizer": "none", "renormalize": False}, given=("key_mask", "projection"), make=DRAWN, mask="key_mask",
         gradcheck=SMALL),
    Case("performer_attention", {**QKV, "H": 4, "M": 9}, {"memory": "minimal", "chunk": 2}, given=("key_mask", "projection"), make=DRAWN,
         mask="key_mask", gradcheck={**SMALL, "M": 4}),
    Case("performer_attention", QKV, {"memory": "minimal", "chunk": 4, "causal": True, "features": "hyperbolic", "eps": 1e-3},
         given=("projection",), make=DRAWN, causal=True, gradcheck=SMALL),
    Case("performer_multihead_attention", {"B": 2, "N": 6, "E": 8}, {**LAYER, "bias": True, "causal": True, "rotation": "givens"}, causal=True,
         gradcheck={"B": 1, "N": 3}),
    Case("performer_multihead_attention", {"B": 2, "N": 6, "E": 8}, {**LAYER, "memory": "minimal", "chunk": 4},
         given=("key_mask",), make={"key_mask": random_mask("N", 0.7)}, mask="key_mask", hidden_is_zero=False,
         gradcheck={"B": 1, "N": 3}),
    Case("performer_multihead_attention", {"B": 2, "N": 6, "M": 5, "E": 8}, {**LAYER, "head_dim": 3, "context_dim": 6, "features": "hyperbolic",
         "orthogonal": False}, given=("context", "key_mask"), name="cross",
         make={"context": lambda s, g: torch.randn(s["B"], s["M"], 6, generator=g, dtype=torch.float64),
               "key_mask": random_mask("M", 0.7)},
         mask="key_mask", hidden_is_zero=False, gradcheck={"B": 1, "N": 3, "M": 2}),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases are of the authors' code, which looks at the whole sequence, or of the recurrence, whose state they record after every token."""
    inputs = {n.removeprefix("input."): x for n, x in t.items() if n.startswith("input.")}
    if "mask" in inputs:
        inputs["key_mask"] = inputs.pop("mask").bool()
    denominator = options.get("denominator", {})
    chosen = {n: options[n] for n in ("features", "eps", "causal", "renormalize", "nb_features", "orthogonal") if options.get(n) is not None}
    if chosen.get("features") == "hyperbolic":
        chosen.pop("eps", None)  # fast-transformers adds it to the denominator alone
    chosen["row_norm"] = "sqrt_dim" if options.get("ortho_scaling") == 1 else "gaussian"
    chosen["denominator"] = "add" if denominator.get("kind") == "add" else "guard"
    chosen["denominator_eps"] = 0.0 if denominator.get("kind") == "none" else denominator.get("eps", 0.0)
    if not options.get("normalize_data", True):
        chosen["scale"] = 1.0
    if options.get("streaming"):
        return _recurrence(inputs, **chosen)
    whole = options.get("features", "positive") == "positive" or options.get("stabilize", False)
    return {"output.out": call("performer_attention", inputs, **chosen, stabilizer="sequence" if whole else "none")}


def _recurrence(inputs: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """Token by token."""
    state, outs, states = None, [], []
    for i in range(inputs["q"].shape[2]):
        piece = {n: x if n == "projection" else x[:, i : i + 1] if n == "key_mask" else x[:, :, i : i + 1] for n, x in inputs.items()}
        out, state = call("performer_attention", {**piece, "state": state}, step=True, **options)
        outs.append(out)
        states.append(state)
    S, z, top = (torch.stack(x, 2) for x in zip(*states, strict=True))
    return {"output.out": torch.cat(outs, 2), "output.state_S": S, "output.state_z": z, "output.state_max": top.unsqueeze(-1)}
