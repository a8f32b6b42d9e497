"""Memformer: the paper's read and write, the PyPI package's encoder, write, decoder and model, the authors' MemBART."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, Maker, all_but_last, call, published, random_mask

SEGMENT = {"B": 2, "N": 6, "S": 4, "E": 6}
SMALL = {"B": 1, "N": 3, "S": 2}
HEADS = {"embed_dim": 6, "num_heads": 2}
STACK = {**HEADS, "depth": 2, "buckets": 6, "max_distance": 8}
MODEL = {**HEADS, "vocab_size": 7, "encoder_depth": 1, "decoder_depth": 1, "slots": 3, "write_heads": 3, "buckets": 6, "max_distance": 8}
BART = {**HEADS, "inner_dim": 8}
MASK: Any = {"key_mask": random_mask("N")}
PADDED: Any = {"key_mask": all_but_last("N", 2)}
RESET: Any = {"reset": lambda s, g: torch.arange(s["B"]) == 0}


def _ids(letter: str) -> Maker:
    return lambda s, g: torch.randint(7, (s["B"], s[letter]), generator=g)


IDS: Any = {"src": _ids("N"), "tgt": _ids("M")}
MASKS: Any = {"src_mask": random_mask("N"), "tgt_mask": all_but_last("M", 2)}

CASES = [
    Case("memformer_memory", {**SEGMENT, "S": 3}, {**HEADS, "slots": 3, "temperature": 0.25}, gradcheck={"B": 1, "N": 3}),
    Case("memformer_memory", {**SEGMENT, "S": 3}, {**HEADS, "slots": 3}, given=("memory", "key_mask", "reset"), make=MASK | RESET, name="goes on",
         gradcheck={"B": 1, "N": 3}),
    Case("memformer_write", SEGMENT, HEADS, gradcheck=SMALL),
    Case("memformer_write", SEGMENT, {**HEADS, "num_updates": 2}, given=("key_mask",), make=MASK, mask="key_mask", hidden_is_zero=False,
         name="twice", gradcheck=SMALL),
    Case("memformer_encoder", SEGMENT, STACK, gradcheck=SMALL),
    Case("memformer_encoder", SEGMENT, {**STACK, "bidirectional": False}, given=("key_mask",), make=PADDED, mask="key_mask", hidden_is_zero=False,
         gradcheck=SMALL),
    Case("memformer_decoder", SEGMENT, STACK, causal=True, gradcheck=SMALL),
    Case("memformer_decoder", {**SEGMENT, "M": 6}, {**STACK, "bidirectional": True}, given=("key_mask", "encoded_mask"),
         make=PADDED | {"encoded_mask": random_mask("S")}, mask="encoded_mask", hidden_is_zero=False, gradcheck=SMALL),
    Case("memformer", {"B": 2, "N": 6, "M": 4}, MODEL, given=("tgt",), make=IDS, gradcheck={"B": 1, "N": 3, "M": 2}),
    Case("memformer", {"B": 2, "N": 6, "M": 5}, {**MODEL, "swapped_buckets": True, "target_vocab_size": 8, "decoder_heads": 3},
         given=("tgt", "src_mask", "tgt_mask"), make=IDS | MASKS, gradcheck={"B": 1, "N": 3, "M": 2}),
    Case("memformer", {"B": 2, "N": 6}, {**MODEL, "encoder_only": True, "write": "forget"}, given=("reset",), make=IDS | RESET, name="encoder",
         gradcheck={"B": 1, "N": 3}),
    Case("mem_bart_layer", SEGMENT, BART, gradcheck=SMALL),
    Case("mem_bart_layer", SEGMENT, BART, given=("key_mask",), make=MASK, mask="key_mask", hidden_is_zero=False, name="masked", gradcheck=SMALL),
    Case("mem_bart_encoder", SEGMENT, {**BART, "depth": 2, "slots": 3, "max_len": 4096}, gradcheck={"B": 1, "N": 3}),
    Case("mem_bart_encoder", SEGMENT, {**BART, "depth": 1, "slots": 3, "max_len": 4096}, given=("key_mask", "reset"), make=MASK | RESET,
         mask="key_mask", hidden_is_zero=False, gradcheck={"B": 1, "N": 3}),
]  # fmt: skip

PACKAGE = "lucidrains/memformer"
AUTHORS = "qywu/memformers"


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases of the paper's memory, of MemBART, and of the package's encoder (`x`), write (`enc`) and model (`src`)."""
    inputs: dict[str, Any] = {n.removeprefix("input."): x for n, x in t.items() if n.startswith("input.")}
    inputs |= {n: x.bool() for n, x in inputs.items() if n.endswith("mask") or n == "reset"}
    if options["variant"] == "paper":
        return _memory(options, inputs, published("memformer_memory", t))
    if options["variant"] == "membart":
        return _membart(options, inputs, published("mem_bart_encoder", t, AUTHORS))
    if "src" in inputs:
        return _model(options, inputs, published("memformer", t, PACKAGE))
    mask = inputs.get("src_mask")
    if "enc" in inputs:
        given = {"memory": inputs["mem"], "encoded": inputs["enc"], "key_mask": mask}
        chosen = {"embed_dim": inputs["mem"].shape[-1], "num_heads": options["mem_heads"], "num_updates": options["num_mem_updates"]}
        named = {n.replace(".", "_"): x for n, x in published("memformer_write", t, PACKAGE).items()}
        return {"output.out": call("memformer_write", given, named, **chosen)}
    given = {"x": inputs["x"], "memory": inputs["mem"], "key_mask": mask}
    parameters = published("memformer_encoder", t, PACKAGE)
    # The package passes no max_distance on.
    chosen = {"embed_dim": inputs["x"].shape[-1], "num_heads": options["heads"], "depth": options["depth"], "bidirectional": False}
    return {"output.out": call("memformer_encoder", given, parameters, buckets=len(parameters["bias_table"]), **chosen)}


