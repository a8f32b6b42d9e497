"""Weights of published implementations under our names: the maps in checkpoints/<slug>.json, read and applied.

A map lists, for a form and a source, the source's tensors and ours:

    {"MultiheadAttention": {"torch": {"in_proj_weight": {"to": ["query.weight", "key.weight", "value.weight"], "op": "split"},
                                      "out_proj.*": "out.*"}}}

`{i}` is a number, `{i-1}` the one before it, `*` any text; the first entry that matches counts; null says that a tensor has no place here.
A tensor that is taken in several ways has a list of them, of which one with `beside` counts only where that other tensor is there too.
Several sources of one form may share names: the first that fits is taken.
"""

import functools
import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, cat, stack

from foveate._catalog import FormCard, card_of

_PLACE = re.compile(r"\{(\w)([+-]\d+)?\}|\*")

# One tensor of theirs, as so many of ours.
_SPREAD: Mapping[str, Callable[[Tensor, int], tuple[Tensor, ...]]] = {
    "": lambda x, _: (x,),
    "transpose": lambda x, _: (x.transpose(-1, -2),),
    "flatten": lambda x, _: (x.flatten(1),),
    "first_rows": lambda x, _: (x,),  # as many as ours has, see `problems`
    "split": lambda x, count: x.chunk(count),
    "transpose_split": lambda x, count: x.transpose(-1, -2).chunk(count),
    "unstack": lambda x, _: x.unbind(),
    "vector": lambda x, _: (x.flatten(),),
    "taps_first": lambda x, _: (x.movedim((-1, -2), (0, 1)),),  # a convolution's weight [taps..., in, out]
    "plane": lambda x, _: (x.squeeze(2),),  # a convolution of a volume that is one tap deep
}
# Several of theirs, in the order of their entries and numbers, as one of ours.
_JOIN: Mapping[str, Callable[[list[Tensor]], Tensor]] = {"concat": cat, "stack": stack}


@dataclass(frozen=True)
class Entry:
    """One line of a map."""

    published: str
    ours: tuple[str, ...]
    """Several where the tensor is split; none where it has no place here."""
    op: str = ""
    beside: str = ""
    """Another tensor of theirs without which the line does not count."""


def sources(form: FormCard) -> Mapping[str, tuple[Entry, ...]]:
    """The maps of a form, by source."""
    return _maps(card_of(form).slug).get(form.class_name, {})


@functools.cache
def _maps(slug: str) -> Mapping[str, Mapping[str, tuple[Entry, ...]]]:
    path = Path(__file__).parent / "checkpoints" / f"{slug}.json"
    rows = json.loads(path.read_text()) if path.exists() else {}
    return {
        form: {source: tuple(_entry(name, row) for name, rows in entries.items() for row in _several(rows)) for source, entries in by_source.items()}
        for form, by_source in rows.items()
    }


def _several(rows: Any) -> list[Any]:
    return rows if isinstance(rows, list) else [rows]


def _entry(published: str, row: str | dict[str, str | list[str]] | None) -> Entry:
    if row is None:
        return Entry(published, ())
    if isinstance(row, str):
        return Entry(published, (row,))
    to, op = row["to"], row.get("op", "")
    if op not in {*_SPREAD, *_JOIN}:
        raise ValueError(f"{published}: op must be one of {', '.join(filter(None, (*_SPREAD, *_JOIN)))}, got {op}")
    return Entry(published, (to,) if isinstance(to, str) else tuple(to), str(op), str(row.get("beside", "")))


def _matched(pattern: str, name: str) -> dict[str, str] | None:
    """The values of a pattern's places in a name, or None where the name is another."""
    places = list(_PLACE.finditer(pattern))
    literals = _PLACE.split(pattern)[:: _PLACE.groups + 1]
    text = "".join(re.escape(literal) + ("" if i == len(places) else r"(\d+)" if places[i][1] else "(.+)") for i, literal in enumerate(literals))
    match = re.fullmatch(text, name)
    if match is None:
        return None
    return {p[1] or "*": str(int(value) - int(p[2] or 0)) if p[1] else value for p, value in zip(places, match.groups(), strict=True)}


def _filled(pattern: str, values: Mapping[str, str]) -> str:
    """The pattern with values in its places; a place without one stays."""

    def text(place: re.Match[str]) -> str:
        value = values.get(place[1] or "*", place[0])
        return str(int(value) + int(place[2])) if place[2] and value != place[0] else value

    return _PLACE.sub(text, pattern)


def _made_by(entries: tuple[Entry, ...], ours: str) -> tuple[Entry, dict[str, str]] | None:
    """The first entry that makes one of our tensors."""
    return next(((e, v) for e in entries for pattern in e.ours if (v := _matched(pattern, ours)) is not None), None)


def published_name(entries: tuple[Entry, ...], ours: str) -> str | None:
    """What a source calls one of our tensors; {i} stays where several of theirs make it up."""
    made = _made_by(entries, ours)
    return _filled(made[0].published, made[1]) if made else None


def _entry_for(entries: tuple[Entry, ...], name: str, state: Mapping[str, Tensor]) -> tuple[Entry | None, dict[str, str]]:
    """The entry that takes one of their tensors."""
    for entry in entries:
        values = _matched(entry.published, name)
        if values is not None and (not entry.beside or _filled(entry.beside, values) in state):
            return entry, values
    return None, {}


def renamed(entries: tuple[Entry, ...], state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under our names, as views where that can be; and the names that the map does not know, or that it takes for one tensor."""
    found: dict[str, Tensor] = {}
    parts: dict[tuple[str, str], dict[tuple[int, int], Tensor]] = defaultdict(dict)
    surplus = []
    for name, x in state.items():
        entry, values = _entry_for(entries, name, state)
        if entry is None:
            surplus.append(name)
        elif entry.op in _JOIN:
            number = next((int(v) for place, v in values.items() if f"{{{place}" not in entry.ours[0] and place != "*"), 0)
            parts[_filled(entry.ours[0], values), entry.op][entries.index(entry), number] = x
        elif entry.ours:
            pieces = _SPREAD[entry.op](x, len(entry.ours))
            patterns = entry.ours if len(entry.ours) > 1 else entry.ours * len(pieces)
            names = [_filled(pattern, {"i": str(number)} | values) for number, pattern in enumerate(patterns)]
            if found.keys() & set(names):
                surplus.append(name)
            found |= zip(names, pieces, strict=False)
    for (name, op), numbered in parts.items():
        found[name] = _JOIN[op]([numbered[i] for i in sorted(numbered)])
    return found, surplus


def problems(entries: tuple[Entry, ...], state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under our names, and what keeps them from being exactly the wanted ones, in the source's names."""
    found, unknown = renamed(entries, state)
    found = {name: x for name, x in found.items() if name in wanted or x.numel()}  # an empty one is as good as none
    wrong = [f"surplus {name}" for name in unknown]
    for name, x in wanted.items():
        made = _made_by(entries, name)
        theirs = _filled(made[0].published, made[1]) if made else None
        if made and made[0].op == "first_rows" and name in found:
            found[name] = found[name][: len(x)]
        if name not in found:
            wrong.append(f"missing {theirs} (our {name})" if theirs else f"it has nothing for our {name}")
        elif found[name].shape != x.shape:
            wrong.append(f"{theirs} (our {name}) must have shape {list(x.shape)}, got {list(found[name].shape)}")
    wrong += [f"surplus {published_name(entries, name)} (our {name}, which these options do not have)" for name in found if name not in wanted]
    return found, wrong
