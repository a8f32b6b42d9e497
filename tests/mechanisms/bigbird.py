"""BigBird: window, random and global blocks, as a function, a layer, by DeepSpeed's layout."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, published

QKV = {"B": 2, "H": 2, "N": 30, "D": 4, "Dv": 3}
SMALL = {"B": 1, "H": 2, "N": 6, "D": 2, "Dv": 2}
X = {"B": 2, "N": 30, "E": 8}
LAYER = {"embed_dim": 8, "num_heads": 2, "block": 4, "num_random_blocks": 2}
FIXED: dict[str, Any] = {"length": (), "lengths_fixed": "random_blocks has a row for each block of one length"}


def _mask(*letters: str) -> Any:
    return lambda s, g: torch.rand([s[letter] for letter in letters], generator=g) < 0.8


def _table(block: int, count: int, missing: int = 2, front: int = 0, heads: int = 2) -> Any:
    """Any blocks, twice the same and those of the window included."""

    def make(sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
        blocks = -(-(sizes["N"] - front) // block)
        return torch.randint(blocks, (heads, max(0, blocks - missing), count), generator=generator)

    return make


MASKED: dict[str, Any] = {"given": ("key_mask",), "make": {"key_mask": _mask("B", "N")}, "mask": "key_mask"}
DRAWN: dict[str, Any] = {"given": ("key_mask", "random_blocks"), "mask": "key_mask", **FIXED}

CASES = [
    Case("big_bird_attention", QKV, {"block": 4, "num_random_blocks": 2}, **DRAWN, gradcheck=SMALL,
         make={"key_mask": _mask("B", "N"), "random_blocks": _table(4, 2)}),
    Case("big_bird_attention", QKV, {"block": 3, "repeats": False, "scale": 0.4, "num_window_blocks": 5}, **DRAWN, gradcheck=SMALL,
         make={"key_mask": _mask("B", "N"), "random_blocks": _table(3, 2)}),
    Case("big_bird_attention", QKV, {"block": 4, "seed": 3}, name="seed", **MASKED, exported_from=8, gradcheck=SMALL),
    Case("big_bird_attention", QKV, {"block": 4, "draw": "zero"}, **MASKED, exported_from=8, gradcheck=SMALL),
    Case("big_bird_attention", QKV, {"block": 4, "num_random_blocks": 0}, name="no random blocks", gradcheck=SMALL),
    Case("big_bird_attention", QKV, {"block": 4, "full_up_to": 40}, name="full", length=(), gradcheck=SMALL,
         lengths_fixed="the length decides whether it is attended in full"),
    Case("big_bird_attention", QKV, {"construction": "etc", "block": 4, "num_extra_globals": 3}, **DRAWN, gradcheck=SMALL,
         make={"key_mask": _mask("B", "N"), "random_blocks": _table(4, 2, missing=0, front=3)}),
    Case("big_bird_attention", QKV, {"construction": "etc", "block": 4, "num_extra_globals": 3, "seed": 0, "random_range": 4}, name="seed", **MASKED,
         exported_from=11, gradcheck=SMALL),
    Case("big_bird_attention", QKV, {"construction": "etc", "block": 4, "num_extra_globals": 5, "num_random_blocks": 0}, name="no random blocks",
         **MASKED, gradcheck=SMALL),
    Case("big_bird_self_attention", X, LAYER, **MASKED, exported_from=8, gradcheck={"B": 1, "N": 4}),
    Case("big_bird_self_attention", X, {**LAYER, "use_bias": False, "num_random_blocks": 1}, **DRAWN, gradcheck={"B": 1, "N": 4},
         make={"key_mask": _mask("B", "N"), "random_blocks": _table(4, 1)}),
    Case("big_bird_block_attention", QKV, {"block": 4, "num_random_blocks": 2, "seed": 1, "different_layout_per_head": True}, given=("key_mask",),
         make={"key_mask": _mask("B", "N")}, mask="key_mask", exported_from=8, gradcheck=SMALL),
    Case("big_bird_block_attention", QKV, {"block": 4, "num_random_blocks": 2, "seed": 1, "attention": "unidirectional", "causal": True}, causal=True,
         exported_from=8, gradcheck=SMALL),
    Case("big_bird_block_attention", QKV, {"block": 5, "num_global_blocks": 0, "num_sliding_window_blocks": 1}, given=("mask", "random_blocks"),
         make={"mask": _mask("N", "N"), "random_blocks": _table(5, 2, missing=0, heads=1)}, mask="mask", **FIXED, gradcheck=SMALL),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """`variant`: deepspeed is a form of its own; itc and etc are constructions, of q, k, v or of a layer."""
    inputs = {name.removeprefix("input."): x for name, x in t.items() if name.startswith("input.")}
    for theirs, ours in (("key_padding_mask", "key_mask"), ("attn_mask", "mask")):
        if theirs in inputs:
            inputs[ours] = inputs.pop(theirs)
    if "random_blocks" in inputs and inputs["random_blocks"].shape[-1] == 0:
        del inputs["random_blocks"]
        options = {**options, "num_random_blocks": 0}
    given = {name: value for name, value in options.items() if value is not None}
    if options["variant"] == "deepspeed":
        names = (
            "block",
            "different_layout_per_head",
            "num_random_blocks",
            "num_sliding_window_blocks",
            "num_global_blocks",
            "attention",
            "causal",
            "scale",
        )
        if "random_blocks" not in inputs:
            given["num_random_blocks"] = 0
        out, layout = call("big_bird_block_attention", inputs, **{n: given[n] for n in names if n in given})
        return {"output.out": out, "output.layout": layout}
    names = ("block", "num_random_blocks", "num_window_blocks", "num_extra_globals", "scale", "repeats")
    chosen = {"construction": options["variant"], **{n: given[n] for n in names if n in given}}
    if "q" in inputs:
        return {"output.out": call("big_bird_attention", inputs, **chosen)}
    parameters = published("big_bird_self_attention", t)
    size = {"embed_dim": inputs["x"].shape[-1], "num_heads": options["num_heads"], "use_bias": "query.bias" in parameters}
    return {"output.out": call("big_bird_self_attention", inputs, parameters, **chosen, **size)}
