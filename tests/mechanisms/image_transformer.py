"""Image Transformer: 1D and 2D local attention, and the layer."""

from typing import Any

from torch import Tensor

from tests.contract import Case, call, published, random_mask

QKV = {"B": 2, "H": 4, "Hk": 2, "N": 23, "D": 4, "Dv": 3}
SMALL = {"B": 1, "H": 2, "Hk": 1, "N": 5, "D": 2, "Dv": 2}
IMAGE = {"B": 2, "H": 2, "Y": 7, "X": 8, "D": 4, "Dv": 3}
TINY = {"B": 1, "H": 1, "Y": 3, "X": 2, "D": 2, "Dv": 2}
BLOCKS = {"query_shape": [3, 2], "memory_flange": [2, 3]}
SEQUENCE = {"B": 2, "N": 13, "E": 8}
LAYER = {"embed_dim": 8, "num_heads": 2, "ff_dim": 6}
KEY_MASK: Any = {"key_mask": random_mask("N")}

CASES = [
    Case("image_transformer_attention", QKV, {"block_length": 5}, causal=True, gradcheck=SMALL),
    Case("image_transformer_attention", QKV, {"block_length": 4, "memory_length": 7}, name="memory", causal=True, gradcheck=SMALL),
    Case("image_transformer_attention", QKV, {"block_length": 4, "memory_length": 0}, name="within", given=("key_mask",), make=KEY_MASK,
         mask="key_mask", gradcheck=SMALL),
    Case("image_transformer_attention", QKV, {"block_length": 4, "filter_width": 3, "causal": False}, given=("key_mask",), make=KEY_MASK,
         mask="key_mask", gradcheck=SMALL),
    Case("image_transformer_attention", QKV, {"block_length": 3, "filter_width": 6, "causal": False, "shift_whole_blocks": True}, gradcheck=SMALL),
    Case("image_transformer_grid_attention", IMAGE, BLOCKS, gradcheck=TINY, length=("Y", "X"), exported_from=4),
    Case("image_transformer_grid_attention", IMAGE, {**BLOCKS, "causal": False}, given=("key_mask",), mask="key_mask", gradcheck=TINY,
         length=("Y", "X"), exported_from=4),
    Case("image_transformer_grid_attention", IMAGE, {"query_shape": [2, 3], "memory_flange": [0, 2], "padding_takes_part": True}, gradcheck=TINY,
         length=("Y", "X"), exported_from=4),
    Case("image_transformer_layer", SEQUENCE, {**LAYER, "block_length": 4, "memory_length": 5}, causal=True, gradcheck={"B": 1, "N": 4}),
    Case("image_transformer_layer", SEQUENCE, {**LAYER, "block_length": 4, "filter_width": 3, "causal": False, "dropout": 0.5}, given=("key_mask",),
         make=KEY_MASK, mask="key_mask", hidden_is_zero=False, gradcheck={"B": 1, "N": 4}),
    Case("image_transformer_layer", SEQUENCE, {**LAYER, **BLOCKS, "image_shape": [5, 5]}, given=("key_mask",), make=KEY_MASK, mask="key_mask",
         hidden_is_zero=False, gradcheck={"B": 1, "N": 4}, exported_from=11),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """`mode` is a function of tensor2tensor, or the paper's memory of any length."""
    mode = options["mode"]
    chosen: dict[str, Any] = {"causal": not mode.startswith("unmasked")}
    if mode.endswith("2d"):
        chosen |= {n: options[n] for n in ("query_shape", "memory_flange") if n in options}
    else:
        chosen |= {n: options[n] for n in ("block_length", "filter_width") if n in options}
        if mode == "masked_1d_mem":
            chosen["memory_length"] = options["memory_length"]
        elif mode == "within_block_1d":
            chosen["memory_length"] = 0
    masks = {"key_mask": t["input.key_padding_mask"].bool()} if "input.key_padding_mask" in t else {}
    if "input.x" not in t:
        form = "image_transformer_grid_attention" if mode.endswith("2d") else "image_transformer_attention"
        if options.get("scale") is not None:
            chosen["scale"] = options["scale"]
        return {"output.out": call(form, {n: t[f"input.{n}"] for n in "qkv"} | masks, **chosen)}
    parameters = published("image_transformer_layer", t)
    x = t["input.x"]
    chosen |= {"embed_dim": x.shape[-1], "ff_dim": t["param.ff1.bias"].shape[0]}
    chosen |= {n: options[n] for n in ("num_heads", "layer_norm_eps") if n in options}
    if not mode.endswith("2d"):
        return {"output.out": call("image_transformer_layer", {"x": x} | masks, parameters, training=False, **chosen)}
    chosen["image_shape"] = list(x.shape[1:3])
    out = call("image_transformer_layer", {"x": x.flatten(1, 2)} | masks, parameters, training=False, **chosen)
    return {"output.out": out.unflatten(1, x.shape[1:3])}
