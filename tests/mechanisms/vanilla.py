"""Scaled dot-product attention and the multi-head layer."""

from typing import Any

from torch import Tensor

from tests.contract import Case, call, published

QKV = {"B": 2, "H": 2, "Hk": 2, "N": 6, "M": 6, "D": 4, "Dv": 3}
SMALL = {"B": 1, "N": 3, "M": 3, "D": 2, "Dv": 2}

CASES = [
    Case("attention", QKV, given=("key_mask",), mask="key_mask", gradcheck=SMALL),
    Case("attention", {**QKV, "H": 4, "M": 9}, {"causal": True}, name="grouped", length=("N",), gradcheck=SMALL),
    Case("attention", QKV, {"causal": True}, causal=True, gradcheck=SMALL),
    Case("multihead_attention", {"B": 2, "N": 6, "E": 8}, {"embed_dim": 8, "num_heads": 2, "causal": True}, causal=True,
         gradcheck={"B": 1, "N": 3}),
    Case("multihead_attention", {"B": 2, "N": 6, "M": 5, "E": 8}, {"embed_dim": 8, "num_heads": 2}, given=("context", "key_mask"),
         make={"key_mask": lambda s, g: _prefix(s)}, mask="key_mask", hidden_is_zero=False, gradcheck={"B": 1, "N": 3, "M": 2}),
]  # fmt: skip


def _prefix(sizes: Any) -> Tensor:
    import torch

    return torch.arange(sizes["M"]).expand(sizes["B"], -1) < max(1, sizes["M"] - 1)


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases name masks `key_padding_mask`, `attn_mask`, and the additive term `attn_bias`."""
    names = {"key_padding_mask": "key_mask", "attn_mask": "mask", "attn_bias": "bias"}
    inputs = {names.get(n, n): x for n, x in ((name.removeprefix("input."), x) for name, x in t.items() if name.startswith("input."))}
    if options.get("block") == "mha":
        parameters = published("multihead_attention", t)
        chosen = {n: options[n] for n in ("embed_dim", "num_heads", "causal", "scale") if n in options}
        if "bias" in inputs:
            inputs["score_bias"] = inputs.pop("bias")
        out = call("multihead_attention", inputs, parameters, **chosen)
        weights = _weights(options, inputs, parameters)
        return {"output.out": out, "output.weights": weights}
    chosen = {n: options[n] for n in ("causal", "scale") if n in options}
    out, lse = call("attention", inputs, causal_align=options.get("causal_align", "top_left"), dropout=options.get("dropout_p", 0.0), **chosen)
    return {"output.out": out, "output.lse": lse}


def _weights(options: dict[str, Any], inputs: dict[str, Tensor], p: dict[str, Tensor]) -> Tensor:
    """The weights of each head: what attention gives for values that are the identity."""
    import torch

    def heads(x: Tensor, name: str) -> Tensor:
        return torch.nn.functional.linear(x, p[f"{name}.weight"], p[f"{name}.bias"]).unflatten(-1, (options["num_heads"], -1)).transpose(1, 2)

    context = inputs.get("context", inputs["x"])
    q, k = heads(inputs["x"], "query"), heads(context, "key")
    identity = torch.eye(k.shape[2], dtype=k.dtype).expand(*k.shape[:2], -1, -1)
    masks = {n: inputs[n] for n in ("key_mask", "mask") if n in inputs}
    return call("attention", {"q": q, "k": k, "v": identity, **masks}, causal=options.get("causal", False))[0]
