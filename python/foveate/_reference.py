"""What is derived from the catalogue for readers: the table of the README, the reference part of a mechanism's page."""

from foveate._catalog import Card, Field, FormCard, catalog


def mechanism_table() -> str:
    """The table of all mechanisms, in Markdown, by family and year."""
    rows = ["| mechanism | paper | cost | causal | forms |", "|---|---|---|---|---|"]
    for card in sorted(catalog(), key=lambda card: (card.year, card.slug)):
        names = ", ".join(f"`{form.class_name}`" for form in card.forms)
        link = f"[{card.title}](docs/mechanisms/{card.slug}.md)"
        rows.append(f"| {link} | [{card.paper}](https://arxiv.org/abs/{card.paper}) {card.year} | {card.cost} | {card.causality} | {names} |")
    return "\n".join(rows)


def page(card: Card) -> str:
    """The derived part of a mechanism's page: its card, and the reference of each form."""
    lines = [
        f"    {card.equation}",
        "",
        f"arXiv [{card.paper}](https://arxiv.org/abs/{card.paper}) ({card.year}) · family {card.family} · "
        f"cost {card.cost} · causal: {card.causality}",
    ]
    for form in card.forms:
        lines += ["", *_form(form)]
    return "\n".join(lines) + "\n"


def _form(form: FormCard) -> list[str]:
    lines = [f"## {form.class_name}", "", form.summary[:1].upper() + form.summary[1:] + ".", ""]
    call = ", ".join(f.name for f in form.inputs if not f.optional)
    if form.has_parameters:
        lines += [f"`foveate.nn.{form.class_name}(...)({call})`, as a function of its parameters `foveate.{form.name}({call}, ...)`."]
    else:
        lines += [f"`foveate.{form.name}({call}, ...)`, as a layer that keeps its options `foveate.nn.{form.class_name}(...)`."]
    if form.streams:
        lines += ["", "Streams: `step(..., state=None)` takes some more tokens and the state so far, and gives the result and the next state."]
    for title, fields in (
        ("option", form.options),
        ("input", form.inputs),
        ("parameter", form.parameters),
        ("result", form.outputs),
        ("state", form.state),
    ):
        if fields:
            lines += ["", *_table(title, fields)]
    if form.example:
        lines += ["", "```python", form.example, "```"]
    return lines


def _table(title: str, fields: tuple[Field, ...]) -> list[str]:
    if title == "option":
        rows = [f"| `{f.name}` | {f.type} | {_default(f)} | {_cell(f.text)}{_choices(f)} |" for f in fields]
        return ["| option | type | default | meaning |", "|---|---|---|---|", *rows]
    rows = [f"| `{f.name}`{' (optional)' if f.optional else ''} | {_shape(f)} | {_cell(f.text)} |" for f in fields]
    return [f"| {title} | shape | meaning |", "|---|---|---|", *rows]


def _default(field: Field) -> str:
    return "required" if not field.has_default else f"`{field.default!r}`"


def _choices(field: Field) -> str:
    return f" ({', '.join(field.choices)})" if field.choices else ""


def _shape(field: Field) -> str:
    kind = "" if field.dtype == "float" else field.dtype + " "
    return kind + (f"[{field.shape}]" if field.shape != "?" else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
