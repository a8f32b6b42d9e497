"""Star-Transformer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call

SIZES = {"B": 2, "N": 9, "E": 6}
ENCODER = {"embed_dim": 6, "num_layers": 2, "num_heads": 2, "head_dim": 4, "dropout": 0}
SMALL = {"B": 1, "N": 3}

CASES = [
    Case("star_transformer", SIZES, ENCODER, gradcheck=SMALL),
    Case("star_transformer", SIZES, ENCODER, name="padded", given=("key_mask",), mask="key_mask", gradcheck=SMALL),
    Case("star_transformer", SIZES, {**ENCODER, "mask_ring": False, "mask_mean": False, "max_len": 4096, "dropout": 0.25},
         given=("key_mask", "dropout_keep"), mask="key_mask", gradcheck=SMALL),
]  # fmt: skip


def parameters(original: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of fastNLP's StarTransformer, 1x1 convolutions, under our names."""
    found = {}
    for name, x in original.items():
        kind, *path = name.split(".")
        if kind == "pos_emb":
            found["positions"] = x
        elif kind == "norm":
            found[f"cycles.{path[0]}.norm.{path[1]}"] = x
        else:
            projection = {"WQ": "query", "WK": "key", "WV": "value", "WO": "out"}[path[1]]
            group = {"ring_att": "ring", "star_att": "star"}[kind]
            found[f"cycles.{path[0]}.{group}.{projection}.{path[2]}"] = x.flatten(1) if path[2] == "weight" else x
    return found


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Satellites, then the relay, in one tensor. The authors' code masks neither the ring nor the mean."""
    names = {"hidden_size": "embed_dim", "num_head": "num_heads"}
    known = ("hidden_size", "num_layers", "num_head", "head_dim", "max_len")
    chosen = {names.get(n, n): options[n] for n in known if options.get(n) is not None}
    masked = {n: options.get(n, False) for n in ("mask_ring", "mask_mean")}
    inputs = {"x": t["input.x"]} | ({"key_mask": t["input.key_padding_mask"]} if "input.key_padding_mask" in t else {})
    own = parameters({n.removeprefix("param."): x for n, x in t.items() if n.startswith("param.")})
    satellites, relay = call("star_transformer", inputs, own, **chosen, **masked)
    return {"output.out": torch.cat([satellites, relay.unsqueeze(1)], 1)}
