"""The non-local block without embeddings or softmax."""

from typing import Any

from torch import Tensor

from tests.contract import Case, call, published

MAP = {"B": 2, "C": 6, "H": 4, "W": 5}
MORE: Any = {"length": ("H", "W"), "gradcheck": {"B": 1, "H": 2, "W": 3}}

CASES = [
    Case("light_non_local_block", MAP, {"in_channels": 6, "ratio": 0.5}, **MORE),
    Case("light_non_local_block", MAP, {"in_channels": 6, "stride": 2, "normalize": "w_over_h"}, exported_from=4, **MORE),
]


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases keep the names of the port's state."""
    form = "light_non_local_block"
    parameters = published(form, t, "meijieru/yet_another_mobilenet_series")
    known = {"in_channels": "n_feature", "ratio": "nl_c", "stride": "nl_s"}
    chosen = {ours: options[theirs] for ours, theirs in known.items()} | {n: options[n] for n in ("normalize", "bn_eps", "bn_momentum")}
    out = call(form, {"x": t["input.x"]}, parameters, training=options["training"], **chosen)
    return {"output.out": out, **{f"output.new.bn.{n}": parameters[f"norm.{n}"] for n in ("running_mean", "running_var")}}