def _memory(options: dict[str, Any], inputs: dict[str, Any], parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    slots, width = parameters["forgetting.forget_bias"].shape
    chosen = {"embed_dim": width, "num_heads": options["heads"], "slots": slots, "temperature": options["temperature"]}
    segments = options.get("segments", [inputs["x"].shape[1]])
    masks = inputs["src_mask"].split(segments, 1) if "src_mask" in inputs else [None] * len(segments)
    memory, reads = inputs.get("mem"), []
    for x, mask in zip(inputs["x"].split(segments, 1), masks, strict=True):
        read, memory = call("memformer_memory", {"x": x, "memory": memory, "key_mask": mask}, parameters, **chosen)
        reads.append(read)
    found = {"read": torch.cat(reads, 1), "memory": memory}
    return {"output.out": found[options["returns"]]} | {f"output.{n}": x for n, x in found.items() if x is not None}


def _membart(options: dict[str, Any], inputs: dict[str, Any], parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    chosen = {"embed_dim": inputs["x"].shape[-1], "num_heads": options["heads"], "depth": options["layers"], "slots": options["slots"]}
    chosen |= {"max_len": len(parameters["positions"]) - 2, "inner_dim": len(parameters["layers.0.tokens.network.up.weight"])}
    segments, state, outputs = options["segments"], None, []
    masks = inputs["src_mask"].split(segments, 1) if "src_mask" in inputs else [None] * len(segments)
    resets = inputs["reset"].unbind(1) if "reset" in inputs else [None] * len(segments)
    for x, mask, reset in zip(inputs["x"].split(segments, 1), masks, resets, strict=True):
        given = {"x": x, "key_mask": mask, "reset": reset, "state": state}
        out, state = call("mem_bart_encoder", given, parameters, step=True, **chosen)
        outputs.append(out)
    assert state is not None
    return {"output.out": torch.cat(outputs, 1), "output.memory": state[0]}


def _model(options: dict[str, Any], inputs: dict[str, Any], parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    slots, width = parameters["memory_slots"].shape
    decodes = options["returns"] == "loss"
    chosen = {"vocab_size": len(parameters["encoder.embedding"]), "embed_dim": width, "num_heads": options["heads"], "slots": slots,
              "encoder_depth": options["enc_depth"], "write_heads": options["mem_heads"], "num_updates": options["num_mem_updates"],
              "buckets": len(parameters["encoder.stack.bias_table"]), "swapped_buckets": True}  # fmt: skip
    if "decoder.embedding" in parameters:
        chosen |= {"decoder_depth": len({n.split(".")[3] for n in parameters if n.startswith("decoder.stack.layers.")}),
                   "target_vocab_size": len(parameters["decoder.embedding"])}  # fmt: skip
    else:
        chosen["encoder_only"] = True
    segments = options["segments"]
    masks = inputs["src_mask"].split(segments, 1) if "src_mask" in inputs else [None] * len(segments)
    state, out, encoded = None, None, None
    for i, (src, mask) in enumerate(zip(inputs["src"].split(segments, 1), masks, strict=True)):
        given = {"src": src, "src_mask": mask, "state": state}
        if decodes and i == len(segments) - 1:
            given |= {"tgt": inputs["tgt"][:, :-1], "tgt_mask": inputs["tgt_mask"][:, :-1] if "tgt_mask" in inputs else None}
        out, encoded, state = call("memformer", given, parameters, step=True, **chosen)
    assert state is not None and out is not None and encoded is not None
    found = {"enc": encoded, "mem": state[0]}
    if decodes:
        found["loss"] = torch.nn.functional.cross_entropy(out.transpose(1, 2), inputs["tgt"][:, 1:])
    return {"output.out": found[options["returns"]]} | {f"output.{n}": x for n, x in found.items() if n != "loss"}
