"""What the command line shows of the catalogue: the list, and one mechanism with a picture of who reads whom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from foveate._catalog import Card, FormCard, catalog
from foveate.check import Finding
from foveate.compare import maps
from foveate.compare.contestants import Contestant, Row, contestants_of, find_card, rows_of
from foveate.compare.errors import UserError
from foveate.compare.inputs import Size
from foveate.compare.report import write_whole
from foveate.compare.table import WIDE

POSITIONS, HEADS, WIDTH = 64, 2, 32
PNG_ENLARGED = 10
SHADES = " ░▒▓█"
# Who is drawn where one layer alone does not show what a mechanism is.
DRAWN = (
    Row(
        "BPTransformer",
        "BP-Transformer (2 blocks)",
        "vectors",
        "different",
        lambda size: {"embed_dim": size.width, "num_heads": size.heads, "num_layers": 2, "inner_dim": size.width, "neighbors": 2},
    ),
)


def mechanisms_table(width: int) -> Table:
    """One row per mechanism; its forms only where the terminal is wide enough."""
    table = Table(title="Mechanisms of foveate", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    headings = ["slug", "mechanism", "year", "family", "cost", "causal", "forms in foveate.nn"][: 7 if width >= WIDE else 6]
    for heading in headings:
        table.add_column(heading, no_wrap=heading == "slug", justify="right" if heading == "year" else "left")
    for card in sorted(catalog(), key=lambda card: (card.family, card.year, card.slug)):
        forms = ", ".join(form.class_name for form in card.forms)
        row = (card.slug, card.title, str(card.year), card.family, card.cost, card.causality, forms)
        table.add_row(*(Text(cell) for cell in row[: len(headings)]))
    return table


def findings_table(findings: Sequence[Finding]) -> Table:
    """One row per mechanism: how many of its forms ran, have finite gradients, were seen not to look ahead."""
    forms = len(findings)
    sound = sum(not finding.fault for finding in findings)
    table = Table(title=f"{sound} of {forms} forms work", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    headings = ["slug", "forms", "work", "have gradients", "declared causal", "seen causal"]
    for heading in headings:
        table.add_column(heading, no_wrap=heading == "slug", justify="left" if heading in ("slug", "declared causal") else "right")
    for card in catalog():
        of_card = [finding for finding in findings if finding.slug == card.slug]
        counts = [len(of_card), *(sum(map(bool, column)) for column in zip(*((not f.fault, f.gradients, f.causal) for f in of_card), strict=True))]
        total, work, trained, causal = (str(count) for count in counts)
        table.add_row(card.slug, total, work, trained, card.causality, causal)
    return table


def mechanisms_json() -> list[dict[str, Any]]:
    """The same as plain data."""
    names = ("slug", "title", "paper", "year", "family", "cost", "causality", "equation")
    return [{name: getattr(card, name) for name in names} | {"forms": [form.name for form in card.forms]} for card in catalog()]


def show_mechanism(slug: str, out: Path | None, seed: int, console: Console) -> None:
    """Prints card, equation and options, and the attention map: in the terminal, or to a PNG file."""
    card = find_card(slug)
    drawn = _drawn(card)
    if out is not None and out.suffix.lower() != ".png":
        raise UserError(f"--out writes a .png file, not {out.name}")
    if out is not None and drawn is None:
        raise UserError(f"{slug} has no map to draw: it takes no sequence")
    _print_card(card, console)
    if drawn is None:
        return
    indices = picture(drawn, seed)
    if out is not None:
        write_whole(out, maps.png(indices, PNG_ENLARGED))
        console.print(f"wrote {out}", markup=False)
        return
    console.print(f"{caption(drawn)}, {drawn.name}: an example sequence of {POSITIONS} positions")
    for line in colour_lines(indices) if console.color_system else shade_lines(indices):
        console.print(line, soft_wrap=True)


def _drawn(card: Card) -> Contestant | None:
    """Who stands for a mechanism in its picture: one that takes q, k and v if there is one, else a layer."""
    takers = rows_of(card, DRAWN) + contestants_of(card)
    of_kind = [contestant for kind in ("qkv", "vectors") for contestant in takers if contestant.kind == kind]
    return of_kind[0] if of_kind else None


def caption(contestant: Contestant) -> str:
    """What the picture shows."""
    if contestant.kind == "qkv":
        return "Who reads whom (queries downwards, keys to the right)"
    return "Who depends on whom (outputs downwards, inputs to the right)"


def picture(contestant: Contestant, seed: int = 0) -> Tensor:
    """Who reads whom on the example sequence, in the first head, or which inputs a layer's outputs depend on: palette indices [N,N]."""
    weights = example_map(contestant, seed)[0]
    # What a layer passes on of a position itself would outshine the rest.
    shown = weights if contestant.kind == "qkv" else weights[~torch.eye(POSITIONS, dtype=torch.bool)]
    return maps.shades(weights, maps.brightest_of(shown))


