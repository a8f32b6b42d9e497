"""Finds the golden cases."""

from pathlib import Path

import pytest

import foveate

HERE = Path(__file__).parent


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_case" in metafunc.fixturenames:
        given = metafunc.config.getoption("--golden-dir")
        folder = Path(given) if given else HERE / "data"
        catalogued = {card.slug for card in foveate.catalog()}
        paths = [p for p in sorted(folder.glob("*/*.safetensors")) if p.parent.name in catalogued]
        metafunc.parametrize("golden_case", paths, ids=[f"{p.parent.name}/{p.stem}" for p in paths])
