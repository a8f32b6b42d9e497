"""Does the installed library work here? Every form is run on the example of its documentation, its gradients are looked at, and a form
that is declared causal must not look ahead.

    findings = foveate.check.check_all()
    assert all(finding.fault == "" for finding in findings)

On the command line: `foveate list --check`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import foveate
from foveate._catalog import Card, FormCard, catalog

Arguments = dict[str, Any]
SEED = 0


@dataclass(frozen=True)
class Finding:
    """What came of one form."""

    slug: str
    form: str
    gradients: int
    """Inputs and parameters whose gradient was found, and finite."""
    causal: bool
    """Whether the past was found to stay as it was when the future changed."""
    fault: str
    """What is wrong; "" where nothing is."""


class FaultError(Exception):
    """What a form should not do."""


def check_all(done: Callable[[], None] = lambda: None) -> list[Finding]:
    """Looks at every form of the library, and calls `done` after each."""
    findings = []
    for card in catalog():
        for form in card.forms:
            findings.append(check(card, form))
            done()
    return findings


def check(card: Card, form: FormCard) -> Finding:
    """Looks at one form. What it raises is its fault."""
    gradients, causal, fault = 0, False, ""
    with _kept_generator():
        try:
            run, arguments = recorded(form)
            gradients = finite_gradients(form, run, arguments)
            causal = looks_back_only(card, form, run, arguments)
        except Exception as problem:  # whatever it is, the next form is to be looked at
            fault = f"{type(problem).__name__}: {problem}".splitlines()[0] if not isinstance(problem, FaultError) else str(problem)
    return Finding(card.slug, form.class_name, gradients, causal, fault)


def recorded(form: FormCard) -> tuple[Callable[..., Any], Arguments]:
    """The operator of a form, and the arguments that the example of its documentation gives it."""
    recorder = _Recorder(form.name)
    torch.manual_seed(SEED)
    with recorder:
        exec(form.example, {"torch": torch, "foveate": foveate})
    if recorder.arguments is None:
        raise FaultError("its example does not call it")
    if "training" in recorder.arguments:
        recorder.arguments["training"] = False
    return getattr(torch.ops.foveate, form.name).default, recorder.arguments


class _Recorder(TorchFunctionMode):
    """Keeps the arguments of the first call of an operator."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = f"foveate::{name}"
        self.arguments: Arguments | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operator = getattr(func, "default", func)
        schema = getattr(operator, "_schema", None)
        if self.arguments is None and schema is not None and schema.name == self.name:
            names = [argument.name for argument in schema.arguments]
            self.arguments = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        return func(*args, **(kwargs or {}))


