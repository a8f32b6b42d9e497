"""GMAT: a global memory on sparse attention, as a function, an encoder, a compression."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, published

QKV = {"B": 2, "H": 2, "Hk": 2, "N": 21, "D": 4, "Dv": 3}
SMALL = {"B": 1, "H": 2, "Hk": 1, "N": 7, "D": 2, "Dv": 2}
X = {"B": 2, "N": 13, "E": 8}
MODEL = {"embed_dim": 8, "num_heads": 2, "inner_dim": 6}


def _main(memory: int) -> Any:
    """A mask of the main tokens."""

    def make(sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
        return torch.rand(sizes["B"], sizes["N"] - memory, generator=generator) < 0.8

    return make


CASES = [
    Case("gmat_attention", QKV, {"memory": 3, "chunk": 5}, gradcheck=SMALL),
    Case("gmat_attention", QKV, {"memory": 3, "chunk": 5}, name="masked", given=("key_mask",), make={"key_mask": _main(3)}, length=(),
         lengths_fixed="the mask is shorter than the tokens, which the tests of lengths do not know", gradcheck=SMALL),
    Case("gmat_attention", QKV, {"chunk": 5}, name="no memory", given=("key_mask",), make={"key_mask": _main(0)}, mask="key_mask", gradcheck=SMALL),
    Case("gmat_attention", QKV, {"memory": 4, "sparse": "window", "window": 2, "scale": 0.3}, gradcheck=SMALL),
    Case("gmat_attention", QKV, {"memory": 4, "sparse": "pattern", "pattern": "or(strided(4),sliding_window(1,1))"}, name="any", gradcheck=SMALL),
    Case("gmat_encoder", X, {**MODEL, "num_layers": 2, "memory": 3, "chunk": 4}, given=("key_mask",), gradcheck={"B": 1, "N": 4}),
    Case("gmat_encoder", X, {**MODEL, "num_layers": 1, "memory": 0, "sparse": "window", "window": 2}, name="no memory", gradcheck={"B": 1, "N": 4}),
    Case("gmat_compression", X, {**MODEL, "memory": 3, "chunk": 4, "length": 5000}, given=("key_mask",), gradcheck={"B": 1, "N": 4}),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Layers are numbered; their groups are named as in BERT for short."""
    inputs = {name.removeprefix("input."): x for name, x in t.items() if name.startswith("input.")}
    if "key_padding_mask" in inputs:
        inputs["key_mask"] = inputs.pop("key_padding_mask")
    shared = {n: options[n] for n in ("memory", "sparse", "chunk", "window", "pattern", "scale") if options.get(n) is not None}
    if "q" in inputs:
        return {"output.out": call("gmat_attention", inputs, **shared)}
    form = "gmat_encoder" if "num_layers" in options else "gmat_compression"
    parameters = published(form, t)
    counts = ("num_heads", "layer_norm_eps", "num_layers", "num_compress", "num_memory_layers", "num_decompress")
    shared |= {n: options[n] for n in counts if n in options} | {"embed_dim": inputs["x"].shape[-1], "inner_dim": options["ff"]}
    if form == "gmat_encoder":
        out, memory = call(form, inputs, parameters, **shared)
        return {"output.out": out, "output.memory": memory}
    out, memory = call(form, inputs, parameters, length=len(parameters["position"]), **shared)
    return {"output.out": out, "output.stored_memory": memory}
