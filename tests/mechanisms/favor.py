"""FAVOR: the function with each kind of features, the layer."""

from typing import Any

import torch
from torch import Tensor

import foveate
from tests.contract import Case, call, random_mask

QKV = {"B": 2, "H": 2, "Hk": 2, "N": 6, "M": 6, "D": 4, "Dv": 3, "R": 5}
SMALL = {"B": 1, "N": 3, "M": 3, "D": 2, "Dv": 2, "R": 3}
LAYER = {"embed_dim": 8, "num_heads": 2}


def small(*names: str) -> Any:
    """Small q, k: the denominators of trigonometric features keep away from zero."""
    shapes = {"q": ("B", "H", "N", "D"), "k": ("B", "Hk", "M", "D")}
    return {n: lambda s, g, letters=shapes[n]: 0.4 * torch.randn(*(s[x] for x in letters), generator=g, dtype=torch.float64) for n in names}


def draw(s: Any, g: torch.Generator) -> Tensor:
    return foveate.random_projection(s["R"], s["D"], generator=g, dtype=torch.float64)


DRAWN: Any = {"projection": draw, "phase": lambda s, g: 6.28 * torch.rand(s["R"], generator=g, dtype=torch.float64)}
TRIGONOMETRIC = {**QKV, "R": 40}

CASES = [
    Case("favor_attention", {**QKV, "M": 9}, given=("key_mask",), mask="key_mask", gradcheck={**SMALL, "M": 4}),
    Case("favor_attention", QKV, {"kernel_fn": "sigmoid", "causal": True}, given=("projection",), make=DRAWN, causal=True, gradcheck=SMALL),
    Case("favor_attention", TRIGONOMETRIC, {"features": "sincos", "causal": True}, given=("projection",), make=DRAWN | small("q", "k"), causal=True,
         gradcheck={**SMALL, "R": 20}),
    Case("favor_attention", {**TRIGONOMETRIC, "H": 4, "M": 9}, {"features": "cos_phase", "stabilizer": "sequence"},
         given=("key_mask", "projection", "phase"), make=DRAWN | small("q", "k"), mask="key_mask", name="grouped", gradcheck={**SMALL, "R": 20}),
    Case("favor_attention", {**TRIGONOMETRIC, "M": 9}, {"features": "cos_phase", "causal": True, "stabilizer": "none", "renormalize": False},
         given=("key_mask", "projection", "phase"), make=DRAWN | small("q", "k"), mask="key_mask", name="unnormalised",
         gradcheck={**SMALL, "R": 20}),
    Case("favor_attention", {**TRIGONOMETRIC, "M": 9}, {"features": "sincos", "memory": "minimal", "chunk": 4}, given=("projection",),
         make=DRAWN | small("q", "k"), gradcheck={**SMALL, "R": 20}),
    Case("favor_multihead_attention", {"B": 2, "N": 6, "E": 8}, {**LAYER, "memory": "minimal", "chunk": 4, "causal": True}, causal=True,
         gradcheck={"B": 1, "N": 3}),
    Case("favor_multihead_attention", {"B": 2, "N": 6, "E": 8}, {**LAYER, "nb_features": 6, "normalize_data": True, "divide_by_root": True,
         "causal": True}, causal=True, gradcheck={"B": 1, "N": 3}),
    Case("favor_multihead_attention", {"B": 2, "N": 6, "M": 5, "E": 8}, {**LAYER, "head_dim": 3, "context_dim": 6, "bias": False,
         "features": "sincos", "nb_features": 40, "row_norm": "sqrt_dim"}, given=("context", "key_mask"), name="cross",
         make={"context": lambda s, g: torch.randn(s["B"], s["M"], 6, generator=g, dtype=torch.float64),
               "key_mask": random_mask("M", 0.7)},
         mask="key_mask", hidden_is_zero=False, gradcheck={"B": 1, "N": 3, "M": 2}),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases are of the authors' code: their stabiliser, requ for relu_squared, a denominator of kind guard or none."""
    inputs = {n.removeprefix("input."): x for n, x in t.items() if n.startswith("input.")}
    if "mask" in inputs:
        inputs["key_mask"] = inputs.pop("mask").bool()
    names = ("features", "kernel_epsilon", "causal", "normalize_data", "renormalize", "nb_features")
    chosen = {n: options[n] for n in names if n in options} | {"stabilizer": "sequence"}
    if "kernel_fn" in options:
        chosen["kernel_fn"] = {"requ": "relu_squared"}.get(options["kernel_fn"], options["kernel_fn"])
    denominator = options.get("denominator", {})
    chosen["numerical_stabilizer"] = 0.0 if denominator.get("kind") == "none" else denominator.get("eps")
    return {"output.out": call("favor_attention", inputs, **chosen)}
