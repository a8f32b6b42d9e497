"""TaLK convolution: window sums, the convolution and the layer around it."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, all_but_last, call, published, random_mask

SOURCE = "lioutasb/TaLKConvolutions"


def _offsets(heads: int) -> Any:
    return lambda s, g: torch.rand(s["B"], s["N"], heads, generator=g, dtype=torch.float64)


def _keep(width: int | None = None) -> Any:
    return lambda s, g: torch.rand(s["B"], s["N"], width or s["E"], generator=g) < 0.7


def _context(s: Any, g: torch.Generator) -> Tensor:
    return torch.randn(s["B"], 5, 7, generator=g, dtype=torch.float64)


def _context_mask(s: Any, g: torch.Generator) -> Tensor:
    return torch.arange(5).expand(s["B"], -1) < 4


X = {"B": 2, "N": 13, "C": 6, "H": 2}
SEQUENCE = {"B": 2, "N": 11, "C": 6}
LAYER = {"B": 2, "N": 11, "E": 6}
SMALL = {"B": 1, "N": 5}
BOTH: Any = {"offset_left": _offsets(2), "offset_right": _offsets(2)}
NET = {"embed_dim": 6, "conv_dim": 4, "ffn_dim": 5, "num_heads": 2}
MASK: Any = {"key_mask": all_but_last("N", 2)}

CASES = [
    Case("window_sum", X, {"max_left": 3, "max_right": 2}, given=("offset_right", "key_mask"), make=BOTH | MASK, mask="key_mask", gradcheck=SMALL),
    Case("window_sum", X, {"max_left": 4, "causal": True}, make=BOTH, causal=True, gradcheck=SMALL),
    Case("window_sum", X, {"max_left": 20, "divisor": "length"}, given=("offset_right",), make=BOTH, gradcheck=SMALL),
    Case("window_sum", X, {"max_left": 4, "causal": True, "divisor": "length"}, make=BOTH, causal=True, gradcheck=SMALL),
    Case("talk_convolution", SEQUENCE, {"hid_dim": 6, "num_heads": 3, "max_left": 3}, given=("key_mask",), make={"key_mask": random_mask("N")},
         mask="key_mask", gradcheck=SMALL),
    Case("talk_convolution", SEQUENCE, {"hid_dim": 6, "num_heads": 2, "max_left": 5, "causal": True}, causal=True, gradcheck=SMALL),
    Case("talk_convolution", SEQUENCE, {"hid_dim": 6, "num_heads": 2, "max_left": 2, "max_right": 4, "offsets_dropout": 0.3, "divisor": "one"},
         name="drawn", given=("offset_keep",), make={"offset_keep": _keep(4)}, gradcheck=SMALL),
    Case("talk_convolution_layer", LAYER, {**NET, "max_left": 3}, given=("key_mask",), make=MASK, mask="key_mask", hidden_is_zero=False,
         gradcheck=SMALL),
    Case("talk_convolution_layer", LAYER, {**NET, "max_left": 4, "causal": True, "glu": False, "normalize_before": True}, causal=True,
         gradcheck=SMALL),
    Case("talk_convolution_layer", LAYER, {**NET, "max_left": 4, "causal": True, "encoder_attention": True, "context_dim": 7, "attention_heads": 3},
         given=("context", "context_mask"), make={"context": _context, "context_mask": _context_mask}, causal=True, gradcheck=SMALL),
    Case("talk_convolution_layer", LAYER, {**NET, "max_left": 2, "offsets_dropout": 0.3, "input_dropout": 0.3, "dropout": 0.3,
         "activation_dropout": 0.3}, name="drawn", given=("offset_keep", "input_keep", "conv_keep", "activation_keep", "ffn_keep"),
         make={"offset_keep": _keep(4), "input_keep": _keep(), "conv_keep": _keep(), "activation_keep": _keep(5), "ffn_keep": _keep()},
         gradcheck=SMALL),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """`level` is the form. Padding is filled with zeros in the encoder's layer only; the state is the buffer of all sums before each token."""
    x, causal, level = t["input.x"], options["causal"], options["level"]
    windows = {"max_left": options["max_left"], "max_right": 0 if causal else options["max_right"], "causal": causal}
    if level == "core":
        inputs = {n: t[f"input.{n}"] for n in ("x", "offset_left", "offset_right") if f"input.{n}" in t and not (causal and n == "offset_right")}
        return {"output.out": call("window_sum", inputs, **windows)}
    keep = {"offset_keep": t["input.offset_keep"].bool()} if "input.offset_keep" in t else {}
    chosen = {**windows, "num_heads": options["num_heads"], "offsets_dropout": options.get("offsets_dropout", 0.0)}
    if level == "talkconv":
        parameters = published("talk_convolution", t, SOURCE)
        outputs = {"output.out": call("talk_convolution", {"x": x, **keep}, parameters, hid_dim=x.shape[2], training=False, **chosen)}
        if options.get("streaming"):
            outputs["output.stream"] = _stream("talk_convolution", x, parameters, hid_dim=x.shape[2], **chosen)
            outputs["output.state"] = _sums(x) / (windows["max_left"] + windows["max_right"] + 1)
        return outputs
    parameters = published("talk_convolution_layer", t, SOURCE)
    masks = {"key_mask": t["input.key_padding_mask"].bool()} if "input.key_padding_mask" in t and not causal else {}
    context = {n: t[f"input.{n}"] for n in ("context",) if f"input.{n}" in t}
    sizes = {n: options[n] for n in ("embed_dim", "conv_dim", "ffn_dim")}
    flags = {"glu": options.get("glu", True), "normalize_before": options.get("normalize_before", False), "encoder_attention": bool(context)}
    out = call("talk_convolution_layer", {"x": x, **masks, **keep, **context}, parameters, training=False, **sizes, **flags, **chosen)
    return {"output.out": out}


def _stream(form: str, x: Tensor, parameters: dict[str, Tensor], **options: Any) -> Tensor:
    """One token after the other."""
    state, outputs = None, []
    for token in x.split(1, 1):
        out, state = call(form, {"x": token, "state": state}, parameters, step=True, training=False, **options)
        outputs.append(out)
    return torch.cat(outputs, 1)


def _sums(x: Tensor) -> Tensor:
    """The sum up to each token: a window that reaches everything before it."""
    everything = torch.ones(*x.shape[:2], 1, dtype=x.dtype)
    return call("window_sum", {"x": x, "offset_left": everything}, max_left=x.shape[1], causal=True, divisor="one")
