"""Sparse Transformer: the paper's sets, its residual blocks, and layouts of blocks."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, published

QKV = {"B": 2, "H": 4, "Hk": 2, "N": 40, "D": 4, "Dv": 3}
SMALL = {"B": 1, "H": 2, "Hk": 2, "N": 5, "D": 2, "Dv": 2}
SEQUENCE = {"B": 2, "N": 13, "E": 8}
SELF = {"B": 2, "H": 2, "N": 38, "D": 4, "Dv": 3}
TINY = {"B": 1, "H": 2, "N": 5, "D": 2, "Dv": 2}


def _mask(*letters: str) -> Any:
    return lambda s, g: torch.rand([s[letter] for letter in letters], generator=g) < 0.8


def _normal(*letters: str) -> Any:
    return lambda s, g: torch.randn([s[letter] for letter in letters], generator=g, dtype=torch.float64)


def _draw(block: int, count: int) -> Any:
    def make(sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
        blocks = -(-sizes["N"] // block)
        return torch.rand(1, blocks, max(blocks, count), generator=generator).argsort(-1)[..., :count] % blocks

    return make


CASES = [
    Case("sparse_transformer_attention", QKV, {"stride": 6}, causal=True, gradcheck=SMALL),
    Case("sparse_transformer_attention", QKV, {"stride": 7}, name="masked", given=("key_mask",), make={"key_mask": _mask("B", "N")}, mask="key_mask",
         gradcheck=SMALL),
    Case("sparse_transformer_attention", QKV, {"stride": 5, "combine": "interleaved", "layer": 1}, name="second layer", causal=True, gradcheck=SMALL),
    Case("sparse_transformer_attention", QKV, {"stride": 6, "combine": "per_head"}, name="by head", causal=True, gradcheck=SMALL),
    Case("sparse_transformer_attention", QKV, {"pattern": "fixed", "stride": 8, "columns": 2, "column_groups": 2}, name="groups",
         given=("key_mask",), make={"key_mask": _mask("B", "N")}, mask="key_mask", gradcheck=SMALL),
    Case("sparse_transformer_attention", QKV, {"pattern": "fixed", "stride": 8, "columns": 3, "combine": "interleaved"}, causal=True,
         gradcheck=SMALL),
    Case("sparse_transformer_attention", QKV, {"pattern": "local", "stride": 5}, causal=True, gradcheck=SMALL),
    Case("sparse_transformer_attention", QKV, {"pattern": "all"}, causal=True, gradcheck=SMALL),
    Case("sparse_transformer_block", SEQUENCE, {"embed_dim": 8, "num_heads": 2, "stride": 4}, causal=True, gradcheck={"B": 1, "N": 4}),
    Case("sparse_transformer_block", SEQUENCE, {"embed_dim": 8, "num_heads": 2, "stride": 3, "pattern": "local"}, given=("key_mask",),
         make={"key_mask": _mask("B", "N")}, mask="key_mask", hidden_is_zero=False, gradcheck={"B": 1, "N": 4}),
    Case("sparse_transformer_stack", SEQUENCE, {"embed_dim": 8, "num_heads": 2, "num_layers": 2, "stride": 4}, causal=True,
         gradcheck={"B": 1, "N": 4}),
    Case("block_sparse_attention", SELF,
         {"block": 4, "num_local_blocks": 3, "num_different_global_patterns": 2, "different_layout_per_head": True, "causal": True}, causal=True,
         gradcheck=TINY, exported_from=8),
    Case("block_sparse_attention", SELF, {"block": 3, "attention": "unidirectional", "num_global_blocks": 2}, name="masked",
         given=("key_mask", "rpe", "key_padding_mask", "attn_mask"),
         make={"rpe": _normal("H", "N", "N"), "attn_mask": lambda s, g: _mask("N", "N")(s, g).double()}, mask="key_mask", gradcheck=TINY,
         exported_from=6),
    Case("block_sparse_attention", SELF,
         {"config": "variable", "block": 4, "num_random_blocks": 2, "local_window_blocks": [1, 2], "horizontal_global_attention": True,
          "key_padding_mask_mode": "mul", "attn_mask_mode": "add"},
         given=("random_blocks", "mask", "attn_mask"), make={"random_blocks": _draw(4, 2), "mask": _mask("N", "N")}, mask="mask", gradcheck=TINY,
         length=(), lengths_fixed="random_blocks has a row for each block of one length"),
    Case("block_sparse_attention", SELF, {"config": "local_sliding_window", "block": 4}, gradcheck=TINY, exported_from=8),
    Case("block_sparse_attention", SELF, {"config": "dense", "block": 4, "causal": True}, causal=True, gradcheck=TINY,
         exported_from=8),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """`combine`: the paper's sets; `config`: a layout of DeepSpeed; neither: a mode of the authors' code."""
    if "num_layers" in options:
        inputs = {n.removeprefix("input."): x for n, x in t.items() if n.startswith("input.")}
        parameters = published("sparse_transformer_stack", t)
        return {"output.out": call("sparse_transformer_stack", inputs, parameters, **_sets(options), **_model(options, inputs["x"].shape[-1]))}
    if "input.q" not in t:
        return {f"output.{name}.layout": _layout(case, t.get(f"input.{name}.random_blocks")) for name, case in options.items()}
    qkv = {name: t[f"input.{name}"] for name in "qkv"}
    if "config" in options:
        out, layout = _block_sparse(options, qkv, t)
        return {"output.out": out, "output.layout": layout}
    extra = {"key_mask": t["input.key_padding_mask"]} if "input.key_padding_mask" in t else {}
    outputs = {"output.out": call("sparse_transformer_attention", {**qkv, **extra}, **_sets(options))}
    if options["pattern"] == "fixed" and "combine" not in options:
        segment, vertsize, groups = options["stride"] // options["block"], options.get("vertsize", 1), options.get("num_verts", 4)
        as_layout = {"config": "fixed", "attention": "unidirectional", "num_local_blocks": segment, "num_global_blocks": vertsize,
                     "num_different_global_patterns": groups, "block": options["block"], "different_layout_per_head": True}  # fmt: skip
        outputs["output.layout"] = call("block_sparse_attention", qkv, causal=True, **as_layout)[1]
    return outputs


def _sets(options: dict[str, Any]) -> dict[str, Any]:
    """The sets: of the paper where `combine` is given, of the authors' code else."""
    kept = {name: options[name] for name in ("stride", "combine", "layer", "scale") if name in options}
    if "combine" in options:
        return {"pattern": options["pattern"], "columns": options.get("c", 1), "column_groups": options.get("num_verts", 1), **kept}
    mode = options["pattern"]
    if mode == "strided":
        return {"pattern": "strided", "combine": "interleaved", "layer": 1, **kept}
    if mode == "fixed":
        summary, groups = options["block"] * options.get("vertsize", 1), options.get("num_verts", 4)
        return {"pattern": "fixed", "combine": "merged", "columns": summary, "column_groups": groups, **kept}
    return {"pattern": mode, **kept}


