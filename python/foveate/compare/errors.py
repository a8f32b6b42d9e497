"""What a user can put right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A problem with what the user gave, in one line that says what to do. The command line exits with code 2."""


def nearest(word: str, known: Iterable[str]) -> str:
    """ "The known word nearest to a mistyped one, as in ", did you mean 'linformer'?"; "" if none is near."""
    close = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else ""
