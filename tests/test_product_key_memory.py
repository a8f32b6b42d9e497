"""Product-key memory: what is peculiar to it: sparse training, statistics of usage, masked batch statistics, the package of the same name."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate import nn

SMALL = {"input_dim": 6, "heads": 2, "n_keys": 7, "key_dim": 4, "topk": 3}


def sequence(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def test_sparse_adam_moves_only_the_rows_that_were_read() -> None:
    memory = nn.ProductKeyMemory(**SMALL, sparse=True)
    before = memory.values.detach().clone()
    out, indices, _ = memory(sequence(2, 3, 6))
    out.square().sum().backward()
    gradient = memory.values.grad.coalesce()
    assert gradient.indices().numel() == indices.unique().numel()
    torch.optim.SparseAdam([memory.values], lr=0.1).step()
    moved = (memory.values.detach() != before).any(1).nonzero().flatten()
    assert torch.equal(moved, indices.unique())


def test_sparse_gradients_are_those_of_a_dense_table() -> None:
    dense, sparse = nn.ProductKeyMemory(**SMALL).double().eval(), nn.ProductKeyMemory(**SMALL, sparse=True).double().eval()
    sparse.load_state_dict(dense.state_dict())
    for memory in (dense, sparse):
        memory(sequence(2, 9, 6).double()).out.square().sum().backward()
    torch.testing.assert_close(sparse.values.grad.to_dense(), dense.values.grad)
    torch.testing.assert_close(sparse.keys.grad, dense.keys.grad)


def test_training_with_sparse_adam_remembers() -> None:
    torch.manual_seed(0)
    memory = nn.ProductKeyMemory(input_dim=8, output_dim=3, heads=2, n_keys=8, key_dim=8, topk=4, sparse=True)
    x, y = sequence(1, 64, 8), sequence(1, 64, 3, seed=1)
    optimisers = [
        torch.optim.SparseAdam([memory.values], lr=3e-2),
        torch.optim.Adam([p for n, p in memory.named_parameters() if n != "values"], lr=1e-2),
    ]
    losses = []
    for _ in range(120):
        loss = (memory(x).out - y).square().mean()
        losses.append(loss.item())
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
    assert losses[-1] < 0.3 * losses[0]


def test_several_memories_share_one_table() -> None:
    first, second = nn.ProductKeyMemory(**SMALL), nn.ProductKeyMemory(**SMALL)
    second.values = first.values
    x = sequence(1, 4, 6)
    _, indices, _ = first(x)
    (first(x).out + second(x).out).sum().backward()
    read = (first.values.grad != 0).any(1)
    assert second.values is first.values and read[indices.flatten()].all() and read.sum() > indices.unique().numel()


def test_usage_of_slots() -> None:
    even = foveate.product_key_usage(torch.arange(40).repeat(3), slots=40)
    assert even.used == 1 and even.kl == pytest.approx(0, abs=1e-12) and even.gini == pytest.approx(0, abs=1e-12)
    assert even.holding == {50: 20, 90: 36, 99: 40}
    one = foveate.product_key_usage(torch.full((2, 3), 4), slots=40)
    assert one.used == 1 / 40 and one.kl == pytest.approx(math.log(40)) and one.gini == pytest.approx(1 - 1 / 40)
    assert one.holding == {50: 1, 90: 1, 99: 1}
    weighted = foveate.product_key_usage(torch.tensor([0, 1, 1]), torch.tensor([0.75, 0.125, 0.125]), slots=2)
    assert weighted.kl == pytest.approx(math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert foveate.product_key_usage(torch.zeros(0, dtype=torch.int64), slots=3).used == 0
    with pytest.raises(ValueError, match="weights must be of the shape of indices"):
        foveate.product_key_usage(torch.zeros(3, dtype=torch.int64), torch.ones(2), slots=3)


@pytest.mark.parametrize("hidden", [[], [5]])
def test_hidden_tokens_take_no_part_in_batch_statistics(hidden: list[int]) -> None:
    masked = nn.ProductKeyMemory(**SMALL, query_hidden=hidden).double()
    alone = nn.ProductKeyMemory(**SMALL, query_hidden=hidden).double()
    alone.load_state_dict(masked.state_dict())
    x = sequence(1, 12, 6).double()
    padded = torch.cat([x, 100 * torch.ones(1, 5, 6)], 1)
    mask = torch.arange(17)[None] < 12
    got, want = masked(padded, query_mask=mask).out, alone(x).out
    torch.testing.assert_close(got[:, :12], want)
    assert (got[:, 12:] == 0).all()
    for name, statistic in alone.state_dict().items():
        torch.testing.assert_close(masked.state_dict()[name], statistic)


def test_only_what_was_chosen_has_a_gradient() -> None:
    memory = nn.ProductKeyMemory(**SMALL, query_batchnorm=False)
    out, indices, _ = memory(sequence(1, 2, 6))
    out.sum().backward()
    read = indices[0]  # [N,H,k]
    for head in range(2):
        for half, keys in enumerate((read[:, head] // 7, read[:, head] % 7)):
            gradient = memory.keys.grad[head, half]
            others = torch.ones(7, dtype=torch.bool)
            others[keys.flatten()] = False
            assert (gradient[others] == 0).all() and (gradient[~others] != 0).any()


def test_frozen_parts_get_no_gradient_and_pass_it_on() -> None:
    memory = nn.ProductKeyMemory(**SMALL, keys_learn=False, query_net_learn=False)
    x = sequence(1, 4, 6).requires_grad_()
    memory(x).out.sum().backward()
    assert {n for n, p in memory.named_parameters() if p.grad is not None and (p.grad != 0).any()} == {"values"}
    assert (x.grad != 0).any()


def test_orders_of_slots_are_drawn_anew_on_request() -> None:
    memory = nn.ProductKeyMemory(**SMALL, shuffle_indices=True)
    before, keys = memory.drawn.permutations.clone(), memory.keys.detach().clone()
    assert torch.equal(before.sort(-1).values, torch.arange(49).expand(2, -1))
    memory.redraw()
    assert not torch.equal(memory.drawn.permutations, before) and torch.equal(memory.keys, keys)


@pytest.mark.parametrize(("options", "message"), [
    ({"key_dim": 5}, "key_dim must be even"), ({"topk": 8}, "topk must not be more than n_keys"), ({"query_identity": True}, "needs input_dim equal"),
    ({"score_normalize": True}, "score_normalize changes nothing"), ({"temperature": 0.0}, "temperature must be positive"),
])  # fmt: skip
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nn.ProductKeyMemory(**{**SMALL, **options})


PKM = {"dim": 6, "heads": 2, "num_keys": 8, "topk": 4, "dim_head": 5}


def test_heads_side_by_side_train_keys_and_queries() -> None:
    memory = nn.PKM(**PKM, concat_values_and_combine=True)
    memory(sequence(1, 3, 6)).out.square().sum().backward()
    assert all((p.grad != 0).any() for p in memory.parameters())


def test_slots_that_are_not_trained_give_their_value_without_gradient() -> None:
    memory, x = nn.PKM(**PKM), sequence(1, 5, 6)
    trained = torch.arange(64) % 2 == 0
    out = memory(x, trainable_slots=trained).out
    torch.testing.assert_close(out, memory(x).out)
    out.sum().backward()
    assert (memory.values.grad[~trained] == 0).all() and (memory.values.grad[trained] != 0).any()


def test_a_soft_choice_reaches_keys_that_were_not_chosen() -> None:
    x = sequence(1, 1, 6)
    for soft in (False, True):
        memory = nn.PKM(**PKM, differentiable_topk=soft)
        memory.keys.data.mul_(0.02)  # scores so close to each other that the choice is soft
        memory(x).out.square().sum().backward()
        touched = (memory.keys.grad != 0).any(-1).sum().item()
        assert touched > 2 * 2 * 4 if soft else touched <= 2 * 2 * 4


@pytest.mark.parametrize("options", [
    {}, {"norm_output": True, "pre_layernorm": True}, {"non_competitive_gates": True}, {"differentiable_topk": True},
], ids=str)  # fmt: skip
def test_the_package_gives_the_same(options: dict[str, Any]) -> None:
    package = pytest.importorskip("product_key_memory")
    torch.manual_seed(0)
    theirs = package.PKM(**PKM, **options).double().eval()
    ours = nn.PKM(**PKM, **options).double().eval()
    assert nn.load_published(ours, theirs.state_dict()) == "product-key-memory"
    x = sequence(2, 9, 6).double()
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    got, want = ours(one).out, theirs(other)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    got.square().sum().backward()
    want.square().sum().backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(ours.keys.grad, theirs.keys.grad, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(ours.values.grad, theirs.values.weight.grad, rtol=1e-9, atol=1e-10)


def test_weights_of_the_package_s_other_options_find_their_place() -> None:
    package = pytest.importorskip("product_key_memory")
    options = {"concat_values_and_combine": True, "use_layernorm": False}
    assert nn.load_published(nn.PKM(**PKM, **options), package.PKM(**PKM, **options).state_dict()) == "product-key-memory"