def picture_of(card: Card, enlarge: int) -> tuple[str, str] | None:
    """Caption, and the picture as the address of a PNG; None where a mechanism takes no sequence."""
    drawn = _drawn(card)
    return (caption(drawn), maps.data_uri(picture(drawn), enlarge)) if drawn else None


def example_map(contestant: Contestant, seed: int) -> Tensor:
    """Attention map [H,N,N] on the example sequence; of a layer, the map [1,N,N] of what depends on what."""
    torch.manual_seed(seed)
    x = example_sequence()
    if contestant.kind == "qkv":
        return maps.attention_map(contestant.build(Size(POSITIONS, HEADS, WIDTH), torch.float32), x, x, seed)
    layer = contestant.build(Size(POSITIONS, HEADS, WIDTH), torch.float64)
    return maps.influence_map(layer, x[:, 0].double(), seed)[None]


def example_sequence() -> Tensor:
    """A sequence [1,H,N,D] in which neighbours are alike and the first half returns, so that a map shows structure."""
    time = torch.arange(POSITIONS).float()[:, None]
    theme = time % (POSITIONS / 2)
    rates = torch.logspace(math.log10(0.05), math.log10(0.6), WIDTH // 2)
    x = torch.cat([torch.sin(theme * rates), torch.cos(theme * rates)], dim=1)  # [N,D]
    return (1.6 * x).expand(1, HEADS, POSITIONS, WIDTH).contiguous()


def colour_lines(indices: Tensor) -> list[Text]:
    """A picture as lines of half blocks, two rows of cells in each."""
    colours = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in maps.palette()]
    rows: list[list[int]] = indices.tolist()
    lines = []
    for top, bottom in zip(rows[::2], rows[1::2], strict=True):
        line = Text()
        for above, below in zip(top, bottom, strict=True):
            line.append("▀", style=f"{colours[above]} on {colours[below]}")
        lines.append(line)
    return lines


def shade_lines(indices: Tensor) -> list[Text]:
    """The same without colours: five shades, each the mean of two rows."""
    strength = (indices.float() - maps.ZERO).abs().div(128).reshape(-1, 2, indices.shape[1]).mean(1)
    levels: list[list[int]] = (strength * len(SHADES)).long().clamp(max=len(SHADES) - 1).tolist()
    return [Text("".join(SHADES[level] for level in row)) for row in levels]


def _print_card(card: Card, console: Console) -> None:
    console.print(Text(card.title, style="bold"), Text(f"arXiv {card.paper}, {card.year}", style="dim"))
    console.print(Text(card.equation, style="italic"))
    console.print(Text(f"family {card.family}, cost {card.cost}, causal: {card.causality}\n"))
    for form in card.forms:
        console.print(Text(f"foveate.nn.{form.class_name}", style="bold"), Text(form.summary))
        console.print(_options_grid(form))
        console.print()


def _options_grid(form: FormCard) -> Table:
    grid = Table.grid(padding=(0, 2))
    for option in form.options:
        default = f"= {option.default}" if option.has_default else "required"
        kind = " | ".join(option.choices) or option.type
        grid.add_row(" ", Text(option.name, style="cyan"), Text(kind), Text(default, style="dim"), Text(option.doc))
    return grid
