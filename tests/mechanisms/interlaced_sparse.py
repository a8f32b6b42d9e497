"""Interlaced sparse self-attention: long range, then short range."""

from typing import Any

from torch import Tensor

from tests.contract import Case, call, published

MAP = {"B": 2, "C": 4, "H": 4, "W": 6}
MORE: Any = {"length": ("H", "W"), "gradcheck": {"B": 1, "H": 2, "W": 3}}
TILED: Any = MORE | {"length": (), "lengths_fixed": "the map is padded to whole tiles, sizes that torch.export cannot compare"}
WIDTHS = {"in_channels": 4, "key_channels": 3, "value_channels": 5, "out_channels": 6}

CASES = [
    Case("interlaced_self_attention", MAP, {**WIDTHS, "negative_slope": 0.01}, given=("mask",), **MORE),
    Case("interlaced_sparse_block", MAP, {**WIDTHS, "dh": 2, "dw": 4}, **TILED),
    Case("interlaced_sparse_block", MAP, {**WIDTHS, "dh": 3, "dw": 2, "mask_padding": True}, given=("mask",), **TILED),
    Case("interlaced_sparse_block", MAP, {**WIDTHS, "dh": 1, "dw": 2, "causal": True}, **TILED),
    Case("interlaced_sparse_module", MAP, {**WIDTHS, "factors": [2, 2, 3, 4]}, **TILED),
    Case("interlaced_sparse_module", MAP, {**WIDTHS, "factors": [2, 3]}, given=("mask",), name="one", **TILED),
]

SOURCE = "openseg-group/openseg.pytorch"
FORMS = {"sa": "interlaced_self_attention", "block": "interlaced_sparse_block", "module": "interlaced_sparse_module"}


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases keep the names of the original's state."""
    form = FORMS[options["module"]]
    parameters = published(form, t, SOURCE)
    chosen = {n: options[n] for n in ("in_channels", "key_channels", "value_channels", "out_channels", "bn_eps", "bn_momentum")}
    if form == "interlaced_sparse_block":
        chosen |= {"dh": options["down_factor"][0], "dw": options["down_factor"][1], "causal": options.get("causal", False)}
    elif form == "interlaced_sparse_module":
        chosen |= {"factors": [d for pair in options["down_factor"] for d in pair], "dropout": options["dropout"]}
    out = call(form, {"x": t["input.x"]}, parameters, training=options["training"], **chosen)
    return {"output.out": out, **{n.replace("param.", "output.new."): x for n, x in t.items() if "running" in n}}  # as the call left them
