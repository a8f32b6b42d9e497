"""ETC: a long and a global stream, as attention and as a stack of layers."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, published

SIZES = {"B": 2, "N": 13, "G": 3, "E": 8, "F": 8}
SMALL = {"B": 1, "N": 5, "G": 2}
RADIUS = 2
LAYER = {"embed_dim": 8, "num_heads": 2, "local_radius": RADIUS}
LABELS = 7


def _mask(*letters: str) -> Any:
    """Mostly True; U stands for the neighbours of a token."""
    return lambda s, g: torch.rand([{"U": 2 * RADIUS + 1, **s}[letter] for letter in letters], generator=g) < 0.8


def _ids(*letters: str) -> Any:
    return lambda s, g: torch.randint(LABELS, [{"U": 2 * RADIUS + 1, **s}[letter] for letter in letters], generator=g)


_PIECES = {"l2l": "BNU", "l2g": "BNG", "g2g": "BGG", "g2l": "BGN"}
_MAKE = {f"{p}_mask": _mask(*letters) for p, letters in _PIECES.items()} | {f"{p}_ids": _ids(*letters) for p, letters in _PIECES.items()}
IDS: dict[str, Any] = {"given": tuple(f"{p}_ids" for p in _PIECES), "make": _MAKE}
ALL: dict[str, Any] = {"given": (*(f"{p}_mask" for p in _PIECES), *IDS["given"]), "make": _MAKE}
PADDED: dict[str, Any] = {"given": ("long_key_mask", "global_key_mask")}

CASES = [
    Case("global_local_attention", SIZES, LAYER, name="plain", **PADDED, gradcheck=SMALL),
    Case("global_local_attention", SIZES, {**LAYER, "relative_vocab_size": LABELS}, name="labels and masks", **ALL, exported_from=3, gradcheck=SMALL),
    Case("global_local_attention", SIZES, {**LAYER, "relative_vocab_size": LABELS, "share_qkv": True}, name="labels", **IDS, exported_from=3,
         gradcheck=SMALL),
    Case("global_local_attention", {**SIZES, "F": 6}, {**LAYER, "global_dim": 6, "attention_dim": 10}, name="widths", **PADDED, gradcheck=SMALL),
    Case("global_local_attention", SIZES, {**LAYER, "relative_vocab_size": LABELS, "max_distance": 2, "share_kv": True, "share_out": True},
         name="distances", given=("long_key_mask", "g2l_mask"), make=_MAKE, exported_from=3, gradcheck=SMALL),
    Case("global_local_transformer_layers", SIZES, {**LAYER, "num_layers": 2, "inner_dim": 6, "relative_vocab_size": LABELS}, **ALL, exported_from=3,
         gradcheck=SMALL),
    Case("global_local_transformer_layers", SIZES, {**LAYER, "num_layers": 1, "inner_dim": 6, "pre_activation": True,
         "share_feed_forward_params": False, "share_qkv": False}, **PADDED, gradcheck=SMALL),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Both streams of the result stand one behind the other."""
    inputs = {name.removeprefix("input."): x for name, x in t.items() if name.startswith("input.")}
    layered = "num_layers" in options
    form = "global_local_transformer_layers" if layered else "global_local_attention"
    parameters = published(form, t)
    inputs["long_input"], inputs["global_input"] = inputs.pop("long"), inputs.pop("global")
    names = (
        "num_heads",
        "local_radius",
        "relative_vocab_size",
        "share_qkv",
        "share_kv",
        "share_out",
        "num_layers",
        "pre_activation",
        "layer_norm_eps",
    )
    chosen = {n: options[n] for n in names if options.get(n) is not None}
    prefix = "layers.0.attention." if layered else ""
    chosen |= {"embed_dim": inputs["long_input"].shape[-1], "attention_dim": len(parameters[f"{prefix}long_query.weight"])}
    if inputs["global_input"].shape[-1] != chosen["embed_dim"]:
        chosen["global_dim"] = inputs["global_input"].shape[-1]
    if layered:
        chosen |= {"inner_dim": options["ff"]}
    outputs = call(form, inputs, parameters, **chosen)
    return {"output.out": torch.cat(list(outputs), 1)}
