"""What the library holds, read from the library itself."""

import ast
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Field:
    """One input, option, parameter, output or part of the state of a form."""

    name: str
    type: str
    """As in an operator schema: "Tensor", "Tensor?", "int", "float?", "str"."""
    text: str
    role: str
    """"plain", "required" (an option without default) or "buffer" (not trained)."""
    dtype: str = ""
    """Of tensors: "float", "bool" or "int"."""
    shape: str = ""
    """Of tensors: "B,H,N,D"; letters agree between inputs, "*" is any size, "?" not declared."""
    choices: tuple[str, ...] = ()
    has_default: bool = False
    default: Any = None

    @property
    def optional(self) -> bool:
        """Whether it may be left out."""
        return self.type.endswith("?")

    @property
    def doc(self) -> str:
        """Its shape and meaning in one line."""
        kind = "" if self.dtype in ("", "float") else self.dtype + " "
        return f"{kind}[{self.shape}] {self.text}" if self.shape not in ("", "?") else kind + self.text


@dataclass(frozen=True)
class FormCard:
    """One form of a mechanism: the bare function, the layer, a small model."""

    name: str
    class_name: str
    summary: str
    example: str
    listed: bool
    """Parameters travel as two lists, because some group of them is variable in number."""
    training: bool
    """Whether its call takes `training`, because it behaves differently then."""
    step_training: bool
    """The same of its step."""
    streams: bool
    has_parameters: bool
    inputs: tuple[Field, ...]
    parameters: tuple[Field, ...]
    options: tuple[Field, ...]
    outputs: tuple[Field, ...]
    state: tuple[Field, ...]


@dataclass(frozen=True)
class Card:
    """One mechanism: a paper and its forms."""

    slug: str
    title: str
    paper: str
    """arXiv id."""
    year: int
    family: str
    cost: str
    """As claimed."""
    causality: str
    """"strict": no output of its causal forms depends on a later input; "logits only": its selection looks ahead; "none"."""
    equation: str
    forms: tuple[FormCard, ...]


@functools.cache
def catalog() -> tuple[Card, ...]:
    """Every mechanism of the library, by slug.

    >>> [card.title for card in foveate.catalog() if card.slug == "vanilla"]
    ['Scaled dot-product multi-head attention']
    """
    rows = json.loads(torch.ops.foveate.catalogue())
    return tuple(Card(**{**row, "forms": tuple(_form(form) for form in row["forms"])}) for row in rows)


@functools.cache
def forms() -> Mapping[str, FormCard]:
    """Every form by its operator's name."""
    return {form.name: form for card in catalog() for form in card.forms}


def card_of(form: FormCard) -> Card:
    """The mechanism that a form belongs to."""
    return next(card for card in catalog() if form in card.forms)


def _form(row: dict[str, Any]) -> FormCard:
    groups = ("inputs", "parameters", "options", "outputs", "state")
    return FormCard(**{**row, **{group: tuple(_field(field) for field in row[group]) for group in groups}})


def _field(row: dict[str, Any]) -> Field:
    row = {**row, "choices": tuple(row.get("choices", ()))}
    if "default" in row:  # written as in a schema, which for these types is Python
        row |= {"has_default": True, "default": ast.literal_eval(row["default"])}
    return Field(**row)
