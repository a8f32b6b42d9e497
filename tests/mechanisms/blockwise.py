"""BlockBERT: attention over permuted blocks, and its layer."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, published

QKV = {"B": 2, "H": 4, "Hk": 2, "N": 11, "D": 4, "Dv": 3}
SMALL = {"B": 1, "H": 2, "Hk": 1, "N": 5, "D": 2, "Dv": 2}


def _keep(n: int, heads: str | int = "H") -> Any:
    def make(s: Any, g: torch.Generator) -> Tensor:
        shape = (s["B"], s[heads] if isinstance(heads, str) else heads, s["N"], -(-s["N"] // n))
        return torch.rand(shape, generator=g) < 0.8

    return {"dropout_keep": make}


def _permutations(n: int) -> Any:
    return {"permutations": lambda s, g: torch.rand(s["H"], n, generator=g).argsort(-1)}


CASES = [
    Case("blockwise_attention", {**QKV, "N": 12}, name="even", gradcheck={**SMALL, "N": 4}, exported_from=3),
    Case("blockwise_attention", QKV, {"num_blocks": 3, "heads_per_permutation": [2, 1, 1]}, given=("key_mask",), mask="key_mask",
         gradcheck={"B": 1, "N": 5, "D": 2, "Dv": 2}, exported_from=4),
    Case("blockwise_attention", QKV, {"num_blocks": 4, "scale": 0.3, "dropout": 0.2}, given=("permutations", "dropout_keep"),
         make=_permutations(4) | _keep(4), name="drawn", gradcheck=SMALL, length=(), lengths_fixed="dropout_keep has a place for each key"),
    Case("blockwise_multihead_attention", {"B": 2, "N": 7, "E": 8}, {"embed_dim": 8, "num_heads": 4, "heads_per_permutation": [3, 1]},
         given=("key_mask",), mask="key_mask", hidden_is_zero=False, gradcheck={"B": 1, "N": 3}, exported_from=3),
    Case("blockwise_multihead_attention", {"B": 2, "N": 6, "E": 8}, {"embed_dim": 8, "num_heads": 2, "num_blocks": 3, "bias": False, "dropout": 0.5},
         given=("dropout_keep",), make=_keep(3, 2), name="drawn", gradcheck={"B": 1, "N": 3}, length=(),
         lengths_fixed="dropout_keep has a place for each key"),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """The table of permutations decides where it is given, else the numbers of heads."""
    chosen = {"num_blocks": options["num_blocks"]} | {n: options[n] for n in ("scale",) if options.get(n) is not None}
    table = t.get("input.permutations")
    if table is None:
        chosen["heads_per_permutation"] = options["heads_per_permutation"]
    masks = {"key_mask": t["input.key_padding_mask"].bool()} if "input.key_padding_mask" in t else {}
    if "input.x" not in t:
        tables = {} if table is None else {"permutations": table}
        return {"output.out": call("blockwise_attention", {n: t[f"input.{n}"] for n in "qkv"} | tables | masks, **chosen)}
    parameters = published("blockwise_multihead_attention", t)
    if table is None:
        n = options["num_blocks"]
        shifts = [shift for shift, count in enumerate(options["heads_per_permutation"]) for _ in range(count)]
        table = torch.tensor([[(b + shift) % n for b in range(n)] for shift in shifts])
    parameters["permutations"] = table
    sizes = {"embed_dim": t["input.x"].shape[-1], "num_heads": options["num_heads"]}
    return {"output.out": call("blockwise_multihead_attention", {"x": t["input.x"]} | masks, parameters, **sizes, **chosen)}
