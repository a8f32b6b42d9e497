"""Product-key memory: the lookup, the paper's layer, and that of the package product-key-memory."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, all_but_last, call, published

X = {"B": 2, "N": 5, "E": 6}
SMALL = {"B": 1, "N": 2}
MASK: Any = {"query_mask": all_but_last("N", 2)}
LOOKUP = {"B": 2, "H": 2, "N": 5, "D": 6, "Dv": 3}
MEMORY = {"input_dim": 6, "heads": 2, "n_keys": 5, "key_dim": 4, "topk": 3}
PKM = {"dim": 6, "heads": 2, "num_keys": 5, "topk": 3, "dim_head": 4}


def _normal(*size: int | str) -> Any:
    return lambda s, g: torch.randn(*(s[n] if isinstance(n, str) else n for n in size), generator=g, dtype=torch.float64)


def _keep(*size: int | str) -> Any:
    return lambda s, g: torch.rand(*(s[n] if isinstance(n, str) else n for n in size), generator=g) < 0.7


def _orders(heads: int, slots: int) -> Any:
    return lambda s, g: torch.stack([torch.randperm(slots, generator=g) for _ in range(heads)])


TABLES: Any = {"keys": _normal(2, 2, 5, 3), "values": _normal(25, "Dv")}

CASES = [
    Case("product_key_lookup", LOOKUP, {"topk": 3}, given=("query_mask",), make=TABLES | MASK, mask="query_mask", gradcheck=SMALL),
    Case("product_key_lookup", LOOKUP, {"topk": 4, "normalize_query": True, "temperature": 0.7, "score_subtract": "min", "score_normalize": True,
         "modulo_size": 17}, given=("permutations",), make={**TABLES, "keys": _normal(1, 1, 5, 3), "permutations": _orders(2, 25)}, gradcheck=SMALL),
    Case("product_key_lookup", LOOKUP, {"topk": 5, "flat": True, "score_subtract": "median"},
         make={"keys": _normal(2, 1, 9, 6), "values": _normal(9, "Dv")}, gradcheck=SMALL),
    Case("product_key_lookup", LOOKUP, {"topk": 3, "gate": "relu", "score_subtract": "mean"}, make={**TABLES, "keys": _normal(1, 2, 5, 3)},
         gradcheck=SMALL),
    Case("product_key_memory", X, MEMORY, gradcheck=SMALL, causal=True),
    Case("product_key_memory", X, {**MEMORY, "query_hidden": [5, 4]}, given=("query_mask",), make=MASK, mask="query_mask", gradcheck=SMALL),
    Case("product_key_memory", X, {**MEMORY, "query_hidden": [4], "multi_query_net": True, "output_dim": 3, "shuffle_indices": True,
         "different_keys": False, "keys_init": "binary"}, gradcheck=SMALL, causal=True),
    Case("product_key_memory", X, {**MEMORY, "query_identity": True, "key_dim": 6, "keys_init": "gaussian", "keys_normalized": True, "flat": True},
         gradcheck=SMALL, causal=True),
    Case("product_key_memory", X, {**MEMORY, "query_batchnorm": False, "keys_learn": False, "query_net_learn": False, "flat": True,
         "different_keys": False, "input_dropout": 0.3, "query_dropout": 0.3, "value_dropout": 0.3}, name="drawn",
         given=("input_keep", "query_keep", "value_keep"), gradcheck=SMALL, cut="keys and query network are not trained",
         make={"input_keep": _keep("B", "N", 6), "query_keep": _keep("B", "N", 8), "value_keep": _keep("B", "N", 6)}),
    Case("pkm", X, PKM, gradcheck=SMALL, causal=True),
    Case("pkm", X, {**PKM, "pre_layernorm": True, "norm_output": True, "non_competitive_gates": True, "concat_values_and_combine": True},
         given=("query_mask",), make=MASK, mask="query_mask", gradcheck=SMALL),
    Case("pkm", X, {**PKM, "use_layernorm": False, "differentiable_topk": True, "topk": 5}, gradcheck=SMALL,
         cut="scores pass the gradient of a soft choice"),
    Case("pkm", X, {**PKM, "num_keys": 3, "gumbel_noise_scale": 0.5, "input_dropout": 0.3, "query_dropout": 0.3, "value_dropout": 0.3,
         "attn_dropout": 0.3}, name="drawn", gradcheck=SMALL,
         given=("trainable_slots", "gumbel", "input_keep", "query_keep", "value_keep", "weight_keep"), cut="some values are not trained",
         make={"trainable_slots": _keep(9), "gumbel": _normal("B", "N", 2, 2, 3), "input_keep": _keep("B", "N", 6),
               "query_keep": _keep("B", "N", 16), "value_keep": _keep("B", "N", 6), "weight_keep": _keep("B", "N", 2, 3)}),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases of the package have a `query_norm`, the others are the authors'; both give indices and scores token by token."""
    x = t["input.x"]
    batch = x if x.dim() == 3 else x.unsqueeze(0)
    if "query_norm" in options:
        known = ("heads", "dim_head", "num_keys", "topk", "non_competitive_gates", "concat_values_and_combine", "norm_output", "pre_layernorm")
        chosen = {n: options[n] for n in known if n in options} | {"use_layernorm": options["query_norm"] == "layernorm"}
        parameters = published("pkm", t, "product-key-memory")
        result = call("pkm", {"x": batch}, parameters, dim=x.shape[-1], training=bool(options.get("training")), **chosen)
    else:
        result, statistics = _authors(options, t, batch)
    flat = {"output.indices": result.indices.flatten(0, 1), "output.scores": result.scores.flatten(0, 1)}
    return {"output.out": result.out.reshape(*x.shape[:-1], -1), **flat, **({} if "query_norm" in options else statistics)}


def _authors(options: dict[str, Any], t: dict[str, Tensor], x: Tensor) -> tuple[Any, dict[str, Tensor]]:
    batchnorm, widths = options["query_batchnorm"], options["query_sizes"]
    parameters = published("product_key_memory", t, "facebookresearch/XLM" + (", batch normalisation" if batchnorm else ""))
    if "input.head_permutations" in t:
        parameters["drawn.permutations"] = t["input.head_permutations"]
    for name in [n for n in parameters if n.endswith("norm.weight")]:  # statistics that are not given start anew
        for statistic, start in (("running_mean", 0.0), ("running_var", 1.0)):
            given = t.get(f"input.{statistic}_before", torch.full_like(parameters[name], start)).detach().clone()
            parameters.setdefault(name.replace("weight", statistic), given)
    chosen = {n: options[n] for n in ("heads", "n_keys", "key_dim", "topk", "flat", "normalize_query", "score_normalize", "shuffle_indices")}
    result = call(
        "product_key_memory", {"x": x}, parameters, training=options["training"], input_dim=x.shape[-1], output_dim=options["value_dim"],
        temperature=float(options["temperature"]), gate="softmax" if options["score_softmax"] else "identity",
        score_subtract=options["score_subtract"] or "none", modulo_size=options["modulo_size"] if options["modulo_size"] > 0 else None,
        query_hidden=widths[1:-1], query_identity=not widths, query_batchnorm=batchnorm, multi_query_net=options["query_nets"] > 1,
        different_keys=options["different_keys"], keys_learn=options["learn_keys"], **chosen,
    )  # fmt: skip
    return result, {f"output.{n}": parameters.get(f"queries.0.layers.0.norm.{n}", x) for n in ("running_mean", "running_var")}
