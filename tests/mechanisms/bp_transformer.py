"""BP-Transformer: the block and the model."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, published

SIZES = {"B": 2, "N": 13, "M": 5, "E": 8}
SMALL = {"B": 1, "N": 5, "M": 2}
BLOCK = {"embed_dim": 8, "num_heads": 2, "inner_dim": 6, "neighbors": 2, "clip_dist": 2, "dropout": 0, "attention_dropout": 0}
MODEL = {**BLOCK, "num_layers": 2}
LENGTHS: Any = {"lengths": lambda s, g: torch.arange(s["B"]) % s["N"] + s["N"] - s["B"] + 1}

CASES = [
    Case("bp_transformer_block", SIZES, BLOCK, gradcheck=SMALL, exported_from=3),
    Case("bp_transformer_block", SIZES, {**BLOCK, "causal": True}, causal=True, gradcheck=SMALL, exported_from=3),
    Case("bp_transformer", SIZES, {**MODEL, "causal": True, "neighbors": 1}, causal=True, gradcheck=SMALL, exported_from=3),
    Case("bp_transformer", SIZES, {**MODEL, "right_overflow": True}, name="ragged", given=("lengths",), make=LENGTHS, gradcheck=SMALL,
         exported_from=3),
    Case("bp_transformer", SIZES, {**MODEL, "memory": True, "rel_pos": False, "max_len": 4096, "input_norm": False},
         given=("memory_states", "memory_mask"), gradcheck=SMALL, exported_from=3),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leaves, then spans, in one tensor; the graph's edges."""
    names = {"dim_ff": "inner_dim", "step": "neighbors", "compat_right_overflow": "right_overflow"}
    known = ("num_layers", "num_heads", "dim_ff", "step", "clip_dist", "causal", "rel_pos")
    chosen = {names.get(n, n): options[n] for n in known if n in options} | {"right_overflow": options.get("compat_right_overflow", True)}
    inputs = {"x": t["input.x"]} | ({"memory_states": t["input.memory"]} if "input.memory" in t else {})
    memory = options.get("block") == "bpt_mem"
    own = published("bp_transformer", t, "paper, with memory" if memory else "paper")
    size = {"embed_dim": t["input.x"].shape[-1], "memory": memory, "input_norm": False}
    tokens, spans = call("bp_transformer", inputs, own, **chosen, **size)
    graph = {n: chosen[n] for n in ("clip_dist", "causal", "right_overflow")}
    edges, node_pos = torch.ops.foveate.partition_graph(t["input.x"].shape[1], step=options["step"], **graph)
    return {"output.out": torch.cat([tokens, spans], 1), "output.edges": edges, "output.node_pos": node_pos}
