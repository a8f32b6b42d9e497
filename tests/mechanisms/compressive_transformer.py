"""Compressive Transformer: compression, the paper's layer, the package's attention and model."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, Maker, call, published, random_mask

ROWS = {"B": 2, "N": 10, "E": 4}
SEGMENT = {"B": 2, "N": 6, "E": 6}
SIZES: Any = {"lengths_fixed": "segments of one length update the memory", "length": ()}
CUT = "what goes into memory is cut from the gradient, as published"
LAYER = {"embed_dim": 6, "num_heads": 2, "head_dim": 3, "inner_dim": 8, "mem_len": 6, "ratio": 2}
ATTENTION = {"embed_dim": 6, "num_heads": 2, "seq_len": 6, "ratio": 2}
MODEL = {"vocab_size": 7, "embed_dim": 6, "depth": 2, "num_heads": 2, "seq_len": 3, "ratio": 2}


def _memory(length: int) -> Maker:
    return lambda s, g: torch.randn(s["B"], length, s["E"], generator=g, dtype=torch.float64)


MEMORIES: Any = {"memory": _memory(6), "compressed": _memory(3)}
IDS: Any = {"ids": lambda s, g: torch.randint(7, (s["B"], s["N"]), generator=g)}
RESET: Any = {"reset": lambda s, g: torch.arange(s["B"]) == 0}

CASES = [
    Case("memory_compression", ROWS, {"embed_dim": 4, "ratio": 3}, gradcheck={"B": 1, "N": 4}, exported_from=6),
    Case("memory_compression", ROWS, {"embed_dim": 4, "compression": "mean"}, gradcheck={"B": 1, "N": 5}, exported_from=8),
    Case("memory_compression", ROWS, {"embed_dim": 4, "compression": "max"}, gradcheck={"B": 1, "N": 5}, exported_from=8),
    Case("memory_compression", ROWS, {"embed_dim": 4, "compression": "dilated", "dilations": [1, 2]}, gradcheck={"B": 1, "N": 4}, length=(),
         lengths_fixed="the padded length is a quotient, which torch's convolution compares"),
    Case("memory_compression", ROWS, {"embed_dim": 4, "compression": "most_used"}, given=("usage",), gradcheck={"B": 1, "N": 5}, length=(),
         lengths_fixed="the number of kept vectors is a quotient, which torch's narrow compares"),
    Case("compressive_transformer_layer", SEGMENT, LAYER, given=("memory", "compressed"), make=MEMORIES, cut=CUT, **SIZES),
    Case("compressive_transformer_layer", SEGMENT, {**LAYER, "compression": "dilated", "dilations": [2], "loss": "none"}, cut=CUT, **SIZES),
    Case("compressive_transformer_layer", SEGMENT, {**LAYER, "compression": "most_used", "mem_len": 4}, given=("memory",), make=MEMORIES, cut=CUT,
         **SIZES),
    Case("compressive_transformer_layer", SEGMENT, {**LAYER, "compression": "mean", "loss": "autoencoding", "cmem_len": 1}, given=("key_mask",),
         make={"key_mask": random_mask("N")}, mask="key_mask", hidden_is_zero=False, cut=CUT, **SIZES),
    Case("compressive_attention", SEGMENT, ATTENTION, given=("memory", "compressed", "mask"), make=MEMORIES, mask="mask", hidden_is_zero=False,
         cut=CUT, **SIZES),
    Case("compressive_attention", SEGMENT, {**ATTENTION, "loss": "autoencoding", "mem_len": 8, "as_package": True}, given=("memory",), make=MEMORIES,
         cut=CUT, **SIZES),
    Case("compressive_attention", SEGMENT, {**ATTENTION, "seq_len": 8, "compression": "most_used"}, name="short", cut=CUT, **SIZES),
    Case("compressive_transformer", {"B": 2, "N": 8}, {**MODEL, "mogrify": True}, given=("mask",), make=IDS, cut=CUT, **SIZES),
    Case("compressive_transformer", {"B": 2, "N": 7}, {**MODEL, "memory_layers": [2], "gru_gated": False, "ff_glu": True, "emb_dim": 4,
         "zero_memory": True, "loss": "none"}, given=("reset",), make=IDS | RESET, name="plain", cut=CUT, **SIZES),
]  # fmt: skip

PACKAGE = "lucidrains/compressive-transformer-pytorch"


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases of compressions, of the paper's layer, of the package's attention and model."""
    inputs: dict[str, Any] = {n.removeprefix("input."): x for n, x in t.items() if n.startswith("input.")}
    if "variant" not in options:
        rows = inputs.pop("mem")
        chosen = {n: options[n] for n in ("ratio", "compression", "dilations") if n in options}
        given = {"memory": rows, **inputs}
        return {"output.out": call("memory_compression", given, published("memory_compression", t), embed_dim=rows.shape[-1], **chosen)}
    if options["variant"] == "paper":
        return _paper(options, inputs, t)
    chosen = {n: options[n] for n in ("seq_len", "mem_len", "cmem_len", "ratio")} | {"num_heads": options["heads"], "as_package": True}
    if "ids" in inputs:
        return _model(options, inputs["ids"], t, chosen)
    renamed = {"x": "x", "mem": "memory", "cmem": "compressed", "input_mask": "mask"}
    inputs = {renamed[n]: x.bool() if n == "input_mask" else x for n, x in inputs.items()}
    parameters = published("compressive_attention", t, PACKAGE)
    training = options["training"]
    out = call("compressive_attention", inputs, parameters, training=training, embed_dim=inputs["x"].shape[-1], **chosen)
    main = out.loss if options["returns"] == "aux_loss" else out.out
    return {"output.out": main, "output.new_mem": out.new_memory, "output.new_cmem": out.new_compressed}


