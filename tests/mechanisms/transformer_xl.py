"""Transformer-XL: attention, layer, model with memory."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, published, random_mask

QKV = {"B": 2, "H": 2, "Hk": 2, "N": 6, "M": 6, "D": 4, "Dv": 3}
SMALL = {"B": 1, "N": 3, "M": 3}
HEADS = {"num_heads": 2, "head_dim": 4}
LAYER = {"embed_dim": 6, "num_heads": 2, "head_dim": 4, "inner_dim": 8}
MODEL = {**LAYER, "vocab_size": 5, "num_layers": 2}
POSITIONS: Any = {"r": lambda s, g: torch.randn(s["H"], s["M"], s["D"], generator=g, dtype=torch.float64)}
KEY_MASK: Any = {"key_mask": random_mask("M")}
KEEPS: Any = {"attention_keep": lambda s, g: torch.rand(s["B"], 2, s["N"], s["N"], generator=g) < 0.8,
              "position_keep": lambda s, g: torch.rand(s["N"], s["E"], generator=g) < 0.8,
              "inner_keep": lambda s, g: torch.rand(s["B"], s["N"], 8, generator=g) < 0.8}  # fmt: skip
MEMORY: Any = {"memory": lambda s, g: torch.randn(s["B"], 4, s["E"], generator=g, dtype=torch.float64)}
IDS: Any = {"ids": lambda s, g: torch.randint(0, 4, (s["B"], s["N"]), generator=g)}

CASES = [
    Case("transformer_xl_attention", QKV, HEADS, given=("key_mask",), make=POSITIONS | KEY_MASK, mask="key_mask", gradcheck=SMALL),
    Case("transformer_xl_attention", QKV, {**HEADS, "dropout": 0.3}, given=("mask", "dropout_keep"), name="dropped",
         make={**POSITIONS, "mask": lambda s, g: torch.rand(s["N"], s["M"], generator=g) < 0.8,
               "dropout_keep": lambda s, g: torch.rand(s["B"], s["H"], s["N"], s["M"], generator=g) < 0.7}, mask="mask", gradcheck=SMALL),
    Case("transformer_xl_attention", QKV, HEADS, make=POSITIONS, causal=True, name="whole", gradcheck=SMALL),
    Case("transformer_xl_attention", QKV, {**HEADS, "same_length": True, "mem_len": 3}, make=POSITIONS, causal=True, name="window",
         gradcheck=SMALL),
    Case("transformer_xl_layer", {"B": 2, "N": 5, "E": 6}, LAYER, given=("memory",), make=MEMORY, causal=True, gradcheck={"B": 1, "N": 3}),
    Case("transformer_xl_layer", {"B": 2, "N": 5, "M": 5, "E": 6}, {**LAYER, "pre_norm": True, "clamp_len": 2, "same_length": True, "mem_len": 3},
         given=("key_mask",), make=KEY_MASK, mask="key_mask", hidden_is_zero=False, name="window", gradcheck=SMALL),
    Case("transformer_xl_layer", {"B": 2, "N": 5, "E": 6}, {**LAYER, "position": "learned", "table_length": 4}, given=("memory",), make=MEMORY,
         causal=True, gradcheck={"B": 1, "N": 3}),
    Case("transformer_xl_layer", {"B": 2, "N": 5, "E": 6}, {**LAYER, "dropout": 0.2, "attention_dropout": 0.1}, name="dropped",
         given=(*KEEPS, "output_keep", "network_keep"), make=KEEPS, gradcheck={"B": 1, "N": 3}),
    Case("transformer_xl_layer", {"B": 2, "N": 5, "E": 6}, {**LAYER, "position": "absolute", "pre_norm": True}, given=("memory",), make=MEMORY,
         causal=True, gradcheck={"B": 1, "N": 3}),
    Case("transformer_xl_layer", {"B": 2, "N": 5, "E": 6}, {**LAYER, "head_dim": 3, "position": "absolute_learned", "table_length": 4},
         given=("memory",), make=MEMORY, causal=True, gradcheck={"B": 1, "N": 3}),
    Case("transformer_xl", {"B": 2, "N": 6}, {**MODEL, "mem_len": 6, "position": "absolute"}, make=IDS, gradcheck={"B": 1, "N": 3}),
    Case("transformer_xl", {"B": 2, "N": 6}, {**MODEL, "head_dim": 3, "mem_len": 6, "position": "absolute_learned", "table_length": 4}, make=IDS,
         gradcheck={"B": 1, "N": 3}),
    Case("transformer_xl", {"B": 2, "N": 6}, {**MODEL, "mem_len": 6}, make=IDS, causal=True, gradcheck={"B": 1, "N": 3}),
    Case("transformer_xl", {"B": 2, "N": 6}, {**MODEL, "mem_len": 3, "same_length": True, "pre_norm": True, "untie_bias": True}, make=IDS,
         causal=True, name="window", gradcheck={"B": 1, "N": 3}),
    Case("transformer_xl", {"B": 2, "N": 6}, {**MODEL, "mem_len": 6, "position": "learned", "table_length": 4}, make=IDS, causal=True,
         gradcheck={"B": 1, "N": 3}),
]  # fmt: skip

POSITIONS_BY_TYPE = ("sinusoid", "learned", "absolute", "absolute_learned")
NAMES = {"heads": "num_heads", "d_head": "head_dim", "d_inner": "inner_dim", "layers": "num_layers", "untie_r": "untie_bias", "pre_lnorm": "pre_norm",
         "dropatt": "attention_dropout"}  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases `core_*` hold q, k, v; `layer_*` hold x and mem; `model_*` hold ids and the lengths of segments."""
    inputs: dict[str, Any] = {n.removeprefix("input."): x for n, x in t.items() if n.startswith("input.")}
    inputs |= {n: x.bool() for n, x in inputs.items() if n.endswith("mask")}
    if "q" in inputs:
        chosen = {n: options[n] for n in ("mem_len", "same_length", "scale", "dropout") if n in options}
        sizes = {"num_heads": inputs["q"].shape[1], "head_dim": inputs["q"].shape[-1]}
        return {"output.out": call("transformer_xl_attention", inputs, published("transformer_xl_attention", t), **sizes, **chosen)}

    kept = ("mem_len", "same_length", "pre_norm", "ext_len", "swapped_lengths", "dropout")
    chosen = {NAMES.get(n, n): options[n] for n in (*kept, *NAMES) if n in options}
    chosen["position"] = POSITIONS_BY_TYPE[options.get("attn_type", 0)]
    if options.get("clamp_len", -1) > 0:
        chosen["clamp_len"] = options["clamp_len"]
    table = t.get("param.r_emb")
    if "x" in inputs:
        if table is not None:
            chosen["table_length"] = table.shape[0]
        if "mem" in inputs:
            inputs["memory"] = inputs.pop("mem")
        chosen["embed_dim"] = inputs["x"].shape[-1]
        return {"output.out": call("transformer_xl_layer", inputs, published("transformer_xl_layer", t), **chosen)}

    if table is not None:
        chosen["table_length"] = table.shape[1]
    by_authors = "param.word_emb.emb_layers.0.weight" in t
    first_bias = t.get("param.r_w_bias" if by_authors else "param.u")
    stacked = first_bias is not None and first_bias.dim() == 3
    source = "kimiyoung/transformer-xl" + ", attn_type 1" * stacked if by_authors else "paper" + ", untied" * stacked
    parameters = published("transformer_xl", t, source)
    chosen["vocab_size"], chosen["embed_dim"] = parameters["embedding"].shape
    if "layers" not in options:
        chosen["num_layers"] = len({n.split(".")[1] for n in parameters if n.startswith("layers.")})
    if chosen["position"] == "sinusoid":
        chosen["untie_bias"] = stacked
    state, outputs = None, []
    segments = options.get("segments", [inputs["ids"].shape[1]])
    masks = inputs["key_mask"].split(segments, 1) if "key_mask" in inputs else [None] * len(segments)
    for ids, key_mask in zip(inputs["ids"].split(segments, 1), masks, strict=True):
        out, state = call("transformer_xl", {"ids": ids, "key_mask": key_mask, "state": state}, parameters, step=True, **chosen)
        outputs.append(out)
    assert state is not None
    last = len(segments) - 1
    return {"output.out": torch.cat(outputs, 1)} | {f"output.mem{last}.{i}": memory for i, memory in enumerate(state[1:])}
