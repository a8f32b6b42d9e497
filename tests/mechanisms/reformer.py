"""Reformer: LSH attention in both published forms, the layers around it, the reversible stack."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, Maker, call, published

QKV = {"B": 2, "H": 2, "N": 16, "D": 4, "Dv": 3}
X = {"B": 2, "N": 16, "E": 8}
RMS = {"variant": "rmsnorm", "bucket_size": 4, "n_buckets": [2, 2], "n_hashes": 2}
LAYER = {"embed_dim": 8, "num_heads": 2, "bucket_size": 4, "n_hashes": 2, "n_buckets": [4]}
HF = {"embed_dim": 8, "num_heads": 2, "head_dim": 3, "chunk_length": 4}
SHORT = {"B": 1, "N": 8}


def _rotations(*sizes: int) -> Maker:
    return lambda s, g: torch.randn(sizes, generator=g, dtype=torch.float64)


def _drawn(*sizes: int) -> Any:
    return {"rotations": _rotations(*sizes)}


CASES = [
    Case("lsh_attention", QKV, {"bucket_size": 4, "n_buckets": [4], "n_hashes": 2}, given=("rotations", "mask"), make=_drawn(1, 4, 2, 2),
         gradcheck=SHORT),
    Case("lsh_attention", QKV, {"bucket_size": 2, "n_buckets": [4], "n_hashes": 3, "causal": True, "allow_duplicate_attention": False},
         given=("rotations",), make={"rotations": lambda s, g: torch.randn(s["B"] * s["H"], 4, 3, 2, generator=g, dtype=torch.float64)},
         gradcheck=SHORT),
    Case("lsh_attention", QKV, {"bucket_size": 4, "n_buckets": [4], "n_hashes": 2, "attend_across_buckets": False, "rehash_each_round": False,
         "query_len": 8, "causal": True}, given=("rotations",), make=_drawn(2, 4, 1, 2), name="top", gradcheck=SHORT, length=(),
         lengths_fixed="query_len is a length"),
    Case("lsh_attention", QKV, {**RMS, "causal": True, "chunks_after": 1}, given=("rotations", "mask"), make=_drawn(2, 4, 2, 2), gradcheck=SHORT),
    Case("lsh_attention", QKV, {"full_attn_thres": 32, "causal": True}, given=("mask",), name="full", gradcheck=SHORT, length=(),
         lengths_fixed="the length decides whether all is attended in full"),
    Case("lsh_self_attention", X, {**LAYER, "n_local_heads": 1, "num_mem_kv": 8, "causal": True, "allow_duplicate_attention": False},
         given=("rotations", "mask"), make=_drawn(1, 4, 2, 2), gradcheck=SHORT),
    Case("lsh_self_attention", X, {**LAYER, "one_value_head": True}, given=("rotations",), make=_drawn(1, 4, 2, 2), gradcheck=SHORT),
    Case("lsh_self_attention", X, {**LAYER, "rotary": True, "num_mem_kv": 8}, given=("rotations",), make=_drawn(1, 4, 2, 2), gradcheck=SHORT),
    Case("lsh_incremental_attention", QKV, {"bucket_size": 2, "n_buckets": [4], "n_hashes": 2, "chunks_before": 0}, given=("rotations",),
         make=_drawn(2, 4, 2, 2), causal=True, gradcheck=SHORT),
    Case("lsh_incremental_attention", QKV, {"variant": "l2norm", "bucket_size": 3, "n_buckets": [2, 2], "n_hashes": 1, "mem_len": 5},
         given=("rotations",), make=_drawn(1, 4, 1, 2), causal=True, gradcheck=SHORT),
    Case("reformer_lsh_self_attention", X | {"H": 2}, {**HF, "num_hashes": 2, "num_buckets": [4], "causal": True}, given=("rotations", "mask"),
         make=_drawn(2, 3, 2, 2), gradcheck=SHORT),
    Case("reformer_local_self_attention", X, {**HF, "chunks_after": 1}, given=("mask",), mask="mask", gradcheck=SHORT),
    Case("reformer_local_self_attention", X, {**HF, "causal": True}, causal=True, gradcheck=SHORT),
    Case("reformer", X | {"H": 2}, {**HF, "inner_dim": 12, "layers": ["local", "lsh"], "num_buckets": [4], "axial_shape": [65, 64],
         "axial_dims": [3, 5], "ff_chunk": 5}, given=("rotations", "mask"), make=_drawn(1, 2, 3, 1, 2), gradcheck=SHORT),
]  # fmt: skip

PACKAGE = "lucidrains/reformer-pytorch"
TRANSFORMERS = "transformers"


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases name a level; their rotations are of all, of heads, or of heads of sequences."""
    inputs = {n.removeprefix("input."): x.bool() if n.endswith("mask") else x for n, x in t.items() if n.startswith("input.")}
    level = options["level"]
    if level.startswith("lsh"):
        given = ("bucket_size", "n_hashes", "causal", "allow_duplicate_attention", "attend_across_buckets", "rehash_each_round", "query_len")
        chosen = {n: options[n] for n in (*given, "n_local_heads", "num_mem_kv", "one_value_head", "full_attn_thres") if options.get(n) is not None}
        chosen["n_buckets"] = options["n_buckets"] if isinstance(options["n_buckets"], list) else [options["n_buckets"]]
        if level == "lsh_attention":
            out = call(level, inputs, **chosen)
            return {"output.out": out.out, "output.buckets": out.buckets}
        parameters = published(level, t, PACKAGE)
        return {"output.out": call(level, inputs, parameters, num_heads=options["heads"], embed_dim=inputs["x"].shape[-1], **chosen)}
    buckets = options.get("num_buckets")
    hashing = {"num_hashes": options["num_hashes"], "num_buckets": buckets if isinstance(buckets, list) else [buckets]}
    chosen = {n: options[n] for n in ("head_dim", "chunk_length", "chunks_before", "chunks_after", "causal")}
    chosen |= {"num_heads": options["heads"], "embed_dim": inputs["x"].shape[-1]}
    if level == "rms_local_self_attention":
        form = "reformer_local_self_attention"
        return {"output.out": call(form, inputs, published(form, t, TRANSFORMERS), **chosen)}
    if level == "rms_lsh_self_attention":
        form = "reformer_lsh_self_attention"
        out = call(form, inputs, published(form, t, TRANSFORMERS), **chosen, **hashing)
        return {"output.out": out.out, "output.buckets": out.buckets}
    rotations = [inputs.pop(n) for n in sorted(inputs) if n.startswith("rotations.")]
    if rotations:
        inputs["rotations"] = torch.stack(rotations)
    parameters = published("reformer", t, TRANSFORMERS)
    chosen |= {n: options[n] for n in ("layers", "axial_shape", "axial_dims", "ff_chunk", "ff_activation", "layer_norm_eps")}
    chosen["inner_dim"] = parameters["layers.0.network.up.weight"].shape[0]
    return {"output.out": call("reformer", inputs, parameters, **chosen, **hashing)}
