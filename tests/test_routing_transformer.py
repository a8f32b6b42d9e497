"""Routing Transformer: agreement with the PyPI package, whose centroids move when they are told to, ours in each training call."""

from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate._checkpoints import renamed, sources

SOURCE = "lucidrains/routing-transformer"
CALLED = {"num_heads": "heads", "local_window_size": "local_attn_window_size", "local_radius": "local_attn_radius_blocks",
          "commitment": "commitment_factor", "ema_decay": "kmeans_ema_decay", "rotary_local": "rel_pos_emb"}  # fmt: skip


def frequencies(width: int) -> Tensor:
    """Theirs are rounded to float32."""
    return 10000.0 ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)


def turns(length: int, width: int) -> Tensor:
    """Their positions of routed heads: [1,N,D]"""
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequencies(width)
    return torch.cat([angle.sin(), angle.cos()], -1)[None]


def exact(theirs: Any) -> Any:
    """In float64 with weights large enough for attention to be sharp, and centroids that count as begun."""
    theirs.double()
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(std=0.6)
        for module in theirs.modules():
            if hasattr(module, "initted"):
                module.initted.fill_(True)
                module.means.copy_(torch.nn.functional.normalize(torch.randn_like(module.means), dim=-1))
            if hasattr(module, "inv_freq"):
                module.inv_freq = frequencies(2 * len(module.inv_freq))
    return theirs


def assert_same_gradients(theirs: torch.nn.Module, ours: Any) -> None:
    wanted, _ = renamed(sources(ours.form)[SOURCE], {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None})
    for name, p in ours.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, wanted[name], rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    assert {n for n, p in ours.named_parameters() if p.grad is not None} >= {n for n, g in wanted.items() if g.any()}


def centroids(theirs: torch.nn.Module) -> list[Tensor]:
    """After the move that their optimiser step makes."""
    found = []
    for module in theirs.modules():
        if hasattr(module, "initted"):
            module.update()
            found.append(module.means)
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True, "local_heads": 2},
        {"causal": True, "shared_qk": False, "num_mem_kv": 2, "local_heads": 1, "local_radius": 2},
        {"shared_qk": True, "num_mem_kv": 2},
        {"context": 9},
    ],
    ids=str,
)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_layer_agrees_with_the_package(options: dict[str, Any], masked: bool, training: bool) -> None:
    """Outputs at real tokens, loss, all gradients, and where the centroids go."""
    inside = pytest.importorskip("routing_transformer.routing_transformer")
    options = dict(options)
    M = options.pop("context", 0)
    shared: dict[str, Any] = {"num_heads": 4, "window_size": 4, "local_window_size": 4, "commitment": 0.1, "ema_decay": 0.7, **options}
    torch.manual_seed(0)
    given = {CALLED.get(n, n): x for n, x in shared.items() if n != "local_heads"}
    theirs = exact(
        inside.SelfAttention(8, 1, 12, local_attn_heads=options.get("local_heads", 0), receives_context=M > 0,
                             **{"shared_qk": options.get("causal", False), **given})
    ).train(training)  # fmt: skip
    ours = foveate.nn.RoutingSelfAttention(embed_dim=8, num_clusters=3, rotary_global=M == 0, **shared, dtype=torch.float64).train(training)
    assert foveate.nn.load_published(ours, theirs.state_dict()) == SOURCE
    real = torch.arange(12) < torch.tensor([[12], [7]]) if masked else torch.ones(2, 12, dtype=torch.bool)
    masks = {"mask": real} if masked else {}
    context = {"context": torch.randn(2, M, 8, dtype=torch.float64)} if M else {}
    if M and masked:
        context["context_mask"] = torch.arange(M) < torch.tensor([[M], [5]])
    one = torch.randn(2, 12, 8, dtype=torch.float64, requires_grad=True)
    other = one.detach().clone().requires_grad_()
    want, want_loss = theirs(other, input_mask=masks.get("mask"), pos_emb=turns(12, 2), **context)
    got, loss = ours(one, **masks, **context)
    torch.testing.assert_close(got[real], want[real], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(loss, want_loss, rtol=1e-10, atol=1e-12)
    weights = torch.randn(got.shape, dtype=got.dtype) * real[..., None]
    ((got * weights).sum() + loss).backward()
    ((want * weights).sum() + want_loss).backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-10)
    assert_same_gradients(theirs, ours)
    if training:
        torch.testing.assert_close([ours.means], centroids(theirs), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [{"causal": True, "local_heads": [1, 0]}, {"tie_embedding": True, "num_mem_kv": 1}], ids=str)
def test_the_model_agrees_with_the_package(options: dict[str, Any]) -> None:
    package = pytest.importorskip("routing_transformer")
    shared: dict[str, Any] = {"num_heads": 2, "window_size": 4, "local_window_size": 4, "ema_decay": 0.7, **options}
    torch.manual_seed(0)
    given = {CALLED.get(n, n): x for n, x in shared.items() if n != "local_heads"}
    theirs = exact(
        package.RoutingTransformerLM(11, 8, 2, 12, dim_head=4, n_local_attn_heads=tuple(options.get("local_heads", [0, 0])),
                                     _register_kmeans_update=False, **given)
    ).train()  # fmt: skip
    theirs.sinu_pos_emb.emb = turns(12, 4)[0]
    ours = foveate.nn.RoutingTransformer(vocab_size=11, embed_dim=8, depth=2, num_clusters=3, **shared, dtype=torch.float64).train()
    assert foveate.nn.load_published(ours, theirs.state_dict()) == SOURCE
    ids = torch.randint(11, (2, 12))
    want, want_loss = theirs(ids)
    got, loss = ours(ids)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(loss, want_loss.squeeze(), rtol=1e-10, atol=1e-12)
    weights = torch.randn_like(got)
    ((got * weights).sum() + loss).backward()
    ((want * weights).sum() + want_loss).backward()
    assert_same_gradients(theirs, ours)
    torch.testing.assert_close([layer.attention.means for layer in ours.layers.children()], centroids(theirs), rtol=1e-10, atol=1e-12)
