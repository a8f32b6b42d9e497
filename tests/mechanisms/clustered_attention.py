"""Clustered attention, plain and improved: queries of a cluster share an attention, or the choice of keys."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, random_mask


def _planes(sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    return torch.randn(12, sizes["D"] + 1, generator=generator, dtype=torch.float64)


def _seeds(sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    return torch.arange(3) * max(sizes["N"] // 3, 1) % sizes["N"]


def _codes(sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    return torch.rand(9, 3, 12, generator=generator) < 0.5


SIZES = {"B": 2, "H": 2, "N": 12, "M": 12, "D": 4, "Dv": 3}
DRAWS = ("planes", "init_centroids")
MAKE: Any = {"planes": _planes, "init_centroids": _seeds, "empty_codes": _codes, "key_mask": random_mask("M"), "query_mask": random_mask("N"),
             "dropout_seed": lambda s, g: torch.tensor(7)}  # fmt: skip
MASKS = ("key_mask", "query_mask")
SMALL = {"B": 1, "N": 7, "M": 7, "D": 3, "Dv": 2}
HASHED: Any = {"make": MAKE, "gradcheck": SMALL}
CUT = "the mass of a cluster's largest keys is a constant where it multiplies them"

CASES = [
    Case("clustered_attention", SIZES, {"clusters": 3}, given=DRAWS, **HASHED),
    Case("clustered_attention", {**SIZES, "M": 9}, {"clusters": 3, "iterations": 4, "hash_bias": False, "scale": 0.7}, name="masked",
         given=(*DRAWS, *MASKS, "empty_codes"), mask="key_mask", **HASHED),
    Case("clustered_attention", SIZES, {"clusters": 3, "dropout": 0.3}, name="dropped", given=(*DRAWS, "dropout_seed"), **HASHED),
    Case("improved_clustered_attention", SIZES, {"clusters": 3, "topk": 4, "full_gradient": True}, given=DRAWS, **HASHED),
    Case("improved_clustered_attention", {**SIZES, "M": 9}, {"clusters": 3, "topk": 3}, name="masked", given=(*DRAWS, *MASKS), mask="key_mask",
         cut=CUT, **HASHED),
    Case("improved_clustered_attention", SIZES, {"clusters": 3, "topk": 5, "dropout": 0.3, "full_gradient": True}, name="dropped",
         given=(*DRAWS, "dropout_seed"), **HASHED),
    Case("improved_clustered_causal_attention", SIZES, {"clusters": 3, "topk": 5}, given=DRAWS, **HASHED),
    Case("improved_clustered_causal_attention", SIZES, {"clusters": 3, "topk": 5, "dropout": 0.3}, name="masked",
         given=(*DRAWS, *MASKS, "dropout_seed"), mask="key_mask", **HASHED),
]  # fmt: skip

FORMS = {
    "clustered": "clustered_attention",
    "improved": "improved_clustered_attention",
    "improved_causal": "improved_clustered_causal_attention",
}


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases say how long sequences are."""
    inputs = {name.removeprefix("input."): x for name, x in t.items()}
    for lengths, mask, like in (("query_lengths", "query_mask", "q"), ("key_lengths", "key_mask", "k")):
        if (count := inputs.pop(lengths, None)) is not None:
            inputs[mask] = torch.arange(inputs[like].shape[2]) < count[:, None]
    refined = {} if options["kind"] == "clustered" else {"topk": options.get("topk") or 32}
    out, groups, counts = call(
        FORMS[options["kind"]],
        inputs,
        clusters=options["clusters"],
        iterations=options.get("iterations", 10),
        bits=options.get("bits", 32),
        hash_bias=options.get("hash_bias", True),
        scale=options.get("softmax_temp"),
        **refined,
    )
    return {"output.out": out, "output.groups": groups, "output.counts": counts}