def _model(options: dict[str, Any], width: int) -> dict[str, Any]:
    return {"embed_dim": width, **{n: options[n] for n in ("num_heads", "num_layers", "ff_mult", "layer_norm_eps") if n in options}}


_CONFIGURATION = (
    "config", "block", "different_layout_per_head", "num_local_blocks", "num_global_blocks", "attention", "horizontal_global_attention",
    "num_different_global_patterns", "num_random_blocks", "local_window_blocks", "global_block_indices", "global_block_end_indices",
    "num_sliding_window_blocks", "key_padding_mask_mode", "attn_mask_mode", "causal", "scale",
)  # fmt: skip


def _block_sparse(options: dict[str, Any], inputs: dict[str, Tensor], t: dict[str, Tensor]) -> Any:
    """A boolean mask has an input of its own."""
    booleans = {"key_padding_mask": "key_mask", "attn_mask": "mask"}
    given = dict(inputs)
    for name in ("rpe", "key_padding_mask", "attn_mask", "random_blocks"):
        if (x := t.get(f"input.{name}")) is not None:
            numbers = name == "random_blocks" or x.dtype == torch.bool or x.is_floating_point()
            given[booleans.get(name, name) if x.dtype == torch.bool else name] = x if numbers else x.to(inputs["q"].dtype)
    chosen = {name: options[name] for name in _CONFIGURATION if options.get(name) is not None}
    if options["config"] == "variable" and "random_blocks" not in given and "num_random_blocks" in chosen:
        chosen["num_random_blocks"] = 0
    return call("block_sparse_attention", given, **chosen)


def _layout(options: dict[str, Any], random_blocks: Tensor | None) -> Tensor:
    x = torch.zeros(1, options["num_heads"], options["num_blocks"] * options["block"], 1, dtype=torch.float64)
    return _block_sparse(options, dict.fromkeys("qkv", x), {} if random_blocks is None else {"input.random_blocks": random_blocks})[1]
