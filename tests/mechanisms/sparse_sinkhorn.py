"""Sparse Sinkhorn attention: sorted buckets and the own one, SortCut, causal, the model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, published, random_mask


def _gumbel_of_all(sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    return _gumbel({**sizes, "N": 1}, generator)


def _gumbel(sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    buckets = -(-sizes["N"] // 4), -(-sizes["M"] // 4)
    u = torch.rand(sizes["B"], sizes["H"], *buckets, generator=generator, dtype=torch.float64)
    return -(-u.log()).log()


SIZES = {"B": 2, "H": 2, "N": 14, "M": 14, "D": 4}
SELF = {"B": 2, "H": 3, "N": 14, "D": 4}
HEADS = {"num_heads": 2, "head_dim": 4, "bucket_size": 4}
CAUSAL = {**HEADS, "num_heads": 3}
X = {"B": 2, "N": 14, "E": 8}
LAYER = {"embed_dim": 8, "num_heads": 2, "bucket_size": 4}
MODEL = {"vocab_size": 7, "embed_dim": 8, "depth": 2, "num_heads": 2, "bucket_size": 4, "max_len": 5000}
IDS: Any = {"ids": lambda s, g: torch.randint(7, (s["B"], s["N"]), generator=g)}
SMALL = {"B": 1, "N": 5, "M": 5}
SEED: Any = {"dropout_seed": lambda s, g: torch.tensor(7)}
MAKE: Any = {"gumbel": _gumbel, "key_mask": random_mask("M"), "query_mask": random_mask("N")} | SEED
CAUSAL_MAKE: Any = {"key_mask": random_mask("N"), "query_mask": random_mask("N")} | SEED
TWO: Any = {"exported_from": 5}  # two buckets
FIXED: Any = {"length": (), "lengths_fixed": "the sorting network knows so many buckets"}

CASES = [
    Case("sinkhorn_attention", SIZES, HEADS, make=MAKE, **TWO, gradcheck=SMALL),
    Case("sinkhorn_attention", SIZES, {**HEADS, "n_top_buckets": 2}, name="masked", given=("key_mask", "query_mask"), make=MAKE, mask="key_mask",
         **TWO, gradcheck=SMALL),
    Case("sinkhorn_attention", SIZES, {**HEADS, "non_permutative": False}, name="mixed", given=("gumbel",), make=MAKE,
         length=(), lengths_fixed="the noise has a size of its own", gradcheck=SMALL),
    Case("sinkhorn_attention", {**SIZES, "N": 8, "M": 8}, {**HEADS, "non_permutative": False, "sort_net": "simple", "max_buckets": 2}, name="mixed",
         given=("gumbel", "key_mask"), make=MAKE, mask="key_mask", **FIXED, gradcheck={"B": 1}),
    Case("sinkhorn_attention", {**SIZES, "M": 17}, {**HEADS, "n_sortcut": 2, "kv_bucket_size": 3, "dropout": 0.2}, name="cut",
         given=("key_mask", "query_mask", "dropout_seed"), make=MAKE, mask="key_mask", **TWO, gradcheck=SMALL),
    Case("sinkhorn_attention", SIZES, {**HEADS, "n_sortcut": 2, "non_permutative": False, "values_from_keys": True}, name="cut",
         given=("gumbel",), make={"gumbel": _gumbel_of_all}, length=(), lengths_fixed="the noise has a size of its own", gradcheck=SMALL),
    Case("sinkhorn_causal_attention", SELF, CAUSAL, causal=True, gradcheck=SMALL),
    Case("sinkhorn_causal_attention", SELF, {**CAUSAL, "n_top_buckets": 1, "sort_net": "simple", "max_buckets": 5, "temperature": 0.75}, causal=True,
         **FIXED, gradcheck=SMALL),
    Case("sinkhorn_causal_attention", SELF, {**CAUSAL, "dropout": 0.2}, name="masked", given=("key_mask", "query_mask", "dropout_seed"),
         make=CAUSAL_MAKE, gradcheck=SMALL),
    Case("sinkhorn_causal_attention", SELF, {**CAUSAL, "bucket_size": 1}, name="tokens", causal=True, gradcheck=SMALL),
    Case("sinkhorn_self_attention", X, {**LAYER, "n_local_attn_heads": 1, "n_top_buckets": 2}, given=("key_mask",), make=CAUSAL_MAKE, mask="key_mask",
         hidden_is_zero=False, **TWO, gradcheck=SMALL),
    Case("sinkhorn_self_attention", X, {**LAYER, "causal": True, "n_local_attn_heads": 1, "head_dim": 3}, causal=True, gradcheck=SMALL),
    Case("sinkhorn_self_attention", {**X, "M": 11}, {**LAYER, "context_only": True, "n_sortcut": 2, "kv_bucket_size": 3, "dropout": 0.2},
         name="dropped", given=("context", "context_mask", "dropout_keep"), make={"context_mask": random_mask("M")}, **TWO, gradcheck=SMALL),
    Case("sinkhorn_self_attention", {**X, "N": 8}, {**LAYER, "sort_net": "simple", "max_buckets": 2, "non_permutative": False,
         "attention_dropout": 0.2},
         given=("gumbel", "dropout_seed"), make={"gumbel": lambda s, g: _gumbel({**s, "M": s["N"], "H": 2}, g)} | SEED, **FIXED, gradcheck={"B": 1}),
    Case("sinkhorn_transformer", {"B": 2, "N": 14}, {**MODEL, "causal": True, "n_local_attn_heads": 1}, make=IDS, causal=True, gradcheck=SMALL),
    Case("sinkhorn_transformer", {"B": 2, "N": 14}, {**MODEL, "head_dim": 3, "n_top_buckets": 1}, given=("key_mask",), make=IDS | CAUSAL_MAKE, **TWO,
         gradcheck=SMALL),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases have a mask of queries stand for keys, too, where there is none of these and both are cut alike."""
    inputs = {name.removeprefix("input."): x for name, x in t.items() if name.startswith("input.")}
    if (mask := inputs.pop("mask", None)) is not None:
        inputs["query_mask"] = mask
    for name in ("query_mask", "key_mask"):
        if name in inputs:
            inputs[name] = inputs[name].bool()
    form = "sinkhorn_causal_attention" if options["causal"] else "sinkhorn_attention"
    parameters = published(form, t, "lucidrains/sinkhorn-transformer")
    same = inputs["q"].shape[2] == inputs["k"].shape[2] and options.get("kv_bucket_size", options["bucket_size"]) == options["bucket_size"]
    if same and "query_mask" in inputs:
        inputs.setdefault("key_mask", inputs["query_mask"])
    chosen = {name: options[name] for name in ("bucket_size", "sort_net", "temperature", "n_top_buckets") if name in options}
    if not options["causal"]:
        names = ("kv_bucket_size", "non_permutative", "sinkhorn_iter", "n_sortcut", "values_from_keys")
        chosen |= {name: options[name] for name in names if name in options}
    if options["sort_net"] == "simple":
        chosen["max_buckets"] = parameters["sort_weight"].shape[-1]
    out, sort_matrix = call(form, inputs, parameters, num_heads=inputs["q"].shape[1], head_dim=inputs["q"].shape[-1], **chosen)
    return {"output.out": out, "output.sort_matrix": sort_matrix}
