"""Relative positions: Shaw, XLNet, T5, ALiBi, rotary."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, published, random_mask

QKV = {"B": 2, "H": 2, "Hk": 2, "N": 6, "M": 6, "D": 4, "Dv": 3}
SMALL = {"B": 1, "N": 3, "M": 3}
KEY_MASK: Any = {"key_mask": random_mask("M")}
POSITIONS: Any = {"r": lambda s, g: torch.randn(s["H"], s["N"] + s["M"], s["D"], generator=g, dtype=torch.float64)}
NO_LENGTH = "the table of positions has N + M rows"

CASES = [
    Case("shaw_attention", QKV, {"head_dim": 4, "value_dim": 3, "max_distance": 2}, given=("key_mask",), make=KEY_MASK, mask="key_mask",
         gradcheck=SMALL),
    Case("shaw_attention", QKV, {"head_dim": 4, "value_dim": 3, "max_distance": 2, "table_heads": 2, "causal": True}, causal=True, gradcheck=SMALL),
    Case("shaw_attention", {**QKV, "H": 4, "M": 9}, {"head_dim": 4, "values": False, "causal": True}, length=("N",), name="grouped", gradcheck=SMALL),
    Case("xl_net_attention", QKV, {"num_heads": 2, "head_dim": 4}, given=("key_mask",), make=POSITIONS, mask="key_mask", length=(),
         lengths_fixed=NO_LENGTH, gradcheck=SMALL),
    Case("xl_net_attention", QKV, {"num_heads": 2, "head_dim": 4, "causal": True}, make=POSITIONS, length=(), lengths_fixed=NO_LENGTH, causal=True,
         gradcheck=SMALL),
    Case("xl_net_attention", QKV, {"num_heads": 2, "head_dim": 4, "clamp_len": 2}, make=POSITIONS, length=(), lengths_fixed=NO_LENGTH, name="clamped",
         gradcheck=SMALL),
    Case("t5_attention", QKV, {"num_heads": 2, "buckets": 8, "max_distance": 5}, given=("key_mask",), make=KEY_MASK, mask="key_mask",
         gradcheck=SMALL),
    Case("t5_attention", QKV, {"num_heads": 2, "buckets": 4, "max_distance": 4, "bidirectional": False, "causal": True}, causal=True,
         gradcheck=SMALL),
    Case("alibi_attention", {**QKV, "H": 3, "Hk": 3}, given=("key_mask",), make=KEY_MASK, mask="key_mask", gradcheck=SMALL),
    Case("alibi_attention", {**QKV, "M": 9}, {"symmetric": False}, length=("N",), gradcheck=SMALL),
    Case("alibi_attention", QKV, {"causal": True, "bias_max": 4.0}, causal=True, gradcheck=SMALL),
    Case("rotary_embedding", QKV, {"offset": 3, "interleaved": True}, length=("N",)),
    Case("rotary_embedding", {**QKV, "D": 6}, {"rotary_dim": 4, "scaling": "ntk", "factor": 2.0}, length=("N",), causal=True),
    Case("rotary_attention", QKV, {"interleaved": True, "scaling": "linear", "factor": 2.0}, given=("key_mask",), make=KEY_MASK, mask="key_mask",
         gradcheck=SMALL),
    Case("rotary_attention", QKV, {"causal": True, "rotary_dim": 2}, causal=True, gradcheck=SMALL),
    Case("rotary_attention", QKV, {"causal": True, "q_offset": 4, "k_offset": 5}, causal=True, name="late", gradcheck=SMALL),
]  # fmt: skip

FORMS = {
    "shaw": "shaw_attention",
    "xl_bidirectional": "xl_net_attention",
    "t5": "t5_attention",
    "alibi": "alibi_attention",
    "rope": "rotary_attention",
}
OPTIONS = {
    "shaw": ("max_distance",),
    "xl_bidirectional": ("clamp_len",),
    "t5": ("buckets", "max_distance", "bidirectional"),
    "alibi": ("bias_max", "symmetric"),
    "rope": ("base", "rotary_dim", "interleaved", "q_offset", "k_offset", "scaling", "factor"),
}


def _bias_max(options: dict[str, Any]) -> float:
    return float(options.get("bias_max", options.get("alibi_bias_max", 8.0)))


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases choose a scheme by `kind`; tables alone are `slopes` and `t5_table`."""
    kind = options["kind"]
    if kind == "slopes":
        bias_max, heads = _bias_max(options), options.get("heads") or t["input.heads"].tolist()
        slopes = [torch.ops.foveate.alibi_slopes(h, bias_max=bias_max, dtype=torch.float64) for h in heads]
        return {"output.out": torch.cat(slopes)}
    if kind == "t5_table":
        chosen = {n: options[n] for n in OPTIONS["t5"] if n in options}
        return {"output.out": torch.ops.foveate.t5_buckets(t["input.relative"], **chosen)}

    inputs: dict[str, Any] = {n.removeprefix("input."): x for n, x in t.items() if n.startswith("input.")}
    if "key_mask" in inputs:
        inputs["key_mask"] = inputs["key_mask"].bool()
    chosen = {n: options[n] for n in (*OPTIONS[kind], "causal", "scale") if options.get(n) is not None}
    parameters = published(FORMS[kind], t) if kind in ("shaw", "xl_bidirectional", "t5") else {}
    outputs = {}
    if kind == "shaw":
        rel_value = parameters.get("rel_value")
        heads = parameters["rel_key"].shape[0] if parameters["rel_key"].dim() == 3 else None
        chosen |= {"head_dim": inputs["q"].shape[-1], "value_dim": inputs["v"].shape[-1], "values": rel_value is not None, "table_heads": heads}
    elif kind == "xl_bidirectional":
        if chosen.get("clamp_len", 0) <= 0:
            chosen.pop("clamp_len", None)
        chosen |= {"num_heads": inputs["q"].shape[1], "head_dim": inputs["q"].shape[-1]}
    elif kind == "t5":
        chosen |= {"num_heads": inputs["q"].shape[1]}
    elif kind == "alibi":
        chosen["bias_max"] = _bias_max(options)
    elif kind == "rope":
        turn = {n: chosen[n] for n in OPTIONS["rope"] if n in chosen and not n.endswith("_offset")}
        for name in "qk":
            outputs[f"output.{name}_rot"] = call("rotary_embedding", {"x": inputs[name]}, offset=options.get(f"{name}_offset", 0), **turn)
    outputs["output.out"] = call(FORMS[kind], inputs, parameters, **chosen)
    return outputs
