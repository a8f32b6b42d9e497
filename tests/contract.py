"""One case record, many uses: every test of the contract builds its calls from the cases in tests/mechanisms/<slug>.py.

A file of tests/mechanisms holds, for one mechanism,

    CASES = [Case("linformer_attention", dict(B=2, H=2, N=12, M=12, D=4, Dv=3), dict(length=12, rank=4), given=("key_mask",))]

    def golden(options, t):        # one golden case: its options, its `input.*` and `param.*` tensors -> its `output.*`
        ...

Sizes name the letters of the shapes in the catalogue; inputs without a declared shape, and those that are not plain random
numbers, are made by `make`. Every test then applies; a new mechanism writes no test.
"""

import functools
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import foveate
from foveate._catalog import Field, FormCard, forms
from foveate._checkpoints import renamed, sources

Inputs = dict[str, Any]


Maker = Callable[[Mapping[str, int], torch.Generator], Tensor]
"""An input, from the sizes and a generator."""


def random_mask(letter: str, shown: float = 0.8) -> Maker:
    """A mask [B,letter] that shows this share, at random."""
    return lambda s, g: torch.rand(s["B"], s[letter], generator=g) < shown


def all_but_last(letter: str, count: int = 1) -> Maker:
    """A mask [B,letter] that hides so many at the end, but never all."""
    return lambda s, g: torch.arange(s[letter]).expand(s["B"], -1) < max(1, s[letter] - count)


@dataclass(frozen=True)
class Case:
    """One way to call a form."""

    form: str
    sizes: Mapping[str, int]
    options: Mapping[str, Any] = field(default_factory=dict)
    given: tuple[str, ...] = ()
    """Optional inputs that the case gives."""
    make: Mapping[str, Maker] = field(default_factory=dict)
    """How to make an input that is not plain: from the sizes and a generator. Without one, a float input is normal, a bool one mostly
    True, an int one zero."""
    length: tuple[str, ...] = ("N", "M")
    """The letters that grow together with the length: changed by dynamic export, N = 1 and streaming. () where it is fixed."""
    lengths_fixed: str = ""
    """Why the length cannot change, where `length` is ()."""
    causal: bool = False
    """Whether these options make the form strictly causal: the future must not change the past, and streaming equals the whole."""
    mask: str = ""
    """The mask that, all False, hides everything from every query."""
    hidden_is_zero: bool = True
    """Whether an attention that sees nothing leaves zeros in the result (False behind a projection, a residual)."""
    smallest: int = 1
    """The smallest length the form accepts."""
    exported_from: int = 2
    """The smallest length of a dynamic export. Pooling by 2 takes twice that, since torch lets no dynamic size become 1."""
    cut: str = ""
    """Why gradients are not those of the results, where the paper cuts them: gradcheck leaves the case out."""
    gradcheck: Mapping[str, int] = field(default_factory=dict)
    """Sizes for gradcheck, smaller ones."""
    name: str = ""

    @property
    def card(self) -> FormCard:
        """The form, from the catalogue."""
        return forms()[self.form]

    @property
    def id(self) -> str:
        """Its name in the test report."""
        options = "-".join(f"{k}={v}" for k, v in self.options.items() if not isinstance(v, (int, float)) or isinstance(v, bool))
        return "-".join(part for part in (self.form, self.name, options) if part)

    def inputs(self, sizes: Mapping[str, int] = {}, dtype: torch.dtype = torch.float64, seed: int = 0) -> Inputs:
        """Its inputs, for these sizes instead of its own."""
        generator = torch.Generator().manual_seed(seed)
        at = {**self.sizes, **sizes}
        made = {f.name: self._make(f, at, generator) for f in self.card.inputs if not f.optional or f.name in self.given}
        return {name: x.to(dtype) if x.is_floating_point() else x for name, x in made.items()}

    def _make(self, f: Field, sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
        if f.name in self.make:
            return self.make[f.name](sizes, generator)
        if f.shape in ("?", "..."):
            raise ValueError(f"{self.id}: the shape of {f.name} is not declared; give the case a `make` for it")
        shape = [int(letter) if letter.isdigit() else sizes[letter] for letter in f.shape.split(",")]
        if f.dtype == "bool":
            return torch.rand(shape, generator=generator) < 0.8
        if f.dtype == "int":
            return torch.zeros(shape, dtype=torch.int64)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def layer(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
        """The layer with these options; its parameters are moved off special values such as zero gates."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layer = getattr(foveate.nn, self.card.class_name)(**self.options)
            with torch.no_grad():
                for p in layer.parameters():
                    p.add_(0.05 * torch.randn_like(p))
        return layer.to(dtype).eval()


def call(
    form: str, inputs: Inputs, parameters: Mapping[str, Tensor] = {}, *, training: bool | None = None, step: bool = False, **options: Any
) -> Any:
    """Calls a form as a function, with parameters under their dotted names (one that is absent is left out)."""
    card = forms()[form]
    function = getattr(foveate, form + ("_step" if step else "")) if form not in ("attention",) else torch.ops.foveate.attention
    if card.training and training is not None:
        options["training"] = training
    if not card.listed:
        return function(**inputs, **{name.replace(".", "_"): x for name, x in parameters.items()}, **options)
    given = {name: value for name, value in options.items() if name != "training"}
    complete = {f.name: given.get(f.name, f.default) for f in card.options}
    _, description = getattr(torch.ops.foveate, f"_{form}_init")(**complete)
    slots = json.loads(description)
    unknown = set(parameters) - {slot["name"] for slot in slots}
    assert not unknown, f"{form} has no parameters {sorted(unknown)}"
    lists: dict[str, list[Tensor | None]] = {"parameters": [], "buffers": []}
    for slot in slots:
        lists["buffers" if slot["buffer"] else "parameters"].append(parameters.get(slot["name"]))
    return function(**inputs, **lists, **options)


def published(form: str, t: Mapping[str, Tensor], source: str = "paper", below: str = "") -> dict[str, Tensor]:
    """The `param.*` tensors of a golden case under our names, by the map of the package; `below` chooses those with a prefix, which it drops."""
    prefix = f"param.{below}"
    state = {name.removeprefix(prefix): x for name, x in t.items() if name.startswith(prefix)}
    found, unknown = renamed(sources(forms()[form])[source], state)
    assert not unknown, f"{form} from {source}: no place for {unknown}"
    return found


def first(outputs: Any) -> Tensor:
    """The main result of a form."""
    return outputs if isinstance(outputs, Tensor) else outputs[0]


@functools.cache
def modules() -> Mapping[str, Any]:
    """The test modules of the mechanisms, by slug."""
    files = sorted((Path(__file__).parent / "mechanisms").glob("*.py"))
    return {f.stem.replace("_", "-"): importlib.import_module(f"tests.mechanisms.{f.stem}") for f in files if f.stem != "__init__"}


def cases() -> list[Case]:
    """Every case of every mechanism."""
    return [case for module in modules().values() for case in module.CASES]


def kept_for_the_gradient(layer: Any, *inputs: Tensor, **more: Tensor) -> int:
    """Numbers that a forward of a layer keeps for its gradient, other than parameters."""
    own = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        if t.is_floating_point() and t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        layer(*inputs, **more)
    return sum(kept.values())
