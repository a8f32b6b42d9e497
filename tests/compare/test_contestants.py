"""The table of contestants beside the catalogue."""

import pytest
import torch

from foveate import catalog
from foveate.compare import contestants, maps
from foveate.compare.contestants import ROWS, SDPA, choose, contestants_of, exact_output
from foveate.compare.errors import UserError
from foveate.compare.inputs import Kind, Sample, Size

EVERY = [contestant for card in catalog() for contestant in contestants_of(card)]
ATTENTIONS = [contestant for contestant in EVERY if contestant.kind == "qkv"]


def sample(kind: Kind, length: int = 64) -> Sample:
    torch.manual_seed(0)
    if kind == "qkv":
        q, k, v = torch.randn(3, 1, 4, length, 16)
        return Sample((q, k, v), Size(length, 4, 16))
    if kind == "vectors":
        return Sample((torch.randn(1, length, 64),), Size(length, 4, 64))
    return Sample((torch.randn(1, 64, 8, length // 8),), Size(length, 1, 64))


@pytest.mark.parametrize("contestant", EVERY, ids=lambda contestant: contestant.name)
def test_contestant_runs_forward_and_backward(contestant) -> None:
    given = sample(contestant.kind)
    inputs = [tensor.requires_grad_() for tensor in given.tensors]
    output = contestant.build(given.size, torch.float32).eval()(*inputs)
    assert torch.isfinite(output).all()
    torch.autograd.grad(output.sum(), inputs, allow_unused=True)


@pytest.mark.parametrize("contestant", ATTENTIONS, ids=lambda contestant: contestant.name)
def test_attention_is_affine_in_the_values_so_that_it_has_a_map(contestant) -> None:
    q, k, v = sample("qkv").tensors
    call = contestant.build(Size(64, 4, 16), torch.float32).eval()
    with torch.no_grad():
        weights = maps.attention_map(call, q, k, seed=5)
        outputs = []
        for values in (v, torch.zeros_like(v)):
            torch.manual_seed(5)
            outputs.append(call(q, k, values)[0])
    torch.testing.assert_close(weights @ v[0], outputs[0] - outputs[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("contestant", [each for each in ATTENTIONS if each.relation == "exact"], ids=lambda contestant: contestant.name)
def test_exact_contestant_is_exact(contestant) -> None:
    given = sample("qkv")
    torch.testing.assert_close(contestant.build(given.size, torch.float64)(*given.to(torch.float64).tensors), exact_output(given))


def test_names_are_unique() -> None:
    names = [SDPA.name, *(row.label for row in ROWS)]
    assert len(names) == len(set(names))


def test_the_baseline_takes_part_whoever_is_asked_for() -> None:
    chosen, _ = choose(["qkv"], [ATTENTIONS[0].card.slug])
    assert chosen[0] is SDPA
    assert {contestant.card.slug for contestant in chosen[1:]} == {ATTENTIONS[0].card.slug}


def test_a_kind_of_input_that_nobody_asked_for_has_no_baseline_either() -> None:
    chosen, _ = choose(["qkv", "map", "vectors"], ["vanilla"])
    assert {contestant.kind for contestant in chosen} == {"qkv", "vectors"}


def test_a_form_without_a_row_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contestants, "ROWS", [row for row in ROWS if row.form != "MultiheadAttention"])
    assert choose(["qkv"], ["vanilla"])[1] == [("MultiheadAttention", "needs an input of its own")]


def test_a_mistyped_mechanism_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match="did you mean 'vanilla'"):
        choose(["qkv"], ["vanila"])


def test_a_mechanism_that_does_not_take_the_input_says_what_it_takes() -> None:
    with pytest.raises(UserError, match="try --text or --qkv"):
        choose(["map"], ["vanilla"])
