"""Routing Transformer: attention within clusters, where centroids start, the layer with local and routed heads, the model."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, published

QKV = {"B": 2, "H": 2, "N": 12, "M": 12, "D": 4, "Dv": 3, "C": 3, "m": 2}
SMALL = {"B": 1, "N": 5, "M": 5}
X = {"B": 2, "N": 12, "M": 9, "E": 8}
LAYER = {"embed_dim": 8, "num_heads": 4, "num_clusters": 3, "window_size": 4, "local_window_size": 3, "commitment": 0.1}
MODEL = {"vocab_size": 7, "embed_dim": 4, "depth": 2, "num_heads": 2, "num_clusters": 3, "window_size": 4, "local_window_size": 3}
IDS: Any = {"ids": lambda s, g: torch.randint(7, (s["B"], s["N"]), generator=g)}
EVERY: Any = {"exported_from": 6}  # shorter than the window is another graph
CUT: Any = EVERY | {"cut": "centroids are constants, as published"}

CASES = [
    Case("routing_attention", QKV, {"window_size": 4, "commitment": 0.1}, given=("k",), gradcheck=SMALL, **CUT),
    Case("routing_attention", QKV, {"window_size": 5, "causal": True}, given=("query_mask", "key_mask"), gradcheck=SMALL, **CUT),
    Case("routing_attention", QKV | {"M": 9}, {"window_size": 4, "context_window_size": 5}, given=("k", "query_mask", "key_mask"), mask="key_mask",
         name="cross", gradcheck=SMALL | {"M": 6}, **CUT),
    Case("routing_attention", QKV, {"window_size": 4, "causal": True, "eps": 1e-2}, given=("k", "memory_key", "memory_value"), name="memory",
         gradcheck=SMALL, **CUT),
    Case("routing_centroids", {"H": 2, "N": 12, "D": 4}, {"num_clusters": 3, "iterations": 4}, given=("perm",), smallest=3, exported_from=4,
         make={"perm": lambda s, g: torch.randperm(s["N"], generator=g)}),
    Case("routing_self_attention", X, {**LAYER, "local_heads": 2, "causal": True}, given=("mask",), mask="mask", hidden_is_zero=False,
         gradcheck={"B": 1, "N": 5}, **EVERY),
    Case("routing_self_attention", X, {**LAYER, "num_mem_kv": 2, "rotary_global": False, "bias": True}, given=("context", "context_mask"),
         gradcheck={"B": 1, "N": 5, "M": 4}, **EVERY),
    Case("routing_self_attention", X, {**LAYER, "local_heads": 4, "local_radius": 2, "rotary_local": False}, name="local",
         gradcheck={"B": 1, "N": 5}, **EVERY),
    Case("routing_transformer", {"B": 2, "N": 12}, {**MODEL, "local_heads": [1, 0], "causal": True}, given=("mask",), make=IDS,
         gradcheck={"B": 1, "N": 5}, **EVERY),
    Case("routing_transformer", {"B": 2, "N": 12}, {**MODEL, "local_heads": [2], "tie_embedding": True}, make=IDS, name="local",
         gradcheck={"B": 1, "N": 5}, **EVERY),
]  # fmt: skip

SOURCE = "lucidrains/routing-transformer"


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases without keys share them with the queries; gradients of the loss alone are outputs of theirs."""
    inputs = {n.removeprefix("input."): x.bool() if n.endswith("mask") else x for n, x in t.items() if n.startswith("input.")}
    if options["level"] == "kmeans_init":
        chosen = {"num_clusters": options["num_clusters"], "iterations": options["init_iters"]}
        inputs["x"] = inputs["x"].transpose(0, 1).flatten(1, 2)
        return {"output.out": call("routing_centroids", inputs, **chosen)}
    routing = {n: options[n] for n in ("window_size", "context_window_size", "causal", "commitment", "ema_decay", "eps") if n in options}
    if options["level"] == "self_attention":
        form = "routing_self_attention"
        given = {"x": inputs["x"]} | {"mask": inputs[n] for n in ("mask", "query_mask") if n in inputs}
        chosen = {
            n: options[n] for n in ("local_heads", "num_clusters", "shared_qk", "num_mem_kv", "local_window_size", "local_radius") if n in options
        }
        chosen |= {n: options[n] for n in ("rotary_local", "rotary_global")} | {"num_heads": options["heads"], "embed_dim": given["x"].shape[-1]}
        out = call(form, given, {**published(form, t, SOURCE), "means": inputs["means"]}, **chosen, **routing)
        return {"output.out": out.out, "output.commitment_loss": out.loss.reshape(1)}
    if not options["receives_context"] and "query_mask" in inputs:
        inputs.setdefault("key_mask", inputs["query_mask"])
    if "k" not in inputs and not options["shared_qk"]:
        inputs["k"] = inputs["q"]
    memory = {f"memory_{n}": t[f"param.mem_{n}"] for n in ("key", "value") if f"param.mem_{n}" in t}
    out = call("routing_attention", inputs | memory, **routing)
    leaves = {n: inputs[n].detach().requires_grad_() for n in ("q", "k") if n in inputs}
    alone = call("routing_attention", inputs | leaves, **routing).loss
    gradients = torch.autograd.grad(alone, list(leaves.values()))
    found = {f"output.loss_grad_{n}": g for n, g in zip(leaves, gradients, strict=True)}
    return {
        "output.out": out.out,
        "output.commitment_loss": out.loss.detach().reshape(1),
        "output.means_after_update": out.new_means.detach(),
        **found,
    }
