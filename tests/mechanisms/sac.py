"""SAC: attention along edges, given or named by an LSTM."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, Maker, call, published, random_mask


def _edges(lists: str, count: int) -> Maker:
    """So many edges, some of them the same; all within the length."""

    def make(sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
        return torch.randint(0, sizes["N"], (sizes["B"], sizes.get(lists, 1), count, 2), generator=generator)

    return make


def _noise(lists: int, alpha: int) -> Maker:
    def make(sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
        shape = sizes["B"], lists, 2 * alpha * sizes["N"], sizes["N"]
        return -(-torch.rand(shape, generator=generator, dtype=torch.float64).log()).log()

    return make


def _predicted(sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    return torch.randint(0, sizes["N"], (sizes["B"], 1, 2 * sizes["N"], 2), generator=generator)


SIZES = {"B": 2, "H": 2, "N": 8, "D": 4, "Dv": 3}
X = {"B": 2, "N": 6, "E": 6}
LAYER = {"embed_dim": 6, "num_heads": 2, "lstm_hidden": 4, "max_distance": 2}
SMALL = {"B": 1, "N": 4}
DRAWN: Any = {"length": (), "lengths_fixed": "as many steps are drawn as the length says, times a number"}
KEY_MASK: Any = {"key_mask": random_mask("N")}
SHARED: Any = {"edges": _edges("", 12)}
OF_HEADS: Any = {"edges": _edges("H", 12)}

CASES = [
    Case("edge_attention", SIZES, make=SHARED, gradcheck=SMALL),
    Case("edge_attention", SIZES, {"undirected": True, "scale": 0.7}, name="masked", given=("key_mask",), make=OF_HEADS | KEY_MASK, mask="key_mask",
         gradcheck=SMALL),
    Case("edge_attention", SIZES, {"undirected": True, "causal": True}, make=SHARED, causal=True, gradcheck=SMALL),
    Case("edge_attention", SIZES, {"self_loops": False}, make=OF_HEADS, gradcheck=SMALL),
    Case("sparse_adaptive_connection", X, {**LAYER, "alpha": 2, "undirected": True}, given=("key_mask",), make=KEY_MASK, mask="key_mask",
         gradcheck=SMALL),
    Case("sparse_adaptive_connection", X, {**LAYER, "alpha": 1, "mode": "sample", "source": "given", "causal": True}, given=("noise",),
         make={"noise": _noise(1, 1)}, **DRAWN, gradcheck=SMALL),
    Case("sparse_adaptive_connection", X, {**LAYER, "alpha": 1, "mode": "sample", "head_adaptive": True}, name="heads", given=("noise",),
         make={"noise": _noise(2, 1)}, **DRAWN, gradcheck=SMALL),
    Case("sparse_adaptive_connection", X, {**LAYER, "alpha": 1, "mode": "beam", "beams": 3}, gradcheck=SMALL),
    Case("sparse_adaptive_connection", X, {**LAYER, "alpha": 2}, name="given", given=("edges",), make={"edges": _predicted}, **DRAWN,
         gradcheck=SMALL),
]  # fmt: skip

PREDICTOR = {"Wi": "input", "Wh": "recurrent", "b": "bias", "start": "start", "Wn": "node", "dist": "distance", "head": "head"}


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layer's cases store the gradient of sum advantage log p, too."""
    inputs = {name.removeprefix("input."): x for name, x in t.items() if name.startswith("input.")}
    meaning = {name: options[name] for name in ("undirected", "self_loops", "causal")}
    if options["level"] == "edge_attention":
        out, degree = call("edge_attention", inputs, **meaning)
        return {"output.out": out, "output.degree": degree}
    advantage = inputs.pop("advantage")
    own = {name: x if x.requires_grad else x.clone().requires_grad_() for name, x in t.items() if name.startswith("param.")}
    out, edges, log_prob = call(
        "sparse_adaptive_connection",
        inputs,
        published("sparse_adaptive_connection", own),
        embed_dim=inputs["x"].shape[-1],
        num_heads=options["heads"],
        **meaning,
        **{name: options[name] for name in ("alpha", "mode", "source", "head_adaptive", "max_distance", "lstm_hidden")},
    )
    names = [name for name in PREDICTOR if f"param.{name}" in own]
    gradients = torch.autograd.grad((advantage * log_prob).sum(), [own[f"param.{name}"] for name in names], retain_graph=True, allow_unused=True)
    found = {"output.out": out, "output.edges": edges, "output.edge_log_prob": log_prob}
    for name, gradient in zip(names, gradients, strict=True):
        found[f"output.policy_grad.{name}"] = torch.zeros_like(own[f"param.{name}"]) if gradient is None else gradient
    return found
