"""Refreshes what the repository derives from the catalogue: the README's table of mechanisms. A test fails when it is out of date."""

import re
from pathlib import Path

from foveate._reference import mechanism_table

README = Path(__file__).parent.parent / "README.md"
MARKED = re.compile(r"(<!-- mechanisms: [^>]*-->\n).*?(<!-- /mechanisms -->)", re.DOTALL)


def refreshed(text: str) -> str:
    """The README with today's table."""
    return MARKED.sub(lambda found: found[1] + mechanism_table() + "\n" + found[2], text)


if __name__ == "__main__":
    README.write_text(refreshed(README.read_text()))
