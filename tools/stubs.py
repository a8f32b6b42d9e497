"""Writes the type stubs of what the Python package builds from the library's catalogue: `stubs.py FOLDER` writes __init__.pyi and nn.pyi,
`stubs.py --reference` writes tests/stubs.pyi.ref, the stubs of a few forms, so that a change of what is written here is seen in review.

What is written by hand in python/foveate keeps its own annotations; the stubs name it again or, for classes of nn.py, repeat its signatures.
"""

import ast
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import foveate
from foveate._catalog import Card, Field, FormCard, catalog

REFERENCE = ("multihead_attention", "transformer_xl")
HEAD = '''"""{doc}"""
# Written by tools/stubs.py.

from typing import {typing}

import torch
from torch import Tensor
'''


def annotation(field: Field) -> str:
    """`Tensor | None`, `int`, `Literal["sum", "mean"]`."""
    base = field.type.removesuffix("?")
    one = base.removesuffix("[]").replace("?", " | None")
    if field.choices:
        one = f"Literal[{', '.join(quoted(choice) for choice in field.choices)}]"
    kind = f"list[{one}]" if base.endswith("[]") else one
    return kind + " | None" if field.optional else kind


def quoted(text: str) -> str:
    """A string in double quotes."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def argument(field: Field) -> str:
    """`causal: bool = False`."""
    name = f"{field.name.replace('.', '_')}: {annotation(field)}"
    if field.has_default:
        return f"{name} = {quoted(field.default) if isinstance(field.default, str) else repr(field.default)}"
    return name + " = None" if field.optional else name


def call(name: str, arguments: Iterable[str], returns: str, indent: str, doc: str = "") -> list[str]:
    """A signature, one argument a line, with a line of documentation."""
    body = f"{indent}) -> {returns}: ..." if not doc else f"{indent}) -> {returns}:\n{indent}    {docstring(doc)}"
    return [f"{indent}def {name}(", *(f"{indent}    {a}," for a in arguments), body]


def docstring(text: str) -> str:
    """One line of documentation."""
    return '"""' + text.replace("\\", "\\\\").replace('"""', "'''") + '"""'


def result(form: FormCard, prefix: str, streams: bool) -> tuple[str, list[str]]:
    """The type that a call returns, and the lines that declare it."""
    fields = [(field.name, annotation(field)) for field in form.outputs] + ([("state", "list[Tensor]")] if streams else [])
    if len(fields) == 1:
        return fields[0][1], []
    name = f"_{prefix}{'StepResult' if streams else 'Result'}"
    return name, [f"class {name}(NamedTuple):", *(f"    {field}: {kind}" for field, kind in fields), ""]


def function(card: Card, form: FormCard, step: bool) -> list[str]:
    """A form as a function of its inputs, parameters and options."""
    returns, lines = result(form, form.class_name, step)
    # An optional input may stand before one that is not: Python wants the rest by name then.
    arguments = positional(form.inputs) + (["state: list[Tensor] | None = None"] if step else [])
    named = ["parameters: list[Tensor]", "buffers: list[Tensor]"] if form.listed else [argument(field) for field in form.parameters]
    named += [argument(field) for field in form.options] + (["training: bool = False"] if (form.step_training if step else form.training) else [])
    if named and "*" not in arguments:
        arguments.append("*")
    return [*lines, *call(form.name + ("_step" if step else ""), arguments + named, returns, "", f"{card.title}: {form.summary}."), ""]


def positional(fields: Iterable[Field]) -> list[str]:
    """Arguments in order; from the first required one after an optional one they are by name only."""
    arguments: list[str] = []
    optional = False
    for field in fields:
        if optional and not field.optional and "*" not in arguments:
            arguments.append("*")
        optional = optional or field.optional
        arguments.append(argument(field))
    return arguments


def layer(card: Card, form: FormCard) -> list[str]:
    """A form as a torch module."""
    returns, lines = result(form, form.class_name, False)
    step_returns, step_lines = result(form, form.class_name, True) if form.streams else ("", [])
    options = ["self", "*", *(argument(field) for field in form.options), "device: torch.device | str | None = None"]
    body = [f"class {form.class_name}(Layer):", f"    {docstring(f'{card.title}: {form.summary}.')}", ""]
    body += call("__init__", [*options, "dtype: torch.dtype | None = None"], "None", "    ")
    for name in ("forward", "__call__"):
        body += call(name, ["self", *positional(form.inputs)], returns, "    ")
    if form.streams:
        body += call("step", ["self", *positional(form.inputs), "state: list[Tensor] | None = None"], step_returns, "    ")
    return [*lines, *step_lines, *body, ""]


class Signatures(ast.NodeTransformer):
    """Replaces the body of every function by its documentation, and drops what is private."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef | None:
        """Called by ast for every function."""
        if node.name.startswith("_") and not node.name.startswith("__"):
            return None
        node.body = [ast.Expr(ast.Constant(ast.get_docstring(node) or ...))]
        return node


def by_hand(module: ModuleType) -> list[str]:
    """The imports, classes and functions that a module writes by hand, without bodies."""
    tree = ast.parse(inspect.getsource(module))
    imports = [ast.unparse(node) for node in tree.body if isinstance(node, ast.ImportFrom)]
    public = [n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and not n.name.startswith("_")]
    return [*imports, *("\n" + ast.unparse(Signatures().visit(node)) for node in public)]


def module_of_functions() -> list[str]:
    """__init__.pyi: names of other modules again, and every form as a function."""
    generated = {form.name: (card, form, False) for card in catalog() for form in card.forms}
    generated |= {form.name + "_step": (card, form, True) for card in catalog() for form in card.forms if form.streams}
    again, declared = [], []
    for name in ["__version__", *foveate.__all__]:
        value = getattr(foveate, name)
        if isinstance(value, ModuleType):
            again.append(f"from foveate import {name} as {name}")
        elif isinstance(value, str):
            declared.append(f"{name}: str")
        elif name in generated and value.__module__ == "foveate":
            declared += function(*generated[name])
        else:
            again.append(f"from {value.__module__} import {name} as {name}")
    typing = "Literal, NamedTuple"
    return [HEAD.format(doc=(foveate.__doc__ or "").splitlines()[0], typing=typing), *sorted(again), "", *declared]


def module_of_layers() -> list[str]:
    """nn.pyi: the classes written by hand, and a class for every form."""
    doc = (foveate.nn.__doc__ or "").splitlines()[0]
    lines = [HEAD.format(doc=doc, typing="Literal, NamedTuple"), *by_hand(foveate.nn), ""]
    for card in catalog():
        for form in card.forms:
            if form.class_name in foveate.nn.__all__:
                lines += layer(card, form)
    return lines


def reference() -> str:
    """Choices, options without default, named results, steps, parameters in lists, training: each at least once."""
    chosen = {form.name: (card, form) for card in catalog() for form in card.forms if form.name in REFERENCE}
    lines = [HEAD.format(doc="Reference of tests/package/test_surface.py.", typing="Literal, NamedTuple")]
    for card, form in chosen.values():
        lines += [*function(card, form, False), *(function(card, form, True) if form.streams else []), *layer(card, form)]
    return "\n".join(lines).rstrip() + "\n"


def main(folder: Path) -> None:
    """Writes both."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.pyi").write_text("\n".join(module_of_functions()).rstrip() + "\n")
    (folder / "nn.pyi").write_text("\n".join(module_of_layers()).rstrip() + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "--reference":
        (Path(__file__).parent.parent / "tests" / "stubs.pyi.ref").write_text(reference())
    else:
        main(Path(sys.argv[1]))
