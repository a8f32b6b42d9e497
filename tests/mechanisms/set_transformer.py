"""Set Transformer: blocks of set attention and the model of them."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, published

SETS = {"make": {"x": lambda s, g: torch.randn(s["B"], s["N"], s["E"], generator=g, dtype=torch.float64)}}
X = {"B": 2, "N": 7, "E": 3}
SMALL = {"B": 1, "N": 3}
BLOCK = {"dim": 8, "num_heads": 2}
MASKED = {"given": ("key_mask",), "mask": "key_mask", "hidden_is_zero": False}

CASES = [
    Case("mab", {"B": 2, "N": 5, "M": 7, "E": 3, "F": 4}, {"query_dim": 3, "key_dim": 4, **BLOCK}, **MASKED, gradcheck={"B": 1, "N": 2, "M": 3},
         make={**SETS["make"], "y": lambda s, g: torch.randn(s["B"], s["M"], s["F"], generator=g, dtype=torch.float64)}),
    Case("sab", X, {"in_dim": 3, **BLOCK, "layer_norm": True, "scale_per_head": True}, **SETS, gradcheck=SMALL),
    Case("sab", X, {"in_dim": 3, **BLOCK}, **SETS, **MASKED, name="masked", gradcheck=SMALL),
    Case("isab", X, {"in_dim": 3, **BLOCK, "num_inducing": 4}, **SETS, **MASKED, gradcheck=SMALL),
    Case("pma", {**X, "E": 8}, {**BLOCK, "num_seeds": 2, "layer_norm": True}, **SETS, **MASKED, gradcheck=SMALL),
    Case("pma", {**X, "E": 8}, {**BLOCK, "num_seeds": 5}, **SETS, **MASKED, name="many", gradcheck=SMALL),
    Case("latent_isab", X, {"dim": 3, "num_heads": 2, "head_dim": 4, "num_latents": 3, "latent_self_attend": True}, **SETS, **MASKED,
         gradcheck=SMALL),
    Case("latent_isab", X, {"dim": 3, "num_heads": 2, "head_dim": 4, "num_latents": 3, "inverted_attention": True}, **SETS, given=("key_mask",),
         mask="key_mask", gradcheck=SMALL),
    Case("set_transformer", X, {"in_dim": 3, "out_dim": 2, **BLOCK, "num_inducing": 3, "num_seeds": 2, "layer_norm": True}, **SETS, **MASKED,
         gradcheck=SMALL),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases write wq, bq, ... in each MAB, `i` and `s` for learned points; isab_pma is ISAB, then PMA."""
    inputs = {name.removeprefix("input."): x for name, x in t.items() if name.startswith("input.")}
    inputs |= {name: x.bool() for name, x in inputs.items() if name.endswith("mask")}
    block = options["block"]
    if block == "latent_isab":
        chosen = {n: options.get(n, False) for n in ("latent_self_attend", "inverted_attention")}
        out, latents = call(block, inputs, published(block, t), dim=inputs["x"].shape[-1], num_heads=options["heads"], **chosen)
        return {"output.out": out, "output.latents": latents}
    width = next(x for n, x in t.items() if n.startswith("param.") and n.split(".")[-1] == "wo").shape[0]
    chosen = {"dim": width, "num_heads": options["heads"], "layer_norm": options.get("layer_norm", False), "eps": options.get("eps", 1e-5)}
    if block == "isab_pma":
        masks = {n: x for n, x in inputs.items() if n == "key_mask"}
        encoded = call("isab", inputs, published("isab", t, below="isab."), **chosen)
        return {"output.out": call("pma", {"x": encoded, **masks}, published("pma", t, below="pma."), **chosen)}
    return {"output.out": call(block, inputs, published(block, t), **chosen)}
