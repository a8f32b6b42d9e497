"""Linformer: slots along the sequence, as a function, a layer, a stack."""

from typing import Any

from torch import Tensor

from tests.contract import Case, all_but_last, call, published

LONG = 5000  # longer than dynamic export tries
QKV = {"B": 2, "H": 2, "N": 12, "M": 14, "D": 4, "Dv": 3}
SMALL = {"B": 1, "N": 3, "M": 5}
X = {"B": 2, "N": 12, "E": 8}
BLOCKS: Any = {"smallest": 3, "exported_from": 6}  # of three tokens
LAYER = {"embed_dim": 8, "num_heads": 2, "length": LONG, "rank": 4}

CASES = [
    Case("linformer_attention", QKV, {"length": LONG, "rank": 4}, given=("key_mask", "query_mask"), mask="key_mask",
         gradcheck=SMALL),
    Case("linformer_attention", QKV, {"length": LONG, "rank": 3, "sharing": "none", "num_heads": 2, "slot_bias": True, "slot_causal": True},
         given=("key_mask",), mask="key_mask", gradcheck=SMALL),
    Case("linformer_attention", {**QKV, "Dv": 4}, {"length": 14, "rank": 4, "kind": "conv", "sharing": "kv", "head_dim": 4, "slot_bias": True},
         **BLOCKS, gradcheck=SMALL),
    Case("linformer_attention", QKV, {"length": 14, "rank": 4, "kind": "mean", "scale": 0.3}, given=("key_mask",), mask="key_mask", **BLOCKS,
         gradcheck=SMALL),
    Case("linformer_attention", QKV, {"length": 14, "rank": 4, "kind": "max"}, **BLOCKS, gradcheck=SMALL),
    Case("linformer_multihead_attention", X, {**LAYER, "sharing": "kv"}, given=("key_mask", "query_mask"),
         make={"key_mask": all_but_last("N")}, mask="key_mask", hidden_is_zero=False, gradcheck={"B": 1, "N": 4}),
    Case("linformer_multihead_attention", {**X, "M": 15}, {**LAYER, "project": "heads", "sharing": "none", "kind": "fixed", "bias": False,
         "initialisation": "normal", "head_dim": 3, "out_inner_dim": 5}, given=("context", "key_mask"),
         make={"key_mask": all_but_last("M")}, mask="key_mask", hidden_is_zero=False, gradcheck={"B": 1, "N": 3, "M": 5}),
    Case("linformer_multihead_attention", X, {**LAYER, "sharing": "none", "slot_bias": True, "initialisation": "uniform"}, name="input",
         gradcheck={"B": 1, "N": 4}),
    Case("linformer_multihead_attention", X, {**LAYER, "length": 14, "project": "heads", "kind": "conv", "sharing": "none", "one_kv_head": True,
         "share_kv_projection": True}, **BLOCKS, gradcheck={"B": 1, "N": 6}),
    Case("linformer_multihead_attention", X, {**LAYER, "full_attention": True}, given=("key_mask",),
         make={"key_mask": all_but_last("N")}, mask="key_mask", hidden_is_zero=False, gradcheck={"B": 1, "N": 4}),
    Case("linformer_encoder", X, {**LAYER, "depth": 2, "sharing": "layerwise", "initialisation": "xavier_normal"}, gradcheck={"B": 1, "N": 4}),
    Case("linformer_encoder", {**X, "M": 14}, {**LAYER, "depth": 2, "rank_step": 3, "cross": True, "kind": "fixed", "activation": "relu"},
         given=("context", "key_mask", "query_mask", "context_mask"), gradcheck={"B": 1, "N": 4, "M": 3}),
]  # fmt: skip


FORMS = {"function": "linformer_attention", "module": "linformer_multihead_attention", "stack": "linformer_encoder"}


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases write `k` for the rank, `max_seq_len` for the length, e and f for the projections, l<i>. for block i."""
    inputs = {name.removeprefix("input."): x for name, x in t.items() if name.startswith("input.")}
    inputs |= {name: x.bool() for name, x in inputs.items() if name.endswith("mask")}
    level, form = options["level"], FORMS[options["level"]]
    leaves = {name.split(".")[-1]: x for name, x in t.items() if name.startswith("param.")}
    sharing, kind = options.get("sharing", "headwise"), options.get("kind", "linear")
    frozen = bool(options.get("freeze_compress")) and kind == "linear"
    if (kind == "fixed" or frozen) and not any(leaves[n].requires_grad for n in ("e", "f") if n in leaves) and sharing != "layerwise":
        kind = "fixed"
    elif kind == "fixed":
        kind = "linear"  # the same numbers, and a gradient that the case compares
    parameters = published(form, t, "paper, fixed" if kind == "fixed" else "paper")
    keys = inputs.get("k", inputs.get("context", inputs.get("x")))
    length = {"mean": keys.shape[-2], "max": keys.shape[-2], "conv": options.get("max_seq_len", keys.shape[-2])}.get(kind)
    common = {
        "rank": options.get("k", 256),
        "kind": kind,
        "sharing": sharing,
        "length": length or leaves.get("e", keys).shape[-1],
        "slot_causal": options.get("slot_causal", False),
        "scale": options.get("scale"),
    }
    if level == "function":
        return {"output.out": call(form, inputs, parameters, **common)}
    common |= {"embed_dim": inputs["x"].shape[-1], "num_heads": options["heads"], "project": options.get("project", "input")}
    common |= {n: options[n] for n in ("one_kv_head", "share_kv_projection", "full_attention") if n in options}
    common["head_dim"] = leaves["wq"].shape[0] // options["heads"]
    if level == "module":
        return {"output.out": call(form, inputs, parameters, **common)}
    reduce = 0 if sharing == "layerwise" else options.get("k_reduce_by_layer", 0)
    chosen = {"depth": options["depth"], "activation": options.get("activation", "gelu"), "rank_step": reduce, "eps": options.get("eps", 1e-5)}
    return {"output.out": call(form, inputs, parameters, **common, **chosen)}