def finite_gradients(form: FormCard, run: Callable[..., Any], arguments: Arguments) -> int:
    """How many inputs and parameters have a gradient; the outputs and all gradients are finite."""
    leaves: list[Tensor] = []
    fixed = {"buffers", *(field.name.replace(".", "_") for field in form.parameters if field.role == "buffer")}

    def leaf(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [leaf(item) for item in value]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        leaves.append(value.detach().clone().requires_grad_())
        return leaves[-1]

    torch.manual_seed(SEED)
    outputs = [x for x in flat(run(**{name: value if name in fixed else leaf(value) for name, value in arguments.items()})) if x.is_floating_point()]
    if not all(bool(x.isfinite().all()) for x in outputs):
        raise FaultError("an output is not finite")
    trained = [x for x in outputs if x.requires_grad]
    if not trained:
        return 0
    total = torch.stack([x.square().sum() for x in trained]).sum()
    found = [gradient for gradient in torch.autograd.grad(total, leaves, allow_unused=True) if gradient is not None]
    if not all(bool(gradient.isfinite().all()) for gradient in found):
        raise FaultError("a gradient is not finite")
    return len(found)


def looks_back_only(card: Card, form: FormCard, run: Callable[..., Any], arguments: Arguments) -> bool:
    """Whether the form can be strictly causal here; it is a fault if then the future changes the past.

    A form that streams is strictly causal when its step takes the options; one with an option `causal`, and a model of images of ids, where
    the card says strict. Where it says none, a stream of segments may be read both ways within each.
    Maps are read in raster order, where the mechanism is one of vision.
    """
    names = {option.name for option in form.options}
    of_images = any(field.dtype == "int" and field.shape == "B,H,W" for field in form.inputs)
    if card.causality == "none" or (not form.streams and not ("causal" in names or of_images) * (card.causality == "strict")):
        return False
    arguments = {**arguments, **({"causal": True} if "causal" in names else {})}
    order = ["N"]
    sequences = growing(form, arguments)
    if not sequences and card.family == "vision":
        order = ["H", "W"]
        sequences = _maps(form, arguments)
    output = form.outputs[0].shape.split(",")
    lengths = {_in_line(arguments[name], axis, order).shape[axis] for name, axis in sequences.items()}
    if len(lengths) != 1 or not _accepted(form, run, arguments) or _place(output, order) is None:
        return False
    (length,), axis = lengths, _place(output, order) or 0
    before = _in_line(flat(run_seeded(run, arguments))[0], axis, order)
    if before.shape[axis] != length:
        return False
    for cut in {(length + 1) // 2, length - 1} - {0}:
        given = {name: (arguments[name], along) for name, along in sequences.items()}
        changed = {name: perturbed(_in_line(x, along, order), along, cut).view(x.shape) for name, (x, along) in given.items()}
        after = _in_line(flat(run_seeded(run, {**arguments, **changed}))[0], axis, order)
        if not torch.equal(before.narrow(axis, 0, cut), after.narrow(axis, 0, cut)):
            raise FaultError(f"it is declared causal, but what comes at position {cut} of {length} changes earlier outputs")
    return True


def _in_line(x: Tensor, axis: int, order: list[str]) -> Tensor:
    """x with the axes of the order as one."""
    return x.flatten(axis, axis + len(order) - 1)


def _place(letters: list[str], order: list[str]) -> int | None:
    """Where the letters of the order stand together."""
    return next((axis for axis in range(len(letters)) if letters[axis : axis + len(order)] == order), None)


def _maps(form: FormCard, inputs: Mapping[str, Any]) -> dict[str, int]:
    """The inputs that are maps, and the axis of their rows. Masks are not among them."""
    given = {field.name: _place(field.shape.split(","), ["H", "W"]) for field in form.inputs if isinstance(inputs.get(field.name), Tensor)}
    return {name: axis for name, axis in given.items() if axis is not None and inputs[name].dtype != torch.bool}


def _accepted(form: FormCard, run: Callable[..., Any], arguments: Arguments) -> bool:
    """Whether the options are those of a causal form: the call takes them, and so does the step where there is one."""
    calls = [(run, arguments)]
    if form.streams:
        step = getattr(torch.ops.foveate, f"{form.name}_step").default
        taken = {argument.name for argument in step._schema.arguments}
        calls.append((step, {name: value for name, value in arguments.items() if name in taken}))
    try:
        for call, given in calls:
            run_seeded(call, given)
    except ValueError:
        return False
    return True


def run_seeded(run: Callable[..., Any], arguments: Arguments) -> Any:
    """A call without gradients, with the same draws each time."""
    torch.manual_seed(SEED)
    with torch.no_grad():
        return run(**arguments)


def growing(form: FormCard, inputs: Mapping[str, Any]) -> dict[str, int]:
    """The inputs that grow with the length, and along which axis. Masks are not among them."""
    found = {}
    for field in form.inputs:
        x, letters = inputs.get(field.name), field.shape.split(",")
        axes = [axis for axis, letter in enumerate(letters) if letter in ("N", "M")]
        if isinstance(x, Tensor) and x.dtype != torch.bool and axes and len(letters) == x.dim():
            found[field.name] = axes[0]
    return found


def perturbed(x: Tensor, axis: int, cut: int) -> Tensor:
    """x with everything from `cut` on replaced."""
    tail = x.narrow(axis, cut, x.shape[axis] - cut)
    other = torch.randn(tail.shape, dtype=x.dtype) if x.is_floating_point() else torch.where(tail > 0, tail - 1, tail + 1)  # ids stay ids
    return torch.cat([x.narrow(axis, 0, cut), other], axis)


def flat(outputs: Any) -> list[Tensor]:
    """The tensors of a result, lists opened."""
    if isinstance(outputs, Tensor):
        return [outputs]
    return [x for item in outputs for x in flat(item)]


@contextmanager
def _kept_generator() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield
