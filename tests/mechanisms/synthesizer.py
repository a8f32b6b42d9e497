"""Synthesized scores, as a layer."""

from typing import Any

from torch import Tensor

from tests.contract import Case, all_but_last, call, published

LONG = 5000  # longer than dynamic export tries
X = {"B": 2, "N": 9, "E": 8}
SMALL = {"B": 1, "N": 4}
LAYER = {"embed_dim": 8, "num_heads": 2, "max_len": 12}
FIXED = "tables have a row for each of max_len tokens: 12 here, since [H,L,L] for the lengths that export tries would be large"


def _case(*kinds: str, masked: bool = False, **options: Any) -> Case:
    more: dict[str, Any] = {"given": ("key_mask",), "mask": "key_mask", "hidden_is_zero": not options.get("out_projection", True)} if masked else {}
    table = "random" in kinds
    return Case(
        "synthesizer", X, {**LAYER, "max_len": 12 if table else LONG, "kinds": list(kinds), **options}, causal=options.get("causal", False),
        gradcheck=SMALL, name="+".join(kinds), length=() if table else ("N",), lengths_fixed=FIXED if table else "",
        make={"key_mask": all_but_last("N")}, **more,
    )  # fmt: skip


CASES = [
    _case("dense", hidden_dim=5),
    _case("random", causal=True),
    _case("random", masked=True, fixed=True, out_projection=False),
    _case("random", softmax=False, bias=True, causal=True),
    _case("factorized_random", masked=True, value_dim=3, out_projection=False),
    _case("factorized_dense", causal=True, rows=4),
    _case("factorized_dense", "dense", tile="repeat", rows=4, mixture="sum", softmax=False, masked=True, out_projection=False),
    _case("vanilla", "dense_query", mixture="sigmoid_alpha", causal=True, scale=1.0),
    _case("factorized_random", "factorized_dense", "vanilla", "random", masked=True, head_dim=3),
]


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases write the maps of each token head by head, [H,f,E]; ours stand in a row."""
    rows = {"w1", "b1", "wa", "ba", "wb", "bb"}
    factors = t["param.wa"].shape[1] if "param.wa" in t else None
    t = {name: x.flatten(0, 1) if name.removeprefix("param.") in rows else x for name, x in t.items()}
    parameters = published("synthesizer", t)
    inputs = {name.removeprefix("input."): x.bool() if name.endswith("mask") else x for name, x in t.items() if name.startswith("input.")}
    heads, E = options["heads"], inputs["x"].shape[-1]
    if "param.r" in t and options.get("fixed"):
        parameters["fixed_table"] = parameters.pop("table")
    chosen: dict[str, Any] = {n: options[n] for n in ("kinds", "causal", "softmax", "scale", "tile") if n in options}
    chosen["mixture"] = "sum" if options["combine"] == "single" else options["combine"]
    chosen["value_dim"] = t["param.wv"].shape[0] // heads
    chosen["head_dim"] = t["param.wq"].shape[0] // heads if "param.wq" in t else 1
    lengths = [t[n].shape[d] for n, d in (("param.r", 2), ("param.r1", 1), ("param.w2", 1), ("param.wpi", 2)) if n in t]
    if factors:
        lengths.append(factors * (t["param.bb"].shape[0] // heads))
    length = options.get("max_len", max(lengths, default=inputs["x"].shape[1]))
    return {"output.out": call("synthesizer", inputs, parameters, embed_dim=E, num_heads=heads, max_len=length, rows=factors, **chosen)}
