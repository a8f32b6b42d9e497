"""CBAM and BAM: gates over the channels and positions of a map."""

import re
from typing import Any

from torch import Tensor

from tests.contract import Case, call

MAP = {"B": 2, "C": 6, "H": 4, "W": 5}
ONE = {"B": 1, "H": 2, "W": 3}

CASES = [
    Case("cbam", MAP, {"gate_channels": 6, "reduction_ratio": 2, "kernel_size": 3}, length=("H", "W"), gradcheck=ONE),
    Case("cbam", MAP, {"gate_channels": 6, "reduction_ratio": 4, "pools": "lse+lp+max+avg", "no_spatial": True}, length=("H", "W"), gradcheck=ONE),
    Case("bam", MAP, {"gate_channels": 6, "reduction_ratio": 3, "dilation_val": 2}, length=("H", "W"), gradcheck=ONE),
    Case("bam", MAP, {"gate_channels": 6, "reduction_ratio": 2, "num_layers": 2, "dilation_conv_num": 0}, length=("H", "W"), gradcheck=ONE),
]  # fmt: skip

# Names of the original's state, and ours.
CBAM = {"ChannelGate.mlp.1": "channel.reduce", "ChannelGate.mlp.3": "channel.restore", "SpatialGate.spatial.conv": "spatial.conv",
        "SpatialGate.spatial.bn": "spatial.norm"}  # fmt: skip
BAM = [
    (r"channel_att\.gate_c\.gate_c_fc_final", lambda m: "channel.out"),
    (r"channel_att\.gate_c\.gate_c_fc_(\d+)", lambda m: f"channel.hidden.{m[1]}.linear"),
    (r"channel_att\.gate_c\.gate_c_bn_(\d+)", lambda m: f"channel.hidden.{int(m[1]) - 1}.norm"),
    (r"spatial_att\.gate_s\.gate_s_conv_final", lambda m: "spatial.out"),
    (r"spatial_att\.gate_s\.gate_s_conv_reduce0", lambda m: "spatial.hidden.0.conv"),
    (r"spatial_att\.gate_s\.gate_s_bn_reduce0", lambda m: "spatial.hidden.0.norm"),
    (r"spatial_att\.gate_s\.gate_s_conv_di_(\d+)", lambda m: f"spatial.hidden.{int(m[1]) + 1}.conv"),
    (r"spatial_att\.gate_s\.gate_s_bn_di_(\d+)", lambda m: f"spatial.hidden.{int(m[1]) + 1}.norm"),
]


def _ours(module: str, name: str) -> str:
    group, leaf = name.rsplit(".", 1)
    if module == "cbam":
        return f"{CBAM[group]}.{leaf}"
    return next(f"{to(m)}.{leaf}" for pattern, to in BAM if (m := re.fullmatch(pattern, group)))


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases keep the names of the original's state, and list the pools."""
    names = {n: _ours(options["module"], n.removeprefix("param.")) for n in t if n.startswith("param.")}
    parameters = {ours: t[name] for name, ours in names.items()}
    chosen = {n: x for n, x in options.items() if n not in ("module", "pool_types")}
    if "pool_types" in options:
        chosen["pools"] = "+".join(options["pool_types"])
    chosen.setdefault("gate_channels", t["input.x"].shape[1])
    out = call(options["module"], {"x": t["input.x"]}, parameters, **chosen)
    return {"output.out": out, **{name.replace("param.", "output.new."): parameters[ours] for name, ours in names.items() if "running" in name}}