def _paper(options: dict[str, Any], inputs: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    form = "compressive_transformer_layer"
    given = {"x": inputs["x"], "memory": inputs["mem"], "compressed": inputs["cmem"]}
    parameters = published(form, t)
    decoder = {n: parameters.pop(n) for n in ("decoder_weight", "decoder_bias")}
    width = parameters["bias.content"].shape[1]
    chosen = {n: options[n] for n in ("ratio", "mem_len", "cmem_len", "compression", "dilations") if n in options}
    chosen |= {"num_heads": options["heads"], "head_dim": width, "embed_dim": given["x"].shape[-1]}
    chosen["inner_dim"] = parameters["block.feed_forward.up.weight"].shape[0]
    one = call(form, given, parameters, loss="attention", **chosen)
    other = call(form, given, {**parameters, **decoder}, loss="autoencoding", **chosen)
    found = {"layer": one.out, "new_mem": one.new_memory, "new_cmem": one.new_compressed, "loss_attention": one.loss, "loss_autoencoding": other.loss}
    return {f"output.{n}": x for n, x in found.items()} | {"output.out": found[options["returns"]]}


def _model(options: dict[str, Any], ids: Tensor, t: dict[str, Tensor], chosen: dict[str, Any]) -> dict[str, Tensor]:
    form = "compressive_transformer"
    parameters = published(form, t, PACKAGE)
    chosen |= {n: options[n] for n in ("memory_layers", "enhanced_recurrence", "gru_gated", "ff_glu")} | {"depth": options["layers"]}
    vocabulary, width = parameters["embedding"].shape
    chosen |= {"vocab_size": vocabulary, "emb_dim": width, "embed_dim": parameters["layers.0.query.weight"].shape[1]}
    state, outputs = None, []
    for segment in ids.split(options["segments"], 1):
        logits, _, state = call(form, {"ids": segment, "state": state}, parameters, step=True, training=options["training"], **chosen)
        outputs.append(logits)
    assert state is not None
    return {"output.out": torch.cat(outputs, 1), "output.mem": torch.stack(state[2::2]), "output.cmem": torch.stack(state[3::2])}
