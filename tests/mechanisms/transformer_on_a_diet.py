"""Transformer on a Diet: attention to fixed distances, and the encoder."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, published, random_mask

QKV = {"B": 2, "H": 2, "N": 23, "D": 4, "Dv": 3}
SMALL = {"B": 1, "H": 1, "N": 6, "D": 2, "Dv": 2}
SEQUENCE = {"B": 2, "N": 13, "E": 8}
ENCODER = {"embed_dim": 8, "num_heads": 2, "num_layers": 2, "ff_dim": 6}
TINY = {"B": 1, "N": 4}
LENGTHS: Any = {"valid_length": lambda s, g: torch.randint(1, s["N"] + 1, (s["B"],), generator=g)}
KEYS: Any = {"key_mask": random_mask("N")}


IDS: Any = {"ids": lambda s, g: torch.randint(0, 4, (s["B"], s["N"]), generator=g)}


def _keep(layers: int, heads: int) -> Any:
    return {"weight_keep": lambda s, g: torch.rand(layers, s["B"], heads, s["N"], generator=g) < 0.7}


CASES = [
    Case("diet_attention", QKV, {"layer": 1}, causal=True, gradcheck=SMALL),
    Case("diet_attention", QKV, {"pattern": "dilated", "layer": 2}, causal=True, gradcheck=SMALL),
    Case("diet_attention", QKV, {"pattern": "dilated_mem", "layer": 2, "scale": 0.3}, causal=True, gradcheck=SMALL),
    Case("diet_attention", QKV, {"pattern": "full"}, given=("valid_length", "key_mask"), make=LENGTHS | KEYS, mask="valid_length", gradcheck=SMALL),
    Case("diet_attention", QKV, {"weight_dropout": 0.3}, name="drawn", given=("weight_keep", "key_mask"), make=KEYS, mask="key_mask",
         gradcheck=SMALL),
    Case("diet_encoder", SEQUENCE, {**ENCODER, "pattern": "dilated_mem", "use_layer_norm": True}, causal=True, gradcheck=TINY),
    Case("diet_encoder", SEQUENCE, {**ENCODER, "first_window_size": 2, "scaled": False, "positions": "unpaired"}, causal=True, gradcheck=TINY),
    Case("diet_encoder", SEQUENCE, {**ENCODER, "pattern": "dilated", "use_residual": False, "dropout": 0.3, "weight_dropout": 0.3}, name="drawn",
         given=("valid_length", "weight_keep"), make=LENGTHS | _keep(2, 2), mask="valid_length", hidden_is_zero=False, gradcheck=TINY),
    Case("diet_language_model", {"B": 2, "N": 11}, {**ENCODER, "vocab_size": 5}, make=IDS, causal=True, gradcheck=TINY),
    Case("diet_language_model", {"B": 2, "N": 11},
         {**ENCODER, "vocab_size": 5, "pattern": "dilated", "use_layer_norm": True, "dropout": 0.2, "output_dropout": 0.4}, given=("key_mask",),
         make=IDS | KEYS, gradcheck=TINY),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """`level` is the form. The authors' positions are unpaired; their flags are off where they are not given."""
    distances = ("pattern", "kernel_size", "d_base", "first_window_size", "window_size_multiplier")
    chosen = {n: options[n] for n in distances if n in options}
    if options["level"] == "attention":
        q = t["input.q"]
        scale = None if options.get("scaled") else 1.0
        inputs = {n: t[f"input.{n}"] for n in ("q", "k", "v", "valid_length") if f"input.{n}" in t}
        out = call("diet_attention", inputs, layer=options["layer"], scale=scale, **chosen)
        return {"output.out": out, "output.mask": _seen(q.shape[2], layer=options["layer"], **chosen)}
    x = t["input.x"]
    parameters = published("diet_encoder", t, "cgraywang/transformer-on-diet")
    inputs = {n: t[f"input.{n}"] for n in ("x", "valid_length") if f"input.{n}" in t}
    flags = {n: bool(options.get(n, False)) for n in ("scaled", "use_residual", "use_layer_norm")}
    sizes = {"embed_dim": x.shape[-1], "ff_dim": options["hidden_size"], "num_heads": options["num_heads"], "num_layers": options["num_layers"]}
    out = call("diet_encoder", inputs, parameters, training=False, positions="unpaired", **sizes, **flags, **chosen)
    return {"output.out": out, "output.masks": torch.stack([_seen(x.shape[1], layer=layer, **chosen) for layer in range(options["num_layers"])])}


def _seen(n: int, **options: Any) -> Tensor:
    """Which keys each query sees: those whose value it takes."""
    q = torch.zeros(1, 1, n, 1, dtype=torch.float64)
    values = torch.eye(n, dtype=torch.float64)[None, None]
    return (call("diet_attention", {"q": q, "k": q, "v": values}, **options)[0, 0] > 0).long()
