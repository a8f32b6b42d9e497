"""Who takes part: one row per contestant. A later mechanism adds one row to ROWS.

A row names a form of the catalogue, the input it takes and its options for a given size. A mechanism may have several
rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate import nn as layers
from foveate._catalog import Card, FormCard, catalog
from foveate.compare.errors import UserError, nearest
from foveate.compare.inputs import Kind, Sample, Size

Relation = Literal["exact", "approximate", "different"]
Options = Callable[[Size], Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """One contestant of the table below."""

    form: str  # name in the catalogue
    label: str
    kind: Kind
    relation: Relation  # to exact attention; only an exact or approximate one has an error
    options: Options = lambda size: {}
    baseline: bool = False


ROWS: tuple[Row, ...] = (
    Row("attention", "Exact attention (foveate)", "qkv", "exact"),
    Row("shaw_attention", "Shaw relative positions", "qkv", "different", lambda size: {"head_dim": size.width}),
    Row("t5_attention", "T5 relative bias", "qkv", "different", lambda size: {"heads": size.heads}),
    Row("alibi_attention", "ALiBi", "qkv", "different", lambda size: {"heads": size.heads}),
    Row("rotary_attention", "Rotary positions", "qkv", "different"),
    Row("xlnet_attention", "XLNet relative positions", "qkv", "different"),
    Row("transformer_xl_attention", "Transformer-XL", "qkv", "different"),
    Row("efficient_attention", "Efficient Attention", "qkv", "approximate"),
    Row("linear_transformer_attention", "Linear Transformer", "qkv", "approximate"),
    Row("linformer_attention", "Linformer", "qkv", "approximate", lambda size: {"length": size.length, "rank": 256}),
    Row("sparse_transformer_attention", "Sparse Transformer, strided", "qkv", "approximate"),
    Row("smyrf_attention", "SMYRF", "qkv", "approximate"),
    Row("non_local_block", "Non-local block", "map", "exact", baseline=True),
    Row("efficient_attention_block", "Efficient Attention block", "map", "different"),
    Row("cbam", "CBAM", "map", "different"),
    Row("bam", "BAM", "map", "different"),
    Row("sab", "SAB (every pair)", "set", "exact", baseline=True),
    Row("isab", "ISAB", "set", "different"),
    Row("pma", "PMA", "set", "different"),
)


@dataclass(frozen=True)
class Contestant:
    """A row together with its card. `build` gives the call to measure at one size."""

    name: str
    kind: Kind
    relation: Relation
    baseline: bool
    options: Options
    make: Callable[[Mapping[str, Any]], Callable[..., Any]]
    card: Card | None  # None: torch's own
    form: str
    trained: bool  # training would set its parameters

    def build(self, size: Size, dtype: torch.dtype) -> nn.Module:
        """A call of the sample's tensors that returns the output."""
        built = self.make(self.options(size))
        if isinstance(built, nn.Module):
            built = built.to(dtype)
        return _FirstOutput(built)


class _FirstOutput(nn.Module):
    """A call whose output is the first of several."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *inputs: Tensor) -> Tensor:
        result = self.call(*inputs)
        return result if isinstance(result, Tensor) else result[0]


SDPA = Contestant(
    name="Exact attention (torch SDPA)",
    kind="qkv",
    relation="exact",
    baseline=True,
    options=lambda size: {},
    make=lambda options: F.scaled_dot_product_attention,
    card=None,
    form="torch.nn.functional.scaled_dot_product_attention",
    trained=False,
)


def choose(kinds: Iterable[Kind], slugs: Sequence[str] | None) -> tuple[list[Contestant], list[tuple[str, str]]]:
    """Contestants for these kinds of input, with the baseline of each kind; and forms left out, with the reason."""
    cards = catalog()
    wanted = [card for card in cards if slugs is None or card.slug in slugs]
    known = [card.slug for card in cards]
    for slug in slugs or ():
        if slug not in known:
            raise UserError(f"no mechanism called '{slug}'{nearest(slug, known)}; `foveate list` names them all")
    every = [contestant for card in cards for contestant in contestants_of(card)]
    chosen: list[Contestant] = []
    for kind in dict.fromkeys(kinds):
        of_kind = [each for each in every if each.kind == kind]
        asked = [each for each in of_kind if each.card in wanted]
        baseline = [SDPA] if kind == "qkv" else [each for each in of_kind if each.baseline]
        if asked:
            chosen += baseline + [each for each in asked if not each.baseline]
    if not chosen:
        raise UserError(f"none of {', '.join(slugs or known)} takes this input: {_takers(wanted)}")
    rowless = [form.name for card in wanted for form in card.forms if not any(row.form == form.name for row in ROWS)]
    return chosen, [(name, "needs an input of its own") for name in rowless]


def find_card(slug: str) -> Card:
    """The card of a mechanism."""
    cards = {card.slug: card for card in catalog()}
    if slug not in cards:
        raise UserError(f"no mechanism called '{slug}'{nearest(slug, cards)}; `foveate list` names them all")
    return cards[slug]


def contestants_of(card: Card) -> list[Contestant]:
    """The contestants of one mechanism."""
    return [_contestant(row, card, form) for form in card.forms for row in ROWS if row.form == form.name]


def _contestant(row: Row, card: Card, form: FormCard) -> Contestant:
    def make(options: Mapping[str, Any]) -> nn.Module:
        module: nn.Module = getattr(layers, form.class_name)(**options)
        return module

    return Contestant(row.label, row.kind, row.relation, row.baseline, row.options, make, card, form.name, form.has_parameters)


def _takers(cards: Sequence[Card]) -> str:
    flags = {"qkv": "--text or --qkv", "set": "--text or --qkv", "map": "--image"}
    kinds = {flags[contestant.kind] for card in cards for contestant in contestants_of(card)}
    return f"try {' or '.join(sorted(kinds))}" if kinds else "each needs an input of its own"


def exact_output(sample: Sample) -> Tensor:
    """softmax(q k^T / sqrt(D)) v in float64."""
    q, k, v = (tensor.double() for tensor in sample.tensors)
    return F.scaled_dot_product_attention(q, k, v, scale=1 / math.sqrt(q.shape[-1]))
