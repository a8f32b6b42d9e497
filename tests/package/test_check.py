"""The library's check of itself finds nothing in what is right, and what is wrong."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import foveate
from foveate import check
from foveate._catalog import catalog, forms
from foveate.cli import app

CARD = next(card for card in catalog() if card.slug == "vanilla")
FORM = forms()["attention"]
QKV = {name: torch.randn(1, 2, 6, 4) for name in ("q", "k", "v")}


def test_every_form_works_and_every_strict_card_has_a_form_seen_causal() -> None:
    findings = check.check_all()
    assert [finding.form for finding in findings] == [form.class_name for card in catalog() for form in card.forms]
    assert [finding for finding in findings if finding.fault] == []
    strict = {card.slug for card in catalog() if card.causality == "strict"}
    assert strict == {card.slug for card in catalog() if card.causality == "strict" and any(f.causal for f in findings if f.slug == card.slug)}


def test_a_form_that_looks_ahead_is_found() -> None:
    def peeks(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        return torch.softmax(q @ k.transpose(-1, -2), -1) @ v

    with pytest.raises(check.FaultError, match="position 3 of 6 changes earlier outputs"):
        check.looks_back_only(CARD, FORM, peeks, dict(QKV))


def test_results_and_gradients_that_are_not_finite_are_found() -> None:
    with pytest.raises(check.FaultError, match="output is not finite"):
        check.finite_gradients(FORM, lambda q: q / 0, {"q": torch.ones(3)})
    with pytest.raises(check.FaultError, match="gradient is not finite"):
        check.finite_gradients(FORM, lambda q: (q - q).sqrt(), {"q": torch.ones(3)})


def test_an_example_that_raises_or_calls_another_form_is_a_fault_of_its_form_only() -> None:
    raising = replace(FORM, example="raise RuntimeError('no\\nsuch')")
    assert check.check(CARD, raising).fault == "RuntimeError: no"
    assert "does not call it" in check.check(CARD, replace(FORM, example="torch.ones(2)")).fault


def test_the_generator_is_left_as_it_was() -> None:
    torch.manual_seed(5)
    want = torch.rand(())
    torch.manual_seed(5)
    check.check(CARD, FORM)
    assert torch.rand(()) == want


@pytest.mark.parametrize("broken", [False, True])
def test_the_command_prints_a_row_a_mechanism_and_fails_with_the_form_named(broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def one(done: Any) -> list[check.Finding]:
        done()
        return [check.Finding(card.slug, form.class_name, 3, False, "it is broken" * broken) for card in catalog() for form in card.forms]

    monkeypatch.setattr(check, "check_all", one)
    result = CliRunner().invoke(app, ["list", "--check"])
    assert result.exit_code == broken and "vanilla" in result.stdout
    assert ("MultiheadAttention (vanilla): it is broken" in result.stderr) == broken
    found = json.loads(CliRunner().invoke(app, ["list", "--check", "--json"]).stdout)
    assert len(found) == sum(len(card.forms) for card in foveate.catalog())
