"""Attention along one axis of a map at a time, and the image model made of it."""

import re
from typing import Any

import torch
from torch import Tensor

from tests.contract import Case, Maker, call, published

GRID = {"B": 2, "T": 3, "H": 4, "W": 5}
IMAGE = {"height": 3, "width": 4, "num_embs": 5, "embed_dim": 4, "num_heads": 2, "num_outer_layers": 2, "num_inner_layers": 1}
VOLUME = IMAGE | {"height": 2, "width": 3, "channels": 2, "num_exterior_layers": 2}
FIXED: Any = {"length": (), "lengths_fixed": "the options fix the size of the image", "gradcheck": {"B": 1}}


def _normal(*letters: str | int) -> Maker:
    return lambda s, g: torch.randn([n if isinstance(n, int) else s[n] for n in letters], generator=g, dtype=torch.float64)


def _ids(values: int) -> Maker:
    def make(s: Any, g: torch.Generator) -> Tensor:
        return torch.randint(values, [s[n] for n in "BHWS" if n in s], generator=g)

    return make


def _axis(*axes: str, **options: Any) -> Case:
    map_ = {n: _normal("B", *axes, 2, 3 if n == "v" else 4) for n in "qkv"}
    mask = {"key_mask": lambda s, g: torch.rand([s[n] for n in ("B", *axes)], generator=g) < 0.8}
    return Case(
        "axis_attention", {n: GRID[n] for n in ("B", *axes)}, options, given=("key_mask",) * (len(axes) == 2), make=map_ | mask, length=axes,
        mask="key_mask" if len(axes) == 2 else "", gradcheck={"B": 1, "T": 2, "H": 2, "W": 3}, name=f"{len(axes)}d-{options['axis']}",
    )  # fmt: skip


def _layer(form: str, *shape: str | int, name: str = "", given: tuple[str, ...] = (), **options: Any) -> Case:
    axes = [n for n in shape if isinstance(n, str)]
    make = {"x": _normal("B", *shape), "key_mask": lambda s, g: torch.rand([s[n] for n in ("B", *axes)], generator=g) < 0.8}
    fixed = "axial_pos_emb_shape" in options
    return Case(
        form, {n: GRID[n] for n in ("B", *axes)}, options, given=given, make=make, length=() if fixed else tuple(axes), name=name,
        lengths_fixed="positions are learned for one size" if fixed else "", gradcheck={"B": 1} if fixed else {"B": 1, "T": 2, "H": 2, "W": 3},
    )  # fmt: skip


CASES = [
    _axis("H", "W", axis=1),
    _axis("H", "W", axis=2, causal=True),
    _axis("T", "H", "W", axis=2, scale=0.5),
    _axis("H", axis=1, causal=True),
    _layer("axial_attention", 4, "H", "W", dim=4, num_heads=2, dim_index=1, given=("key_mask",)),
    _layer("axial_attention", "H", "W", 4, dim=4, num_heads=2, head_dim=3, sum_axial_out=False, name="in-turn"),
    _layer("axial_attention", "T", 4, "H", "W", dim=4, num_heads=1, num_dimensions=3, dim_index=2, name="volume"),
    _layer("axial_image_transformer", 4, "H", "W", dim=4, depth=2, num_heads=2, axial_pos_emb_shape=[4, 5]),
    _layer("axial_image_transformer", "H", "W", 4, dim=4, depth=1, num_heads=2, head_dim=3, dim_index=-1,
           reversible=False),
    Case("axial_transformer", {"B": 2, "H": 3, "W": 4, "E": 4}, IMAGE, given=("condition",), make={"ids": _ids(5)}, **FIXED),
    Case("axial_transformer", {"B": 2, "H": 3, "W": 4}, IMAGE | {"hdim_factor": 2, "num_inner_layers": 2}, make={"ids": _ids(5)},
         name="alone", **FIXED),
    Case("axial_sampler", {"B": 2, "H": 3, "W": 4, "E": 4, "K": 5}, IMAGE, given=("condition", "noise"), make={"ids": _ids(5)}, **FIXED),
    Case("axial_sampler", {"B": 2, "H": 3, "W": 4, "E": 4, "K": 5}, IMAGE | {"known": 6, "temperature": 0.5}, given=("condition", "noise"),
         make={"ids": _ids(5)}, name="rest", **FIXED),
    Case("axial_transformer3d", {"B": 2, "H": 2, "W": 3, "S": 2}, VOLUME, make={"ids": _ids(5)}, **FIXED),
    Case("axial_transformer3d", {"B": 2, "H": 2, "W": 3, "S": 2, "E": 4}, VOLUME | {"channel": 1}, given=("condition",), make={"ids": _ids(5)},
         name="one", **FIXED),
    Case("axial_sampler3d", {"B": 2, "H": 2, "W": 3, "S": 2, "E": 4, "K": 5}, VOLUME | {"known": 2}, given=("condition", "noise"),
         make={"ids": _ids(5)}, **FIXED),
]  # fmt: skip

