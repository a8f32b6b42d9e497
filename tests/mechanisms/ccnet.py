"""Attention along the rows and columns of a map."""

from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, call, published

SIZES = {"B": 2, "T": 3, "H": 4, "W": 5}


def _map(channels: int, *axes: str) -> Any:
    return lambda s, g: torch.randn(s["B"], channels, *(s[a] for a in axes), generator=g, dtype=torch.float64)


def _case(form: str, *axes: str, given: tuple[str, ...] = (), **options: Any) -> Case:
    make = {"q": _map(3, *axes), "k": _map(3, *axes), "v": _map(4, *axes), "x": _map(8, *axes)}
    make["mask"] = lambda s, g: torch.rand(s["B"], *(s[a] for a in axes), generator=g) < 0.8
    return Case(
        form, {n: SIZES[n] for n in ("B", *axes)}, options, given=given, make=make, length=axes,
        mask="mask" if form == "criss_cross" and given else "", gradcheck={"B": 1, "T": 2, "H": 2, "W": 3}, name=f"{len(axes)}d",
    )  # fmt: skip


CASES = [
    _case("criss_cross", "H", "W", given=("mask",)),
    _case("criss_cross", "T", "H", "W", scale=0.5),
    _case("criss_cross_attention", "H", "W", given=("mask",), channels=8, qk_channels=3),
    _case("criss_cross_attention", "T", "H", "W", channels=8, dimension=3, recurrence=1),
    _case("rcca", "H", "W", given=("mask",), in_channels=8, inter_channels=8, out_channels=3, num_classes=2, recurrence=1),
]


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """One golden case is the CUDA kernels' interface, which returns scores and weights: the row's keys, then the column's others."""
    if not options.get("functional"):
        chosen = {"channels": options["in_dim"], "qk_channels": options["qk_dim"], "recurrence": options["recurrence"], "dimension": options["dims"]}
        parameters = published("criss_cross_attention", t, "speedinghzl/CCNet")
        return {"output.out": call("criss_cross_attention", {"x": t["input.x"]}, parameters, **chosen)}
    q, k, v = (t[f"input.{n}"] for n in "qkv")
    B, _, H, W = q.shape
    each = torch.eye(H * W, dtype=v.dtype).view(1, H * W, H, W).expand(B, -1, -1, -1)  # values that show the weights
    weights = call("criss_cross", {"q": q, "k": k, "v": each}).view(B, H, W, H, W)  # by key, then query
    scores = torch.einsum("bchw,bcij->bhwij", k, q)
    return {"output.out": call("criss_cross", {"q": q, "k": k, "v": v}), "output.attention": _layout(weights), "output.energy": _layout(scores)}


def _layout(by_key: Tensor) -> Tensor:
    """[B,H,W,H,W], keys first -> [B,H+W-1,H,W]"""
    _, H, W, _, _ = by_key.shape
    row = torch.stack([by_key[:, i, :, i] for i in range(H)], 2)  # [B,W,H,W]: the keys of each query's row
    column = torch.stack([torch.stack([by_key[:, [r for r in range(H) if r != i], j, i, j] for i in range(H)], -1) for j in range(W)], -1)
    return torch.cat([row, column], 1)
