"""SCRAM: PatchMatch, then attention around the matches."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, random_mask


def _matches(sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    return torch.randint(0, sizes["M"], (sizes["B"], sizes["H"], sizes["N"]), generator=generator)


def _past_matches(sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    u = torch.rand(sizes["B"], sizes["H"], sizes["N"], generator=generator)
    return (u * (torch.arange(sizes["N"]) + 1)).long()


def _search(sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    return torch.rand(3, 2, sizes["B"], sizes["H"], sizes["N"], 2, generator=generator, dtype=torch.float64) * 2 - 1


LINE = {"B": 2, "H": 2, "N": 10, "M": 10, "D": 4, "Dv": 3}
IMAGE = {"B": 2, "H": 2, "N": 12, "M": 12, "D": 4, "Dv": 3}
SEARCH = {"iterations": 3, "search_levels": 2}
GRIDS = {"query_grid": [3, 4], "key_grid": [3, 4]}
DRAWS = ("init_match", "search")
MAKE: Any = {"init_match": _matches, "search": _search, "key_mask": random_mask("M")}
CAUSAL: Any = {"make": {**MAKE, "init_match": _past_matches}, "causal": True, "given": DRAWS}
FIXED: Any = {"length": (), "lengths_fixed": "grids are options"}

CASES = [
    Case("scram_attention", LINE, SEARCH, given=DRAWS, make=MAKE, gradcheck={"B": 1, "N": 6, "M": 6}),
    Case("scram_attention", {**LINE, "M": 7}, {**SEARCH, "propagation": "scan", "scale": 0.7, "key_radius": 2}, name="masked",
         given=(*DRAWS, "key_mask"), make=MAKE, mask="key_mask", gradcheck={"B": 1, "N": 6, "M": 6}),
    Case("scram_attention", IMAGE, {**SEARCH, **GRIDS}, name="image", given=DRAWS, make=MAKE, **FIXED, gradcheck={"B": 1}),
    Case("scram_attention", {**IMAGE, "M": 10}, {**SEARCH, "query_grid": [4, 3], "key_grid": [2, 5], "query_radius": 0, "propagation": "scan"},
         name="two images", given=DRAWS, make=MAKE, **FIXED, gradcheck={"B": 1}),
    Case("scram_attention", IMAGE, {**SEARCH, **GRIDS, "causal": True}, name="raster", **CAUSAL, **FIXED, gradcheck={"B": 1}),
    Case("scram_attention", IMAGE, {**SEARCH, **GRIDS, "causal": True, "propagation": "scan"}, name="raster", **CAUSAL, **FIXED,
         gradcheck={"B": 1}),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Options and inputs have our names."""
    inputs = {name.removeprefix("input."): x for name, x in t.items()}
    out, match, size = call("scram_attention", inputs, **options)
    return {"output.out": out, "output.match": match, "output.support_size": size}
