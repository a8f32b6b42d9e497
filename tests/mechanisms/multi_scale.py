"""Multi-scale Transformer: retina attention, and models from coarse to fine, from fine to coarse, and of retina layers."""

from typing import Any

from torch import Tensor

from tests.contract import Case, call, published

QKV = {"B": 2, "H": 2, "Hk": 1, "N": 21, "D": 4, "Dv": 3}
SMALL = {"B": 1, "N": 6, "D": 2, "Dv": 2}
SEQUENCE = {"B": 2, "N": 15, "E": 4}
TINY = {"B": 1, "N": 5}
MODEL = {"embed_dim": 4, "num_heads": 2, "ff_dim": 3}

CASES = [
    Case("retina_attention", QKV, {"scales": [1, 2, 6], "windows": [2, 1]}, causal=True, gradcheck=SMALL, exported_from=7),
    Case("retina_attention", QKV, {"scales": [1, 3], "windows": [1], "log_count": True, "scale": 0.4}, causal=True, gradcheck=SMALL, exported_from=4),
    Case("multi_scale_top_down", SEQUENCE, {**MODEL, "scales": [1, 2, 4], "layers": [1, 1, 1]}, causal=True, gradcheck=TINY, exported_from=5),
    Case("multi_scale_top_down", SEQUENCE, {**MODEL, "scales": [1, 3], "layers": [1, 2], "aggregation": "conv"}, causal=True, gradcheck=TINY,
         exported_from=4),
    Case("multi_scale_bottom_up", SEQUENCE, {**MODEL, "scales": [1, 2, 4], "layers": [1, 1, 1], "local_window": 3}, causal=True, gradcheck=TINY,
         exported_from=5),
    Case("multi_scale_bottom_up", SEQUENCE,
         {**MODEL, "scales": [1, 2, 6], "layers": [2, 1, 0], "local_window": 5, "top_layers": 2, "aggregation": "conv"}, causal=True,
         gradcheck=TINY, exported_from=7),
    Case("multi_scale_retina", SEQUENCE, {**MODEL, "num_layers": 2, "scales": [1, 2, 4], "windows": [1, 1]}, causal=True, gradcheck=TINY,
         exported_from=5),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """`part` is a form: retina_attention, or a model."""
    chosen = {n: options[n] for n in ("scales", "windows", "log_count") if options.get(n) is not None}
    if options["part"] == "retina_attention":
        if options.get("scale") is not None:
            chosen["scale"] = options["scale"]
        return {"output.out": call("retina_attention", {n: t[f"input.{n}"] for n in "qkv"}, **chosen)}
    form = f"multi_scale_{options['part']}"
    parameters = published(form, t)
    ff_dim = next((len(x) for name, x in parameters.items() if name.endswith("feed_forward.up.bias")), 1)
    chosen |= {"embed_dim": t["input.x"].shape[-1], "num_heads": options["heads"], "ff_dim": options.get("d_ff", ff_dim)}
    if options["part"] == "retina":
        chosen["num_layers"] = options["layers"][0] if isinstance(options["layers"], list) else options["layers"]
    else:
        chosen |= {n: options[n] for n in ("layers", "aggregation", "local_window", "top_layers") if options.get(n) is not None}
        for n in ("windows", "log_count"):
            chosen.pop(n, None)
    return {"output.out": call(form, {"x": t["input.x"]}, parameters, **chosen)}
