"""SMYRF: sorted, cut into asymmetric clusters, rounds merged."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call


def _lines(sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    return torch.randn(sizes["D"] + 2, sizes["R"], generator=generator, dtype=torch.float64)


def _kept(sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    return torch.rand(*(sizes[letter] for letter in "BHRNL"), generator=generator) < 0.8


SIZES = {"B": 2, "H": 2, "N": 12, "M": 12, "D": 4, "Dv": 3, "R": 2}
DRAWS = ("alpha", "beta")
CLUSTERS: Any = {"exported_from": 6}  # two clusters
SMALL = {"B": 1, "N": 7, "M": 7, "D": 3, "Dv": 2}

CASES = [
    Case("smyrf_attention", SIZES, {"n_hashes": 2, "q_cluster_size": 4, "k_cluster_size": 4}, given=DRAWS, make={"alpha": _lines},
         **CLUSTERS, gradcheck=SMALL),
    Case("smyrf_attention", SIZES, {"n_hashes": 2, "q_cluster_size": 5, "k_cluster_size": 5, "scale": 1.0}, name="masked",
         given=(*DRAWS, "key_mask", "query_mask"), make={"alpha": _lines}, mask="key_mask", **CLUSTERS, gradcheck=SMALL),
    Case("smyrf_attention", {**SIZES, "M": 25, "L": 7}, {"n_hashes": 2, "q_cluster_size": 3, "k_cluster_size": 7, "dropout": 0.2}, name="unequal",
         given=(*DRAWS, "dropout_keep"), make={"alpha": _lines, "dropout_keep": _kept}, length=(),
         lengths_fixed="queries and keys need equally many clusters", gradcheck={"B": 1}),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases have one mask for queries and keys, aliases of the cluster sizes, and divide by `norm_factor`."""
    inputs = {name.removeprefix("input."): x for name, x in t.items()}
    if (mask := inputs.pop("mask", None)) is not None:
        inputs |= {"key_mask": mask.bool(), "query_mask": mask.bool()}
    out, q_order, k_order = call(
        "smyrf_attention",
        inputs,
        n_hashes=options["n_hashes"],
        q_cluster_size=options.get("q_attn_size") or options["q_cluster_size"],
        k_cluster_size=options.get("k_attn_size") or options["k_cluster_size"],
        scale=1 / options.get("norm_factor", 1.0),
        r=float(options.get("r", 1)),
        dropout=options.get("dropout", 0.0),
    )
    return {"output.out": out, "output.q_order": q_order, "output.k_order": k_order}
