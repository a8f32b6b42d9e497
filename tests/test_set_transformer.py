"""What is peculiar to sets: the order of elements does not matter, a growing set is pooled step by step, an empty one is harmless."""

from typing import Any

import pytest
import torch

import foveate

BLOCK: dict[str, Any] = {"dim": 8, "num_heads": 2, "dtype": torch.float64}


@pytest.mark.parametrize(
    "layer",
    [
        lambda: foveate.nn.SAB(in_dim=3, **BLOCK),
        lambda: foveate.nn.ISAB(in_dim=3, num_inducing=4, **BLOCK),
        lambda: foveate.nn.LatentISAB(dim=3, num_heads=2, head_dim=4, num_latents=4, inverted_attention=True, dtype=torch.float64),
    ],
)
def test_elements_in_another_order_give_results_in_that_order(layer: Any) -> None:
    block, x, order = layer(), torch.randn(2, 9, 3, dtype=torch.float64), torch.randperm(9)
    out, other = block(x), block(x[:, order])
    out, other = (o if isinstance(o, torch.Tensor) else o.out for o in (out, other))
    torch.testing.assert_close(other, out[:, order], rtol=1e-11, atol=1e-12)


def test_a_model_of_sets_does_not_see_their_order() -> None:
    model = foveate.nn.SetTransformer(in_dim=3, out_dim=2, num_inducing=4, num_seeds=2, **BLOCK)
    x = torch.randn(2, 9, 3, dtype=torch.float64)
    torch.testing.assert_close(model(x[:, torch.randperm(9)]), model(x), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_growing_set_is_pooled_step_by_step(dtype: torch.dtype) -> None:
    pma = foveate.nn.PMA(num_seeds=3, layer_norm=True, **BLOCK).to(dtype)
    x, there = torch.randn(2, 11, 8, dtype=dtype), torch.rand(2, 11) < 0.6
    there[0, :4] = False  # the first steps of one set bring nothing
    state = None
    for start, end in [(0, 1), (1, 4), (4, 9), (9, 11)]:
        out, state = pma.step(x[:, start:end], key_mask=there[:, start:end], state=state)
    tolerance = {"rtol": 1e-10, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(out, pma(x, key_mask=there), **tolerance)


def test_an_empty_set_leaves_the_seeds_as_they_are() -> None:
    pma = foveate.nn.PMA(num_seeds=2, **BLOCK)
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    out = pma(x, key_mask=torch.zeros(2, 5, dtype=torch.bool))
    q = torch.nn.functional.linear(pma.seeds, pma.mab.query.weight, pma.mab.query.bias)
    want = q + torch.nn.functional.linear(q, pma.mab.out.weight, pma.mab.out.bias).relu()
    torch.testing.assert_close(out, want.expand_as(out))
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert (gradient == 0).all()


@pytest.mark.parametrize("self_attend", [False, True])
def test_inverted_attention_is_what_its_definition_says(self_attend: bool) -> None:
    options: dict[str, Any] = {"dim": 6, "num_heads": 2, "head_dim": 4, "num_latents": 3, "latent_self_attend": self_attend}
    isab = foveate.nn.LatentISAB(inverted_attention=True, dtype=torch.float64, **options)
    x, there = torch.randn(2, 7, 6, dtype=torch.float64), torch.rand(2, 7) < 0.7
    latents = isab.latents.expand(2, -1, -1)
    keys = torch.cat([latents, x], 1) if self_attend else x
    seen = torch.cat([torch.ones(2, 3, dtype=torch.bool), there], 1) if self_attend else there
    q, k, v = (
        torch.nn.functional.linear(a, getattr(isab.attn1, n).weight).unflatten(-1, (2, 4)).transpose(1, 2)
        for a, n in ((latents, "query"), (keys, "key"), (keys, "value"))
    )
    shares = (q @ k.mT / 2).softmax(-2) * seen[:, None, None].to(q.dtype)
    means = shares / shares.sum(-1, keepdim=True).clamp_min(1e-8)
    want = torch.nn.functional.linear((means @ v).transpose(1, 2).flatten(2), isab.attn1.out.weight)
    torch.testing.assert_close(isab(x, key_mask=there).latents, want, rtol=1e-10, atol=1e-11)
