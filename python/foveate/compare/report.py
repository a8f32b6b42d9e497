"""Writes report.json and report.html, whole or not at all."""

from __future__ import annotations

import html
import json
import os
import tempfile
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from foveate.compare.errors import UserError
from foveate.compare.results import Comparison, Report


def write_json(report: Report, path: Path) -> None:
    """The report in the form docs/compare.md describes."""
    write_whole(path, json.dumps(report.as_json(), indent=1, allow_nan=False).encode())


def write_html(comparison: Comparison, path: Path) -> None:
    """One page that needs nothing else: data, styles, scripts and plotly.js are inside."""
    write_whole(path, page(comparison).encode())


def page(comparison: Comparison) -> str:
    """The text of the page."""
    from plotly.offline import get_plotlyjs

    report = comparison.report
    answers = [panel.answer[0] for panel in report.panels if panel.answer]
    return Template(_asset("page.html")).substitute(
        title=html.escape(answers[0] if answers else "foveate compare"),
        style=_asset("page.css"),
        plotly=get_plotlyjs(),
        script=_asset("page.js"),
        report=_script_safe(report.as_json()),
        maps=_script_safe(asdict(comparison.maps) if comparison.maps else None),
        photo=_script_safe(asdict(comparison.photo) if comparison.photo else None),
    )


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that it is there in full or not at all, even if the program is interrupted."""
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as problem:
        raise UserError(f"cannot write {path}: {problem.strerror}") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _asset(name: str) -> str:
    return (resources.files("foveate.compare") / "page" / name).read_text(encoding="utf-8")


def _script_safe(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