SOURCE = "lucidrains/axial-attention"
AUTHORS = "google-research/google-research"
SHARED = ("num_embs", "num_heads", "hdim_factor", "num_outer_layers", "num_inner_layers", "num_exterior_layers", "ln_eps")


def golden(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Golden cases keep the names of the two originals."""
    if options["module"] == "attn_nd":
        return _each_axis(options, {n: t[f"input.{n}"] for n in "qkv"})
    if options["module"] in ("axial_attention", "axial_image_transformer"):
        return {"output.out": _bidirectional(options, t)}
    return _model(options, t)


def _each_axis(options: dict[str, Any], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """One combination of axis and mask is the result, the others stand beside it."""
    found = {
        f"output.axis{a}_{'masked' if m else 'unmasked'}": call("axis_attention", inputs, axis=a, causal=m) for a in (1, 2) for m in (True, False)
    }
    found["output.out"] = found[f"output.axis{options['time_axis']}_{'masked' if options['masked'] else 'unmasked'}"]
    return found


def _bidirectional(options: dict[str, Any], t: dict[str, Tensor]) -> Tensor:
    form = options["module"]
    names = {"heads": "num_heads", "dim_heads": "head_dim"}
    chosen = {names.get(n, n): x for n, x in options.items() if n != "module" and x is not None}
    plain = form == "axial_image_transformer" and not any(re.match(r"param\.layers\.blocks\.\d+\.f\.", n) for n in t)
    out: Tensor = call(form, {"x": t["input.x"]}, published(form, t, SOURCE + (", residual" if plain else "")), **chosen)
    return out


def _model(options: dict[str, Any], t: dict[str, Tensor]) -> dict[str, Tensor]:
    what = "sampler" if options["what"] == "sample" else "transformer"
    form = f"axial_{what}{'3d' if options['module'] == 'transformer3d' else ''}"
    parameters = published(form, t, AUTHORS)
    known = {"img_height": "height", "img_width": "width", "emb_dim": "embed_dim", "img_channels": "channels"}
    chosen = {known.get(n, n): x for n, x in options.items() if n in SHARED or (n in known and (n != "img_channels" or form.endswith("3d")))}
    if "temperature" in options and what == "sampler":
        chosen["temperature"] = options["temperature"]
    inputs = {"condition" if n == "cond" else n: x for n, x in ((n.removeprefix("input."), x) for n, x in t.items() if n.startswith("input."))}
    if what == "sampler":
        inputs.setdefault("ids", torch.zeros(inputs["noise"].shape[:-1], dtype=torch.int64))
        logits, ids = call(form, inputs, parameters, **chosen)
        return {"output.out": ids, "output.logits_of_sample": logits}
    result = call(form, inputs, parameters, training=False, **chosen)
    if form.endswith("3d"):
        return {"output.out": result}
    return {"output.out": result[0], "output.upper_context": result[1]}
