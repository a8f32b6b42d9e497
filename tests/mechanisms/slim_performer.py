"""SLiM Performer: the layer, the language model, both also chunk by chunk."""

from typing import Any

import torch
from torch import Tensor

import foveate
from tests.contract import Case, call, published

LAYER = {"hidden_dim": 8, "n_heads": 2, "ffn_dim": 6}
MODEL = {**LAYER, "vocab_size": 5, "n_layers": 2}
DRAWN: Any = {"rfs": lambda s, g: torch.stack([foveate.random_projection(8, 4, row_norm="sqrt_dim", generator=g, dtype=torch.float64).T] * 2)}
TOKENS: Any = {"tokens": lambda s, g: torch.randint(0, 4, (s["B"], s["N"]), generator=g)}

CASES = [
    Case("slim_performer_layer", {"B": 2, "N": 6, "E": 8}, LAYER, causal=True, gradcheck={"B": 1, "N": 3}),
    Case("slim_performer_layer", {"B": 2, "N": 6, "E": 8}, {**LAYER, "feature_type": "elu+1", "post_layernorm": True}, given=("key_mask",),
         mask="key_mask", hidden_is_zero=False, gradcheck={"B": 1, "N": 3}),
    Case("slim_performer_layer", {"B": 2, "N": 6, "E": 8}, {**LAYER, "feature_type": "favor+", "favor_blocks": 2}, given=("rfs",), make=DRAWN,
         causal=True, gradcheck={"B": 1, "N": 3}),
    Case("slim_performer_layer", {"B": 2, "N": 6, "E": 8}, {**LAYER, "memory": "minimal", "chunk": 4}, given=("key_mask",), mask="key_mask",
         hidden_is_zero=False, gradcheck={"B": 1, "N": 3}),
    Case("slim_performer", {"B": 2, "N": 6}, {**MODEL, "memory": "minimal", "chunk": 4}, make=TOKENS, causal=True, gradcheck={"B": 1, "N": 3}),
    Case("slim_performer", {"B": 2, "N": 6}, MODEL, make=TOKENS, causal=True, gradcheck={"B": 1, "N": 3}),
    Case("slim_performer", {"B": 2, "N": 6}, {**MODEL, "feature_type": "favor+", "favor_blocks": 2, "post_layernorm": True}, given=("rfs",),
         make=TOKENS | {"rfs": lambda s, g: torch.stack([DRAWN["rfs"](s, g) for _ in range(2)])}, causal=True, gradcheck={"B": 1, "N": 3}),
]  # fmt: skip


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases with a `chunk` go chunk by chunk: layers record the sums after each, models give the loss of the next token."""
    inputs = {n.removeprefix("input."): x for n, x in t.items() if n.startswith("input.")}
    kind, _, blocks = options["feature_type"].partition("_")
    chosen = {n: options[n] for n in ("n_heads", "ffn_dim", "post_layernorm", "n_layers", "hidden_dim", "vocab_size") if n in options}
    chosen |= {"feature_type": kind, "favor_blocks": int(blocks or 1)}
    if options["level"] == "layer":
        chosen["hidden_dim"] = inputs["x"].shape[-1]
        return _chunks("slim_performer_layer", "x", inputs, published("slim_performer_layer", t, "google-research"), options.get("chunk"), chosen)
    tokens, real = inputs.pop("tokens"), inputs.pop("nonpad_mask").bool()[:, 1:]
    parameters = published("slim_performer", t, "google-research")
    inputs["tokens"] = tokens[:, :-1]
    logits = _chunks("slim_performer", "tokens", inputs, parameters, options.get("chunk"), chosen)["output.out"]
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    return {"output.out": (loss[real].sum() / real.sum()).view(1), "output.logits": logits}


def _chunks(
    form: str, name: str, inputs: dict[str, Tensor], parameters: dict[str, Tensor], size: int | None, options: dict[str, Any]
) -> dict[str, Tensor]:
    """The result, and the sums after each chunk."""
    if size is None:
        return {"output.out": call(form, inputs, parameters, **options)}
    state, outs, sums = None, [], []
    for x in inputs[name].split(size, 1):
        out, state = call(form, {**inputs, name: x, "state": state}, parameters, step=True, **options)
        outs.append(out)
        sums.append(state[-2:])
    S, z = (torch.stack(x) for x in zip(*sums, strict=True))
    return {"output.out": torch.cat(outs, 1), "output.num_sums": S, "output.den_sums": z}
