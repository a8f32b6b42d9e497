"""What forms promise that drop attention weights by a seed: one seed gives one draw, draws average to what is not dropped, and layers draw
in training."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contract import Case, call, cases, first


def option(case: Case) -> str:
    """What the form calls the probability of dropping a weight."""
    return "attention_dropout" if any(f.name == "attention_dropout" for f in case.card.options) else "dropout"


GIVEN = {"dropout_keep", "dropout_seed"}  # cases that give a draw have no other
SEEDED = [case for case in cases() if any(f.name == "dropout_seed" for f in case.card.inputs) and not GIVEN & {*case.given}]
LINEAR = [case for case in SEEDED if "attention" in case.form]  # in the weights


def result(case: Case, **options: Any) -> Any:
    """How to call the form with a seed, or without."""
    inputs, chosen = case.inputs(), {**case.options, **options}
    parameters = case.layer().state_dict() if case.card.has_parameters else {}

    def run(seed: int | None) -> Tensor:
        given = inputs if seed is None else {**inputs, "dropout_seed": torch.tensor(seed)}
        outputs = call(case.form, given, parameters, training=False, **chosen)
        return torch.cat([x.flatten() for x in ([outputs] if isinstance(outputs, Tensor) else outputs) if x.dim() == first(outputs).dim()])

    return run


@pytest.mark.parametrize("case", SEEDED, ids=[case.id for case in SEEDED])
def test_one_seed_gives_one_draw(case: Case) -> None:
    run = result(case, **{option(case): 0.4})
    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


@pytest.mark.parametrize("case", LINEAR, ids=[case.id for case in LINEAR])
def test_draws_average_to_what_is_not_dropped(case: Case) -> None:
    run = result(case, **{option(case): 0.3})
    mean, whole = torch.stack([run(977 * seed) for seed in range(500)]).mean(0), run(None)
    assert (mean - whole).norm() < 0.06 * whole.norm()


TRAINED = [case for case in SEEDED if case.card.training]


@pytest.mark.parametrize("case", TRAINED, ids=[case.id for case in TRAINED])
def test_layers_draw_in_training_only(case: Case) -> None:
    name = option(case)
    none = {f.name: 0 for f in case.card.options if f.name == "dropout" and name != "dropout"}
    layer = Case(case.form, case.sizes, {**case.options, **none, name: 0.5}, case.given, case.make).layer()
    inputs = case.inputs()
    assert torch.equal(first(layer(**inputs)), first(layer(**inputs)))
    layer.train()
    assert not torch.equal(first(layer(**inputs)), first(layer(**inputs)))
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(first(layer(**inputs)))
    assert torch.equal(*draws)
