"""What forms with a training mode promise besides: running statistics follow in training, whole, compiled, exported and differentiated,
and stay in evaluation."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import foveate
from tests.contract import Case, cases, first

TRAINING = [case for case in cases() if case.card.training]
EVERY_CASE = pytest.mark.parametrize("case", TRAINING, ids=[case.id for case in TRAINING])


def statistics(layer: torch.nn.Module) -> dict[str, Tensor]:
    """What follows the batches of training, as it is now. (Other buffers are tables, and draws.)"""
    return {name: b.clone() for name, b in layer.named_buffers() if name.split(".")[-1] in ("running_mean", "running_var", "bases")}


NORMALISING = [case for case in TRAINING if statistics(case.layer())]


def drawn(call: Any, *args: Any, **kwargs: Any) -> Any:
    """The result of a call whose draws, such as those of dropout, are the same each time."""
    torch.manual_seed(7)
    return call(*args, **kwargs)


def results(outputs: Any) -> list[Tensor]:
    """All that is differentiable; parameters may serve another result than the first."""
    tensors = [outputs] if isinstance(outputs, Tensor) else outputs
    return [x for x in tensors if x.is_floating_point()]


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor], **tolerance: Any) -> None:
    assert set(got) == set(want)
    for name, x in want.items():
        torch.testing.assert_close(got[name], x, **tolerance, msg=lambda m, n=name: f"{n}: {m}")


@EVERY_CASE
def test_opcheck_in_training(case: Case) -> None:
    layer = case.layer().train()
    inputs = case.inputs()
    for x in inputs.values():
        x.requires_grad_(x.is_floating_point())
    operator = getattr(torch.ops.foveate, case.form).default
    opcheck(operator, (), {**inputs, **layer._arguments(), "training": True})


@pytest.mark.parametrize("case", NORMALISING, ids=[case.id for case in NORMALISING])
def test_statistics_follow_in_training_only(case: Case) -> None:
    layer, inputs = case.layer(), case.inputs()
    before = statistics(layer)
    layer(**inputs)
    assert_same(statistics(layer), before, rtol=0, atol=0)
    torch.stack([x.square().sum() for x in results(layer.train()(**inputs))]).sum().backward()
    idle = {name.rpartition(".")[0] for name, p in layer.named_parameters() if p.grad is None or not p.grad.any()}  # of branches that are off
    followed = {name: x for name, x in statistics(layer).items() if name.rpartition(".")[0] not in idle}
    assert followed and all(not torch.equal(x, before[name]) for name, x in followed.items())


@EVERY_CASE
def test_compiled_training_equals_eager(case: Case) -> None:
    torch._dynamo.reset()
    inputs, eager, other = case.inputs(), case.layer().train(), case.layer().train()
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        want, got = results(drawn(eager, **inputs)), results(drawn(compiled, **inputs))
        torch.testing.assert_close(got, want)
        for found in (want, got):
            total = torch.stack([x.square().sum() for x in found]).sum()
            if total.requires_grad:  # a function that drops weights has nothing to train
                total.backward()
    assert_same(statistics(other), statistics(eager))
    gradients = [{name: p.grad for name, p in layer.named_parameters() if p.grad is not None} for layer in (other, eager)]
    assert_same(gradients[0], gradients[1], rtol=1e-8, atol=1e-9)


@EVERY_CASE
def test_exported_training_equals_eager(case: Case) -> None:
    inputs, layer, other = case.inputs(), case.layer().train(), case.layer().train()  # a program shares its layer's statistics
    given = tuple(inputs.get(field.name) for field in case.card.inputs)
    program = torch.export.export(other, given).module()
    torch.testing.assert_close(first(drawn(program, *given)), first(drawn(layer, **inputs)))
    assert_same(statistics(program), statistics(layer))


@EVERY_CASE
def test_functional_gradients_in_training_equal_autograd(case: Case) -> None:
    inputs, layer = case.inputs(), case.layer().train()
    parameters = {name: p.detach().clone() for name, p in layer.named_parameters()}
    if not parameters:
        return  # a function that drops weights has nothing to train
    before = statistics(layer)

    def loss(own: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return first(drawn(torch.func.functional_call, layer, {**own, **buffers}, (), inputs)).square().sum()

    got = torch.func.grad(loss)(parameters, {name: b.clone() for name, b in layer.named_buffers()})
    assert_same(statistics(layer), before, rtol=0, atol=0)  # the copies follow, not the layer's own
    leaves = {name: p.requires_grad_() for name, p in parameters.items()}
    found = torch.autograd.grad(loss(leaves, dict(layer.named_buffers())), list(leaves.values()), allow_unused=True)
    want = {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(leaves.items(), found, strict=True)}
    assert_same(got, want, rtol=1e-8, atol=1e-9)


LISTED = [case for case in cases() if case.card.listed]


@pytest.mark.parametrize("case", LISTED, ids=[case.id for case in LISTED])
def test_lists_of_parameters_are_checked(case: Case) -> None:
    inputs, layer = case.inputs(), case.layer()
    operator = getattr(torch.ops.foveate, case.form).default
    arguments = layer._arguments()
    for name in ("parameters", "buffers"):
        tensors = arguments[name]
        if not tensors:
            continue
        with pytest.raises(
            ValueError, match=rf"{case.form}: {name} must be \d+ tensors with these options, got {len(tensors) - 1}: [\w.]+ is missing"
        ):
            operator(**inputs, **{**arguments, name: tensors[:-1]})
        with pytest.raises(ValueError, match=r"more than these options need"):
            operator(**inputs, **{**arguments, name: [*tensors, tensors[0]]})
        last = max((i for i, x in enumerate(tensors) if x is not None and x.is_floating_point()), default=None)
        if last is None:
            continue
        with pytest.raises(TypeError, match=rf"{case.form}: [\w.]+ must be Double like [\w.]+, got Float"):
            operator(**inputs, **{**arguments, name: [x.float() if i == last else x for i, x in enumerate(tensors)]})


def test_a_weight_that_is_missing_among_listed_ones_is_named() -> None:
    layer = foveate.nn.InterlacedSparseModule(in_channels=8, key_channels=4, value_channels=8, out_channels=8, factors=[2, 2])
    arguments = layer._arguments()
    missing = layer.get_parameter("stages.0.short_range.value.weight")
    holed = [None if x is missing else x for x in arguments["parameters"]]
    expected = r"interlaced_sparse_module: stages\.0\.short_range\.value\.weight is missing: expected a tensor \(.+\), got None"
    with pytest.raises(ValueError, match=expected):
        torch.ops.foveate.interlaced_sparse_module.default(torch.randn(1, 8, 4, 4), **{**arguments, "parameters": holed})
