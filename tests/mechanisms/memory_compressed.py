"""Attention to compressed keys and values, and inside blocks."""

from typing import Any

from torch import Tensor

from tests.contract import Case, all_but_last, call, published, random_mask

X = {"B": 2, "N": 11, "E": 6}
LAYER = {"embed_dim": 6, "num_heads": 2}
SMALL = {"B": 1, "N": 5}
QKV = {"B": 2, "H": 2, "N": 13, "M": 13, "Hk": 2, "D": 4, "Dv": 3}
MASKED: Any = {"given": ("key_mask",), "make": {"key_mask": all_but_last("N", 2)}}


def _layer(reduction: str, causal: bool = False, more: Any = {}, **options: Any) -> Case:
    return Case(
        "memory_compressed_attention", X, {**LAYER, "reduction": reduction, "causal": causal, **options},
        causal=causal and not options.get("left_padded"), gradcheck=SMALL, exported_from=2 * options.get("compression_factor", 3), **more,
    )  # fmt: skip


CASES = [
    _layer("compress_kv", causal=True),
    _layer("compress_kv", left_padded=True, compression_factor=4, more=MASKED),
    _layer("compress_kv", causal=True, left_padded=True),
    _layer("compress_x", causal=True, nonlinearity="silu"),
    _layer("compress_x", compression_factor=2, scale=0.4, more=MASKED),
    _layer("mean_pool", causal=True, compression_factor=4),
    _layer("attend_x", causal=True),
    Case("block_local_attention", QKV, {"block": 4, "causal": True}, causal=True, gradcheck={"B": 1, "N": 5, "M": 5}),
    Case("block_local_attention", QKV, {"block": 4, "look_back": True, "scale": 0.3}, given=("key_mask",), mask="key_mask",
         make={"key_mask": random_mask("M")}, exported_from=8, gradcheck={"B": 1, "N": 9, "M": 9}),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases name the reduction `form`; the null slot of mean_pool has a logit there that is always 0."""
    inputs = {name.removeprefix("input."): x.bool() if name.endswith("mask") else x for name, x in t.items() if name.startswith("input.")}
    common = {n: options[n] for n in ("causal", "scale")}
    if options["form"] == "block_local":
        return {"output.out": call("block_local_attention", inputs, block=options["block"], look_back=options["look_back"], **common)}
    assert options.get("extra_logit", 0.0) == 0.0
    form = "memory_compressed_attention"
    chosen = {"embed_dim": inputs["x"].shape[-1], "num_heads": options["heads"], "compression_factor": options["compression_factor"]}
    chosen |= {"reduction": options["form"], "left_padded": options["form"] == "compress_kv", "nonlinearity": options.get("nonlinearity", "none")}
    return {"output.out": call(form, inputs, published(form, t), **chosen, **common)}
