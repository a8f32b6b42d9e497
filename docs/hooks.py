"""Adds to each mechanism's page what is derived from the catalogue, and to the index the table of all."""

from typing import Any

from foveate._catalog import Card, catalog
from foveate._reference import mechanism_table
from foveate._reference import page as reference
from foveate.show import picture_of


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs for every page."""
    source = page.file.src_uri
    if source == "index.md":
        return markdown.replace("<!-- mechanisms -->", mechanism_table().replace("(docs/mechanisms/", "(mechanisms/"))
    if not source.startswith("mechanisms/"):
        return markdown
    slug = source.removeprefix("mechanisms/").removesuffix(".md")
    card = next((card for card in catalog() if card.slug == slug), None)
    return markdown if card is None else markdown.replace("<!-- reference -->", drawn(card) + reference(card))


def drawn(card: Card) -> str:
    """The picture of who reads whom, where a form takes q, k and v."""
    address = picture_of(card, enlarge=4)
    if address is None:
        return ""
    return (
        f"**Who reads whom**, queries downwards, keys to the right (`foveate show {card.slug}`):\n\n![attention map of {card.title}]({address})\n\n"
    )
