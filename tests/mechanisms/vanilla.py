"""Scaled dot-product attention and the multi-head layer."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, published

QKV = {"B": 2, "H": 2, "Hk": 2, "N": 6, "M": 6, "D": 4, "Dv": 3}
SMALL = {"B": 1, "N": 3, "M": 3, "D": 2, "Dv": 2}


def _context(width: int) -> Any:
    return lambda s, g: torch.randn(s["B"], s["M"], width, generator=g, dtype=torch.float64)


CASES = [
    Case("attention", QKV, given=("key_mask",), mask="key_mask", gradcheck=SMALL),
    Case("attention", {**QKV, "H": 4, "M": 9}, {"causal": True}, name="grouped", length=("N",), gradcheck=SMALL),
    Case("attention", QKV, {"causal": True}, causal=True, gradcheck=SMALL),
    Case("multihead_attention", {"B": 2, "N": 6, "E": 8}, {"embed_dim": 8, "num_heads": 2, "causal": True}, causal=True,
         gradcheck={"B": 1, "N": 3}),
    Case("multihead_attention", {"B": 2, "N": 6, "M": 5, "E": 8}, {"embed_dim": 8, "num_heads": 2}, given=("context", "key_mask"),
         make={"key_mask": lambda s, g: _prefix(s), "context": _context(8)}, mask="key_mask", hidden_is_zero=False,
         gradcheck={"B": 1, "N": 3, "M": 2}),
    Case("multihead_attention", {"B": 2, "N": 6, "M": 9, "E": 8}, {"embed_dim": 8, "num_heads": 2, "context_dim": 5, "causal": True,
         "causal_align": "top_left", "dropout": 0.25, "bias": False}, given=("context", "dropout_keep"), name="context", length=("N",),
         make={"context": _context(5), "dropout_keep": lambda s, g: torch.rand(s["B"], 2, s["N"], s["M"], generator=g) < 0.75},
         gradcheck={"B": 1, "N": 3, "M": 2}),
]  # fmt: skip


def _prefix(sizes: Any) -> Tensor:
    return torch.arange(sizes["M"]).expand(sizes["B"], -1) < max(1, sizes["M"] - 1)


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases name masks `key_padding_mask`, `attn_mask`, and the additive term `attn_bias`; causal ones align at the top left by default."""
    names = {"key_padding_mask": "key_mask", "attn_mask": "mask", "attn_bias": "bias"}
    inputs = {names.get(n, n): x for n, x in ((name.removeprefix("input."), x) for name, x in t.items() if name.startswith("input."))}
    inputs |= {n: x.bool() for n, x in inputs.items() if n in ("key_mask", "mask", "dropout_keep")}
    chosen = {n: options[n] for n in ("causal", "scale") if n in options}
    chosen |= {"causal_align": options.get("causal_align", "top_left"), "dropout": options.get("dropout_p", 0.0)}
    if options.get("block") != "mha":
        out, lse = call("attention", inputs, **chosen)
        return {"output.out": out, "output.lse": lse}
    parameters = published("multihead_attention", t)
    weights = _weights(options["num_heads"], inputs, parameters, chosen)
    if "bias" in inputs:
        inputs["score_bias"] = inputs.pop("bias")
    sizes = {"embed_dim": inputs["x"].shape[-1], "num_heads": options["num_heads"], "bias": "query.bias" in parameters}
    if "context" in inputs:
        sizes["context_dim"] = inputs["context"].shape[-1]
    return {"output.out": call("multihead_attention", inputs, parameters, **sizes, **chosen), "output.weights": weights}


def _weights(num_heads: int, inputs: dict[str, Tensor], p: dict[str, Tensor], chosen: dict[str, Any]) -> Tensor:
    """The weights of each head: what attention gives for values that are the identity."""

    def heads(x: Tensor, name: str) -> Tensor:
        return torch.nn.functional.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias")).unflatten(-1, (num_heads, -1)).transpose(1, 2)

    q, k = heads(inputs["x"], "query"), heads(inputs.get("context", inputs["x"]), "key")
    identity = torch.eye(k.shape[2], dtype=k.dtype).expand(*k.shape[:2], -1, -1)
    rest = {n: x for n, x in inputs.items() if n not in ("x", "context", "dropout_keep")}
    return call("attention", {"q": q, "k": k, "v": identity, **rest}, **chosen)[0]
