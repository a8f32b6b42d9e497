"""Every form as a function of its inputs, parameters and options: the operator itself, with a signature and documentation."""

import inspect
from collections import namedtuple
from collections.abc import Callable, Iterable
from typing import Any

import torch

from foveate._catalog import Card, Field, FormCard, catalog

_KINDS = {"Tensor": torch.Tensor, "int": int, "float": float, "bool": bool, "str": str}


def python_type(field: Field) -> Any:
    """The annotation of a field: `torch.Tensor | None`, `int`, `list[int]`."""
    base = field.type.rstrip("?")
    kind: Any = list[_KINDS[base[:-2]]] if base.endswith("[]") else _KINDS[base]  # type: ignore[misc]
    return kind | None if field.optional else kind


def argument(field: Field, kind: Any = inspect.Parameter.KEYWORD_ONLY) -> inspect.Parameter:
    """A field as an argument of a Python signature."""
    default = field.default if field.has_default else None if field.optional else inspect.Parameter.empty
    return inspect.Parameter(field.name.replace(".", "_"), kind, default=default, annotation=python_type(field))


def result_type(form: FormCard, extra: Iterable[str] = ()) -> Callable[..., Any] | None:
    """A named tuple for a form that returns several tensors, None for one."""
    names = [field.name for field in form.outputs] + list(extra)
    return namedtuple(f"{form.class_name}Result", names) if len(names) > 1 else None


def describe(card: Card, form: FormCard, with_parameters: bool) -> str:
    """The documentation of a form, from its card and fields."""
    lines = [f"{card.title}: {form.summary}.", "", f"    {card.equation}", "", f"arXiv {card.paper} ({card.year}); cost {card.cost}."]

    lines += _section("Options", form.options) + _section("Inputs", form.inputs)
    if with_parameters:
        lines += _section("Parameters", form.parameters)
    lines += _section("Returns", form.outputs) + _section("State of step()", form.state)
    lines += ["", "Raises ValueError or TypeError naming the argument, what was expected and what came."]
    if form.example:
        lines += ["", "Example:", *(f"    >>> {line}" for line in form.example.splitlines())]
    return "\n".join(lines)


def describe_call(form: FormCard, does: str) -> str:
    """The documentation of a layer's call or step."""
    return "\n".join([does, *_section("Inputs", form.inputs), *_section("Returns", form.outputs)])


def _section(title: str, fields: Iterable[Field]) -> list[str]:
    rows = []
    for field in fields:
        default = f" Default {field.default!r}." if field.has_default and field.default is not None else ""
        choices = f" One of {', '.join(field.choices)}." if field.choices else ""
        rows.append(f"    {field.name}{' (optional)' if field.optional else ''}: {field.doc}.{choices}{default}")
    return ["", f"{title}:", *rows] if rows else []


def _function(card: Card, form: FormCard, suffix: str = "") -> Callable[..., Any]:
    operator = getattr(torch.ops.foveate, form.name + suffix).default
    result = result_type(form, ["state"] if suffix else [])

    def call(*args: Any, **kwargs: Any) -> Any:
        outputs = operator(*args, **kwargs)
        return outputs if result is None else result(*outputs)

    arguments = [argument(field, inspect.Parameter.POSITIONAL_OR_KEYWORD) for field in form.inputs]
    if suffix:
        state = Field(name="state", type="Tensor[]?", text="", role="plain")
        arguments.append(argument(state, inspect.Parameter.POSITIONAL_OR_KEYWORD))
    if form.listed:
        arguments += [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, annotation=list[torch.Tensor]) for n in ("parameters", "buffers")]
    else:
        arguments += [argument(field) for field in form.parameters]
    arguments += [argument(field) for field in form.options]
    if form.step_training if suffix else form.training:
        arguments.append(inspect.Parameter("training", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool))
    call.__name__ = call.__qualname__ = form.name + suffix
    call.__module__ = "foveate"
    call.__doc__ = describe(card, form, with_parameters=True)
    call.__signature__ = inspect.Signature(arguments)  # type: ignore[attr-defined]
    return call


def functions() -> dict[str, Callable[..., Any]]:
    """A function for every form, and for every form that streams its step."""
    made = {}
    for card in catalog():
        for form in card.forms:
            made[form.name] = _function(card, form)
            if form.streams:
                made[form.name + "_step"] = _function(card, form, "_step")
    return made
