"""Options of the whole test run, and the table of golden cases at its end."""

from collections import Counter, defaultdict
from typing import Any

import pytest

import foveate

RESULTS: dict[str, Counter[str]] = defaultdict(Counter)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden-dir", default=None, help="folder of <slug>/<case>.safetensors to run instead of tests/golden/data")


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
