"""Jukebox: every pattern of the grid, the layer, the residual block, the stack."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, published, random_mask

QKV = {"B": 2, "H": 4, "Hk": 2, "N": 26, "M": 26, "D": 4, "Dv": 3}
SMALL = {"B": 1, "H": 2, "Hk": 2, "N": 5, "M": 5, "D": 2, "Dv": 2}
SEQUENCE = {"B": 2, "N": 13, "M": 9, "E": 8}
TINY = {"B": 1, "N": 5, "M": 2}
GRID = {"block_length": 4}
LAYER = {"embed_dim": 8, "num_heads": 2, "attention_dim": 4, **GRID}


def _mask(letter: str) -> Any:
    return {"key_mask": random_mask(letter)}


CASES = [
    Case("jukebox_attention", QKV, GRID, causal=True, gradcheck=SMALL),
    Case("jukebox_attention", QKV, {"pattern": "block", "causal": False, **GRID}, given=("key_mask",), make=_mask("M"), mask="key_mask",
         gradcheck=SMALL),
    Case("jukebox_attention", QKV, {"pattern": "transpose_block", **GRID}, causal=True, gradcheck=SMALL, exported_from=8),
    Case("jukebox_attention", QKV, {"pattern": "transpose_block", "causal": False, **GRID}, given=("key_mask",), make=_mask("M"), mask="key_mask",
         gradcheck=SMALL, exported_from=8),
    Case("jukebox_attention", QKV, {"pattern": "prev_block", **GRID}, causal=True, gradcheck=SMALL),
    Case("jukebox_attention", QKV, {"pattern": "summary", "blocks": 5, **GRID}, causal=True, gradcheck=SMALL, exported_from=8),
    Case("jukebox_attention", QKV, {"pattern": "summary_spread", "spread": 3, "causal": False, **GRID}, given=("key_mask",), make=_mask("M"),
         mask="key_mask", gradcheck=SMALL, exported_from=8),
    Case("jukebox_attention", QKV, {"pattern": "summary_spread", "spread": 2, **GRID}, causal=True, gradcheck=SMALL, exported_from=8),
    Case("jukebox_attention", QKV, {"pattern": "dense"}, causal=True, gradcheck=SMALL),
    Case("jukebox_attention", {**QKV, "M": 7}, {"pattern": "cross"}, gradcheck={**SMALL, "M": 3}),
    Case("jukebox_attention", QKV, {"pattern": "prime", "prime_len": 6}, causal=True, gradcheck=SMALL),
    Case("jukebox_attention", QKV, {"pattern": "prime", "prime_len": 4, "blocks": 3, "prime_rounds_up": True}, name="rounded", given=("key_mask",),
         make=_mask("M"), mask="key_mask", gradcheck=SMALL),
    Case("jukebox_multihead_attention", SEQUENCE, {**LAYER, "pattern": "prev_block"}, causal=True, gradcheck=TINY),
    Case("jukebox_multihead_attention", SEQUENCE, {**LAYER, "pattern": "cross"}, given=("context", "key_mask"), make=_mask("M"), mask="key_mask",
         hidden_is_zero=False, gradcheck=TINY),
    Case("jukebox_block", SEQUENCE, {**LAYER, "pattern": "summary", "inner_dim": 6, "res_scale": 0.5}, causal=True, gradcheck=TINY,
         exported_from=8),
    Case("jukebox_transformer", SEQUENCE, {**LAYER, "num_layers": 4}, causal=True, gradcheck=TINY, exported_from=8),
    Case("jukebox_transformer", SEQUENCE, {**LAYER, "num_layers": 4, "attn_order": 6, "activation": "gelu"}, given=("context", "context_mask"),
         gradcheck=TINY, exported_from=8),
    Case("jukebox_transformer", SEQUENCE, {**LAYER, "num_layers": 3, "patterns": [7, 5, 0], "prime_len": 5, "spread": 2}, causal=True,
         gradcheck=TINY, exported_from=8),
]  # fmt: skip

PATTERNS = ("dense", "block", "transpose_block", "prev_block", "summary", "summary_spread", "cross", "prime")


def grid(options: dict[str, Any], length: int) -> dict[str, Any]:
    """The grid of the authors' code, given by its rows and its length."""
    chosen = {name: options[name] for name in ("pattern", "causal", "spread", "prime_len") if options.get(name) is not None}
    if blocks := options.get("blocks"):
        chosen |= {"blocks": blocks, "block_length": -(-(options.get("context") or length) // blocks), "prime_rounds_up": True}
    return chosen


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cases of q, k, v; of the layer, whole or in chunks; of the stack."""
    if "input.q" in t:
        inputs = {name: t[f"input.{name}"] for name in "qkv"}
        return {"output.out": call("jukebox_attention", inputs, **grid(options, inputs["q"].shape[2]))}
    inputs = {"x": t["input.x"]} | ({"context": t["input.encoder_kv"]} if "input.encoder_kv" in t else {})
    stacked = "patterns" in options
    form = "jukebox_transformer" if stacked else "jukebox_multihead_attention"
    own = published(form, t, "paper" if stacked else "openai/jukebox")
    chosen = grid(options, inputs["x"].shape[1]) | {"embed_dim": inputs["x"].shape[-1], "num_heads": options["heads"]}
    first = "blocks.0.attention." if stacked else ""
    chosen["attention_dim"] = own[f"{first}query.weight"].shape[0]
    if stacked:
        chosen |= {name: options[name] for name in ("res_scale", "activation") if options.get(name) is not None}
        layers = [PATTERNS.index(name) for name in options["patterns"]]
        chosen |= {"patterns": layers, "num_layers": len(layers), "inner_dim": own["blocks.0.feed_forward.up.weight"].shape[0]}
        chosen.pop("pattern", None)
    if "chunks" not in options:
        return {"output.out": call(form, inputs, own, **chosen)}
    state, outputs = None, []
    for chunk in inputs["x"].split(options["chunks"], 1):
        out, state = call(form, {**inputs, "x": chunk, "state": state}, own, step=True, **chosen)
        outputs.append(out)
    assert state is not None
    key, value = (x.transpose(1, 2).flatten(2) for x in state[:2])
    return {"output.out": torch.cat(outputs, 1), "output.cache_key": key, "output.cache_value": value}
