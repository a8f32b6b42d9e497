"""Transformer-XL: attention, layer, model with memory."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call

QKV = {"B": 2, "H": 2, "Hk": 2, "N": 6, "M": 6, "D": 4, "Dv": 3}
SMALL = {"B": 1, "N": 3, "M": 3}
HEADS = {"num_heads": 2, "head_dim": 4}
LAYER = {"embed_dim": 6, "num_heads": 2, "head_dim": 4, "inner_dim": 8}
MODEL = {**LAYER, "vocab_size": 5, "num_layers": 2}
POSITIONS: Any = {"r": lambda s, g: torch.randn(s["H"], s["M"], s["D"], generator=g, dtype=torch.float64)}
KEY_MASK: Any = {"key_mask": lambda s, g: torch.rand(s["B"], s["M"], generator=g) < 0.8}
MEMORY: Any = {"memory": lambda s, g: torch.randn(s["B"], 4, s["E"], generator=g, dtype=torch.float64)}
IDS: Any = {"ids": lambda s, g: torch.randint(0, 4, (s["B"], s["N"]), generator=g)}

CASES = [
    Case("transformer_xl_attention", QKV, HEADS, given=("key_mask",), make=POSITIONS | KEY_MASK, mask="key_mask", gradcheck=SMALL),
    Case("transformer_xl_attention", QKV, HEADS, make=POSITIONS, causal=True, name="whole", gradcheck=SMALL),
    Case("transformer_xl_attention", QKV, {**HEADS, "same_length": True, "mem_len": 3}, make=POSITIONS, causal=True, name="window",
         gradcheck=SMALL),
    Case("transformer_xl_layer", {"B": 2, "N": 5, "E": 6}, LAYER, given=("memory",), make=MEMORY, causal=True, gradcheck={"B": 1, "N": 3}),
    Case("transformer_xl_layer", {"B": 2, "N": 5, "M": 5, "E": 6}, {**LAYER, "pre_norm": True, "clamp_len": 2, "same_length": True, "mem_len": 3},
         given=("key_mask",), make=KEY_MASK, mask="key_mask", hidden_is_zero=False, name="window", gradcheck=SMALL),
    Case("transformer_xl_layer", {"B": 2, "N": 5, "E": 6}, {**LAYER, "position": "learned", "table_length": 4}, given=("memory",), make=MEMORY,
         causal=True, gradcheck={"B": 1, "N": 3}),
    Case("transformer_xl", {"B": 2, "N": 6}, {**MODEL, "mem_len": 6}, make=IDS, causal=True, gradcheck={"B": 1, "N": 3}),
    Case("transformer_xl", {"B": 2, "N": 6}, {**MODEL, "mem_len": 3, "same_length": True, "pre_norm": True, "untie_bias": True}, make=IDS,
         causal=True, name="window", gradcheck={"B": 1, "N": 3}),
    Case("transformer_xl", {"B": 2, "N": 6}, {**MODEL, "mem_len": 6, "position": "learned", "table_length": 4}, make=IDS, causal=True,
         gradcheck={"B": 1, "N": 3}),
]  # fmt: skip

BLOCK = {
    "dec_attn.qkv_net.weight": "qkv.weight",
    "dec_attn.r_net.weight": "relative.weight",
    "dec_attn.o_net.weight": "out.weight",
    "dec_attn.layer_norm.weight": "attention_norm.weight",
    "dec_attn.layer_norm.bias": "attention_norm.bias",
    "pos_ff.CoreNet.0.weight": "feed_forward.up.weight",
    "pos_ff.CoreNet.0.bias": "feed_forward.up.bias",
    "pos_ff.CoreNet.3.weight": "feed_forward.down.weight",
    "pos_ff.CoreNet.3.bias": "feed_forward.down.bias",
    "pos_ff.layer_norm.weight": "feed_forward_norm.weight",
    "pos_ff.layer_norm.bias": "feed_forward_norm.bias",
}


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases `core_*` hold q, k, v; `layer_*` hold x and mem; `model_*` hold ids and the lengths of segments."""
    inputs: dict[str, Any] = {n.removeprefix("input."): x for n, x in t.items() if n.startswith("input.")}
    p = {n.removeprefix("param."): x for n, x in t.items() if n.startswith("param.")}
    if "key_mask" in inputs:
        inputs["key_mask"] = inputs["key_mask"].bool()
    if "q" in inputs:
        chosen = {n: options[n] for n in ("mem_len", "same_length", "scale") if n in options}
        sizes = {"num_heads": inputs["q"].shape[1], "head_dim": inputs["q"].shape[-1]}
        return {"output.out": call("transformer_xl_attention", inputs, {"content_bias": p["u"], "position_bias": p["v"]}, **sizes, **chosen)}

    names = {"heads": "num_heads", "d_head": "head_dim", "d_inner": "inner_dim", "layers": "num_layers", "untie_r": "untie_bias"}
    known = ("mem_len", "same_length", "pre_norm", "ext_len", *names)
    chosen = {names.get(n, n): options[n] for n in known if n in options}
    if options.get("clamp_len", -1) > 0:
        chosen["clamp_len"] = options["clamp_len"]
    if "x" in inputs:
        parameters = {f"block.{ours}": p[theirs] for theirs, ours in BLOCK.items()} | {"bias.content": p["u"], "bias.position": p["v"]}
        if "mem" in inputs:
            inputs["memory"] = inputs.pop("mem")
        return {"output.out": call("transformer_xl_layer", inputs, parameters, embed_dim=inputs["x"].shape[-1], **chosen)}

    embedding = p["word_emb.weight"]
    parameters = {"embedding": embedding}
    for layer in range(options["layers"]):
        parameters |= {f"layers.{layer}.{ours}": p[f"layers.{layer}.{theirs}"] for theirs, ours in BLOCK.items()}
    u, v = p["u"], p["v"]
    for i in range(u.shape[0] if u.dim() == 3 else 1):
        parameters |= {f"biases.{i}.content": u[i] if u.dim() == 3 else u, f"biases.{i}.position": v[i] if v.dim() == 3 else v}
    chosen |= {"vocab_size": embedding.shape[0], "embed_dim": embedding.shape[1], "untie_bias": u.dim() == 3}
    state, outputs = None, []
    for ids in inputs["ids"].split(options["segments"], 1):
        out, state = call("transformer_xl", {"ids": ids, "state": state}, parameters, step=True, **chosen)
        outputs.append(out)
    assert state is not None
    last = len(options["segments"]) - 1
    return {"output.out": torch.cat(outputs, 1)} | {f"output.mem{last}.{i}": memory for i, memory in enumerate(state[1:])}
