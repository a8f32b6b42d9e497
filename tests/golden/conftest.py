"""Finds the golden cases and ends the run with a table per mechanism."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

import foveate

HERE = Path(__file__).parent
RESULTS: dict[str, Counter[str]] = defaultdict(Counter)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_case" in metafunc.fixturenames:
        given = metafunc.config.getoption("--golden-dir")
        folder = Path(given) if given else HERE / "data"
        catalogued = {card.slug for card in foveate.catalog()}
        paths = [p for p in sorted(folder.glob("*/*.safetensors")) if p.parent.name in catalogued]
        metafunc.parametrize("golden_case", paths, ids=[f"{p.parent.name}/{p.stem}" for p in paths])


def pytest_runtest_logreport(report: Any) -> None:
    if "test_agrees_with_the_original[" in report.nodeid and (report.when == "call" or report.failed):
        slug = report.nodeid.split("[", 1)[1].split("/", 1)[0]
        RESULTS[slug]["passed" if report.passed else "failed"] += 1


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not RESULTS:
        return
    terminalreporter.section("golden cases")
    missing = {card.slug for card in foveate.catalog()} - set(RESULTS)
    for slug in sorted({*RESULTS, *missing}):
        counts = RESULTS.get(slug, Counter())
        terminalreporter.write_line(f"{slug:28} passed {counts['passed']:3}  failed {counts['failed']:3}{'  missing' if slug in missing else ''}")
