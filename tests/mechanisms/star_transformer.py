"""Star-Transformer."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, published

SIZES = {"B": 2, "N": 9, "E": 6}
ENCODER = {"embed_dim": 6, "num_layers": 2, "num_heads": 2, "head_dim": 4, "dropout": 0}
SMALL = {"B": 1, "N": 3}

CASES = [
    Case("star_transformer", SIZES, ENCODER, gradcheck=SMALL),
    Case("star_transformer", SIZES, ENCODER, name="padded", given=("key_mask",), mask="key_mask", gradcheck=SMALL),
    Case("star_transformer", SIZES, {**ENCODER, "mask_ring": False, "mask_mean": False, "max_len": 4096, "dropout": 0.25},
         given=("key_mask", "dropout_keep"), mask="key_mask", gradcheck=SMALL),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Satellites, then the relay, in one tensor. The authors' code masks neither the ring nor the mean."""
    names = {"hidden_size": "embed_dim", "num_head": "num_heads"}
    known = ("hidden_size", "num_layers", "num_head", "head_dim", "max_len")
    chosen = {names.get(n, n): options[n] for n in known if options.get(n) is not None}
    masked = {n: options.get(n, False) for n in ("mask_ring", "mask_mean")}
    inputs = {"x": t["input.x"]} | ({"key_mask": t["input.key_padding_mask"]} if "input.key_padding_mask" in t else {})
    own = published("star_transformer", t, "fastnlp/fastNLP")
    satellites, relay = call("star_transformer", inputs, own, **chosen, **masked)
    return {"output.out": torch.cat([satellites, relay.unsqueeze(1)], 1)}
