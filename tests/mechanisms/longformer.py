"""Longformer: windows and global tokens, as a function, a layer, by blocks."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, published

QKV = {"B": 2, "H": 2, "N": 21, "D": 4, "Dv": 3}
SMALL = {"B": 1, "H": 2, "N": 6, "D": 2, "Dv": 2}
X = {"B": 2, "N": 19, "E": 8}
LAYER = {"embed_dim": 8, "num_heads": 2, "window": 3}


def _mask(*letters: str) -> Any:
    return lambda s, g: torch.rand([s[letter] for letter in letters], generator=g) < 0.8


def _globals(sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    """Three in the first row, wherever they fall; others have fewer."""
    mask = torch.zeros(sizes["B"], sizes["N"], dtype=torch.bool)
    for row in range(sizes["B"]):
        mask[row, torch.randperm(sizes["N"], generator=generator)[: max(0, 3 - 2 * row)]] = True
    return mask


GLOBALS: dict[str, Any] = {"given": ("key_mask", "global_mask"), "make": {"key_mask": _mask("B", "N"), "global_mask": _globals}, "mask": "key_mask"}
MASKED: dict[str, Any] = {"given": ("key_mask",), "make": {"key_mask": _mask("B", "N")}, "mask": "key_mask"}
OWN = ("q_global", "k_global", "v_global")

CASES = [
    Case("longformer_attention", QKV, {"window": 3}, name="local", **MASKED, gradcheck=SMALL),
    Case("longformer_attention", QKV, {"window": 2}, name="globals", **GLOBALS, gradcheck=SMALL),
    Case("longformer_attention", QKV, {"window": 2, "max_globals": 2, "dilation": [1, 3], "scale": 0.3}, name="few globals",
         **{**GLOBALS, "given": (*GLOBALS["given"], *OWN)}, exported_from=3, gradcheck=SMALL),
    Case("longformer_attention", QKV, {"window": 2, "global_tokens": 3}, name="first tokens", **{**MASKED, "given": ("key_mask", *OWN)},
         exported_from=5, gradcheck=SMALL),
    Case("longformer_attention", QKV, {"window": 2, "dilation": [1, 3], "causal": True}, causal=True, gradcheck=SMALL),
    Case("longformer_attention", QKV, {"window": 2, "global_tokens": 3, "causal": True}, name="first tokens", causal=True, given=OWN,
         exported_from=5, gradcheck=SMALL),
    Case("longformer_attention", QKV, {"window": 2, "causal": True}, name="causal globals", **GLOBALS, gradcheck=SMALL),
    Case("longformer_attention", QKV, {"window": 2, "max_globals": 3, "causal": True}, name="few causal globals", **GLOBALS, exported_from=4,
         gradcheck=SMALL),
    Case("longformer_attention", QKV, {"window": 4, "window_kind": "chunks"}, **MASKED, gradcheck=SMALL),
    Case("longformer_attention", QKV, {"window": 4, "window_kind": "chunks_as_released"}, **GLOBALS, gradcheck=SMALL),
    Case("longformer_self_attention", X, LAYER, name="local", **MASKED, gradcheck={"B": 1, "N": 4}),
    Case("longformer_self_attention", X, LAYER, name="globals", **GLOBALS, gradcheck={"B": 1, "N": 4}),
    Case("longformer_self_attention", X, {**LAYER, "max_globals": 3, "output_projection": True}, name="few globals",
         **{**GLOBALS, "mask": ""}, exported_from=4, gradcheck={"B": 1, "N": 4}),
    Case("longformer_self_attention", X, {**LAYER, "dilation": [1, 2], "causal": True, "global_tokens": 2}, causal=True, exported_from=4,
         gradcheck={"B": 1, "N": 4}),
    Case("longformer_block_attention", QKV, {"block": 4}, **MASKED, exported_from=8, gradcheck=SMALL),
    Case("longformer_block_attention", QKV, {"block": 3, "num_sliding_window_blocks": 2, "global_block_indices": [0, 3],
         "global_block_end_indices": [1, 5], "attention": "unidirectional", "causal": True}, causal=True, exported_from=6, gradcheck=SMALL),
    Case("longformer_block_attention", QKV, {"block": 5, "attention": "unidirectional"}, given=("mask",), make={"mask": _mask("N", "N")},
         mask="mask", exported_from=10, gradcheck=SMALL),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """`block`: DeepSpeed's layout; `input.q`: the function; else the layer."""
    inputs = {name.removeprefix("input."): x for name, x in t.items() if name.startswith("input.")}
    inputs["key_mask"] = inputs.pop("key_padding_mask", None)
    inputs = {name: x for name, x in inputs.items() if x is not None}
    if "block" in options:
        layout = inputs.pop("layout", None)
        if "attn_mask" in inputs:
            inputs["mask"] = inputs.pop("attn_mask")
        names = ("block", "num_sliding_window_blocks", "global_block_indices", "global_block_end_indices", "attention", "causal", "scale")
        out, made = call("longformer_block_attention", inputs, **{n: options[n] for n in names if options.get(n) is not None})
        assert layout is None or torch.equal(layout.bool(), made), "the options do not generate the stored layout"
        return {"output.out": out, "output.layout": made}
    chosen = {n: options[n] for n in ("window", "causal", "scale", "global_tokens", "max_globals", "window_kind") if n in options}
    dilation = options.get("dilation", 1)
    chosen["dilation"] = [dilation] if isinstance(dilation, int) else list(dilation)
    if "q" in inputs:
        return {"output.out": call("longformer_attention", inputs, **chosen)}
    parameters = published("longformer_self_attention", t)
    size = {"embed_dim": inputs["x"].shape[-1], "num_heads": options["num_heads"], "output_projection": "output.weight" in parameters}
    return {"output.out": call("longformer_self_attention", inputs, parameters, **chosen, **size)}
