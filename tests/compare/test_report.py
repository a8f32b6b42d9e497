"""report.json and report.html."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foveate.compare import report
from foveate.compare.errors import UserError
from foveate.compare.table import bytes_text, show
from tests.compare.made import BASELINE, comparison

DOCUMENT = Path(__file__).parents[2] / "docs" / "compare.md"


def keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            if key not in ("options", "settings", "machine", "versions"):
                yield from keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner)


def test_every_field_of_the_json_is_documented(tmp_path: Path) -> None:
    report.write_json(comparison().report, tmp_path / "report.json")
    documented = set(re.findall(r"`([a-z_]+)`", DOCUMENT.read_text()))
    assert set(keys(json.loads((tmp_path / "report.json").read_text()))) <= documented


def test_page_needs_nothing_from_outside() -> None:
    page = report.page(comparison())
    shell = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", shell)
    assert not re.search(r"@import|url\(", shell)
    assert "<script src" not in page
    assert "plotly.js v" in page


def test_text_of_the_user_cannot_end_the_script_it_stands_in() -> None:
    made = comparison()
    made.report.panels[0].answer[0] = "</script><script>alert(1)</script>"
    page = report.page(made)
    assert "<script>alert(1)" not in page
    assert page.count("</script>") == 5 + report._asset("page.js").count("</script>")


def test_page_opens_with_the_answer() -> None:
    assert "<title>For your text at N = 1024, Fast is 4.0 times faster" in report.page(comparison())


def test_interrupted_writing_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        report.write_whole(path, b"new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        report.write_whole(tmp_path / "file" / "report.json", b"")


def test_table_shows_every_contestant_with_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    show(comparison().report, Console(width=140, color_system=None))
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if line.strip().startswith("Fast"))
    assert re.split(r"\s{2,}", line.strip()) == ["Fast", "0.262 ±0.03", "0.25", "0.524 ±0.05", "0.50", "3.1 MB", "4 %", "N^-1.50", "362"]
    assert BASELINE in out
    assert re.search(r"Windows +windows +1: 50 %, 2: 25 %", out)
    assert "not compared: odd_layer (needs an input of its own)" in out


def test_sizes_are_told_in_the_unit_that_fits() -> None:
    assert [bytes_text(size) for size in (2_500, 2_500_000, 250_000_000, 2_500_000_000, None)] == ["2 kB", "2.5 MB", "250 MB", "2.5 GB", ""]
