"""Permutohedral attention: the filter, the lattice and the module for maps."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, all_but_last, call, published

POINTS = {"B": 2, "H": 2, "N": 15, "D": 3, "Dv": 4}
SMALL = {"B": 1, "H": 1, "N": 5}
MASK: Any = {"key_mask": all_but_last("N", 3)}


def _block(*axes: str, batch: int = 2, **options: Any) -> Case:
    sizes = {"B": batch, "L": 9, "H": 4, "W": 5, "T": 3}
    return Case(
        "permutohedral_attention", {n: sizes[n] for n in ("B", *axes)}, {"in_features": 4, "dimension": len(axes), **options}, length=axes,
        make={"x": lambda s, g: torch.randn(s["B"], 4, *(s[a] for a in axes), generator=g, dtype=torch.float64)},
        gradcheck={"B": 1, "H": 2, "W": 2, "T": 2}, name=f"{len(axes)}d",
    )  # fmt: skip


CASES = [
    Case("lattice_filter", POINTS, given=("key_mask",), make=MASK, mask="key_mask", gradcheck=SMALL),
    Case("lattice_filter", POINTS, {"share_lattice": True}, gradcheck=SMALL),
    Case("lattice_filter", {**POINTS, "D": 5}, {"normalize": "row"}, given=("key_mask",), make=MASK, mask="key_mask", gradcheck=SMALL),
    Case("lattice_filter", {**POINTS, "D": 2}, {"normalize": "symmetric"}, given=("key_mask",), make=MASK, mask="key_mask", gradcheck=SMALL),
    Case("permutohedral_simplex", POINTS, gradcheck=SMALL),
    _block("H", "W", out_features=3),
    _block("L", filter_features=1, n_split=1, normalize="row"),
    _block("T", "H", "W", filter_features=3, share_lattice=True, normalize="symmetric"),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """`level` is the form; the authors' code shares the lattice unless told otherwise."""
    chosen = {"normalize": options.get("normalize", "none"), "share_lattice": options.get("share_lattice", True)}
    if options["level"] == "pam":
        x = t["input.x"]
        parameters = published("permutohedral_attention", t, "SamuelJoutard/Permutohedral_attention_module")
        sizes = {n: options[n] for n in ("in_features", "filter_features", "out_features", "n_split")}
        return {"output.out": call("permutohedral_attention", {"x": x}, parameters, dimension=x.dim() - 2, **sizes, **chosen)}
    features, values = t["input.feat"].unsqueeze(1), t["input.value"].unsqueeze(1)
    out = call("lattice_filter", {"features": features, "values": values}, **chosen)
    ones = call("lattice_filter", {"features": features, "values": torch.ones_like(values[..., :1])}, share_lattice=chosen["share_lattice"])
    barycentric, _, rank = call("permutohedral_simplex", {"features": features})
    kernel = torch.exp(-0.5 * (features.unsqueeze(3) - features.unsqueeze(2)).square().sum(-1))
    outputs = {"out": out, "barycentric": barycentric, "rank": rank, "lattice_ones": ones, "gaussian_sum": kernel @ values}
    return {f"output.{n}": x.squeeze(1) for n, x in outputs.items()}
