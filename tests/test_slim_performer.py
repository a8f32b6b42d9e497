"""What is peculiar to SLiM Performer: gradients chunk by chunk equal those of the whole, by kept states and by subtraction."""

from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate.training import backward_in_chunks, recover_by_subtraction


def gradients(module: torch.nn.Module) -> list[Tensor]:
    found = [p.grad for p in module.parameters()]
    module.zero_grad()
    assert all(g is not None for g in found)
    return [g for g in found if g is not None]


@pytest.mark.parametrize("size", [1, 4, 7, 20])
@pytest.mark.parametrize("subtract", [False, True])
def test_gradients_by_chunks_equal_those_of_the_whole(size: int, subtract: bool) -> None:
    torch.manual_seed(0)
    stack = torch.nn.ModuleList(foveate.nn.SlimPerformerLayer(hidden_dim=8, n_heads=2, ffn_dim=6, feature_type=f) for f in ("sqr", "elu+1")).double()
    x, target = torch.randn(2, 2, 17, 8, dtype=torch.float64)

    def layer(i: int) -> Any:
        def step(x: Tensor, state: Any) -> Any:
            out, after = stack[i].step(x, state=state)
            return out, after

        return step

    layers = [layer(0), layer(1)]

    def step(chunk: tuple[Tensor, Tensor], state: Any) -> Any:
        out, after = chunk[0], []
        for i, one in enumerate(layers):
            out, sums = one(out, None if state is None else state[2 * i : 2 * i + 2])
            after += sums
        return (out - chunk[1]).square().sum(), after

    loss = (stack[1](stack[0](x)) - target).square().sum()
    loss.backward()
    want = gradients(stack)
    chunks = list(zip(x.split(size, 1), target.split(size, 1), strict=True))
    got = backward_in_chunks(step, chunks, recover=recover_by_subtraction(layers, lambda chunk: chunk[0]) if subtract else None)
    torch.testing.assert_close(got, loss.detach())
    torch.testing.assert_close(gradients(stack), want, rtol=1e-9, atol=1e-10)


def test_the_language_model_trains_by_chunks() -> None:
    torch.manual_seed(0)
    model = foveate.nn.SlimPerformer(vocab_size=7, hidden_dim=8, n_layers=2, ffn_dim=12, n_heads=2, feature_type="favor+").double()
    rfs = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    tokens = torch.randint(7, (2, 14))

    def cost(logits: Tensor, following: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="sum")

    def step(chunk: Any, state: Any) -> Any:
        logits, after = model.step(chunk[0], rfs=rfs, state=state)
        return cost(logits, chunk[1]), after

    cost(model(tokens[:, :-1], rfs=rfs), tokens[:, 1:]).backward()
    want = gradients(model)
    backward_in_chunks(step, list(zip(tokens[:, :-1].split(4, 1), tokens[:, 1:].split(4, 1), strict=True)))
    torch.testing.assert_close(gradients(model), want, rtol=1e-9, atol=1e-10)


def test_no_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match="chunks must hold one chunk or more"):
        backward_in_chunks(lambda chunk, state: (torch.zeros(()), []), [])


def test_a_draw_must_be_given_to_stream() -> None:
    layer = foveate.nn.SlimPerformerLayer(hidden_dim=8, n_heads=2, ffn_dim=6, feature_type="favor+")
    assert layer(torch.randn(1, 3, 8)).isfinite().all()
    with pytest.raises(ValueError, match="rfs must be given"):
        layer.step(torch.randn(1, 3, 8))
