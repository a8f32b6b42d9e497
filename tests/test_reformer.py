"""Reformer: what is peculiar to it: the reversible stack, its draws, chunks that need not divide the length, agreement with transformers and
reformer-pytorch."""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate._checkpoints import renamed, sources
from tests.contract import kept_for_the_gradient

STACK: dict[str, Any] = {"embed_dim": 8, "num_heads": 2, "head_dim": 4, "inner_dim": 16, "chunk_length": 4, "num_hashes": 2, "dtype": torch.float64}


def stack(**options: Any) -> Any:
    """With weights large enough for attention to be sharp."""
    torch.manual_seed(0)
    layer = foveate.nn.Reformer(**{**STACK, **options})
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(std=0.4)
    return layer


def test_what_training_keeps_does_not_grow_with_depth() -> None:
    def kept(layers: list[str]) -> int:
        return kept_for_the_gradient(stack(layers=layers), torch.randn(2, 32, 8, dtype=torch.float64), seed=torch.tensor(3))

    shallow = kept(["local", "lsh"])
    assert shallow > 0
    assert kept(["local", "lsh"] * 4) == shallow


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_layers_that_run_anew_draw_the_same(dropout: float) -> None:
    """Hashes and dropout: else the gradient were not that of the result, which finite differences tell."""
    rates = {"dropout": dropout, "lsh_dropout": dropout, "local_dropout": dropout}
    layer = stack(layers=["local", "lsh", "lsh"], causal=True, ff_chunk=5, **rates)
    x = torch.randn(2, 22, 8, dtype=torch.float64)
    draws = {"seed": torch.tensor(5), "mask": torch.arange(22) < torch.tensor([[22], [17]])}
    found = torch.autograd.grad(layer(x, **draws).sin().sum(), list(layer.parameters()))
    directions = {n: torch.randn_like(p) for n, p in layer.named_parameters()}
    slope = sum((g * directions[n]).sum() for n, g in zip(directions, found, strict=True))

    def along(step: float) -> Tensor:
        moved = {n: p.detach() + step * directions[n] for n, p in layer.named_parameters()}
        out: Tensor = torch.func.functional_call(layer, moved, (x,), draws)
        return out.sin().sum()

    torch.testing.assert_close((along(1e-6) - along(-1e-6)) / 2e-6, slope, rtol=1e-5, atol=1e-5)


def test_a_seed_repeats_everything_and_training_draws_anew() -> None:
    layer = stack(layers=["lsh"], dropout=0.2)
    x = torch.randn(1, 24, 8, dtype=torch.float64)
    assert torch.equal(layer(x, seed=torch.tensor(1)), layer(x, seed=torch.tensor(1)))
    assert not torch.equal(layer(x, seed=torch.tensor(1)), layer(x, seed=torch.tensor(2)))
    layer.train()
    torch.manual_seed(0)
    once = layer(x)
    assert not torch.equal(once, layer(x))
    torch.manual_seed(0)
    assert torch.equal(once, layer(x))


def test_the_network_gives_the_same_a_few_tokens_at_a_time() -> None:
    x = torch.randn(2, 22, 8, dtype=torch.float64)
    whole = stack(layers=["local", "local"])(x)
    torch.testing.assert_close(stack(layers=["local", "local"], ff_chunk=7)(x), whole, rtol=1e-12, atol=1e-12)


def test_many_rounds_of_few_buckets_meet_everybody() -> None:
    """With one chunk for all, LSH attention is attention among queries as keys."""
    qk, v = torch.randn(2, 1, 2, 20, 6, dtype=torch.float64)
    hashed = foveate.lsh_attention(qk, v, bucket_size=20, n_buckets=[2], n_hashes=3).out
    full = foveate.lsh_attention(qk, v, full_attn_thres=21).out
    torch.testing.assert_close(hashed, full, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("length", [1, 5, 30, 33])
def test_a_length_that_chunks_do_not_divide_is_as_if_padded(length: int) -> None:
    torch.manual_seed(length)
    qk, v = torch.randn(2, 1, 2, length, 6, dtype=torch.float64)
    padded = torch.nn.functional.pad(torch.stack([qk, v]), (0, 0, 0, -length % 8))
    mask = torch.arange(padded.shape[3]).unsqueeze(0) < length
    how: dict[str, Any] = {"rotations": torch.randn(2, 6, 2, 2, dtype=torch.float64), "variant": "rmsnorm", "bucket_size": 8, "n_buckets": [4],
                           "n_hashes": 2, "causal": True}  # fmt: skip
    want = foveate.lsh_attention(*padded, mask=mask, **how).out[:, :, :length]
    torch.testing.assert_close(foveate.lsh_attention(qk, v, **how).out, want, rtol=1e-11, atol=1e-11)


def recorded_draws(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What torch.randn gives from now on, in float64."""
    drawn: list[Tensor] = []
    randn = torch.randn

    def recorded(*args: Any, **kwargs: Any) -> Tensor:
        made: Tensor = randn(*args, **kwargs | {"dtype": torch.float64})
        drawn.append(made.detach())
        return made

    monkeypatch.setattr(torch, "randn", recorded)
    return drawn


def assert_same_gradients(theirs: torch.nn.Module, ours: Any, source: str) -> None:
    expected, _ = renamed(sources(ours.form)[source], {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None})
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-8, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


def test_agrees_with_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """ReformerModel with the same weights and rotations: outputs and gradients."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.reformer import modeling_reformer

    config = transformers.ReformerConfig(
        attn_layers=["local", "lsh", "lsh"], hidden_size=8, num_attention_heads=2, attention_head_size=4, feed_forward_size=16,
        local_attn_chunk_length=6, lsh_attn_chunk_length=4, num_buckets=[2, 4], num_hashes=2, is_decoder=True, axial_pos_shape=[4, 6],
        axial_pos_embds_dim=[3, 5], max_position_embeddings=24, chunk_size_feed_forward=6, vocab_size=5, hidden_dropout_prob=0.0,
        lsh_attention_probs_dropout_prob=0.0, local_attention_probs_dropout_prob=0.0, use_cache=False, hash_seed=None, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = modeling_reformer.ReformerModel(config).double().train()
    ours = foveate.nn.Reformer(
        **{**STACK, "chunk_length": 4, "local_chunk_length": 6, "layers": ["local", "lsh", "lsh"], "num_buckets": [2, 4], "causal": True,
           "axial_shape": [4, 6], "axial_dims": [3, 5], "ff_chunk": 6}
    )  # fmt: skip
    state, unknown = renamed(sources(foveate._catalog.forms()["reformer"])["transformers"], model.state_dict())
    ours.load_state_dict(state)
    assert set(unknown) <= {"embeddings.word_embeddings.weight"}
    x = torch.randn(2, 24, 8, dtype=torch.float64)
    drawn = recorded_draws(monkeypatch)
    theirs = model(inputs_embeds=x)[0]
    assert len(drawn) == 2
    got = ours(x, rotations=torch.stack(drawn))
    torch.testing.assert_close(got, theirs, rtol=1e-9, atol=1e-9)
    cotangent = torch.ones_like(got).cumsum(1).sin()
    theirs.backward(cotangent)
    got.backward(cotangent)
    assert_same_gradients(model, ours, "transformers")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True, "allow_duplicate_attention": False, "rotations_per_head": True},
        {"attend_across_buckets": False, "allow_duplicate_attention": False, "num_mem_kv": 8},
        {"causal": True, "n_local_heads": 2, "num_mem_kv": 16, "one_value_head": True},
        {"n_local_heads": 1, "causal": True},
        {"rehash_each_round": False, "n_local_heads": 1},
        {"full_attn_thres": 64, "causal": True},
        {"rotary": True, "num_mem_kv": 8, "causal": True, "n_local_heads": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("masked", [False, True])
def test_agrees_with_reformer_pytorch(options: dict[str, Any], masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layer with the same weights and rotations: outputs at real tokens and all gradients."""
    package = pytest.importorskip("reformer_pytorch")
    inside = importlib.import_module("reformer_pytorch.reformer_pytorch")
    count = inside.chunked_sum  # pairs that meet; as integers their logarithm would be taken in float32
    monkeypatch.setattr(inside, "chunked_sum", lambda *args, **kwargs: count(*args, **kwargs).double())
    called = {"n_local_heads": "n_local_attn_heads", "rotations_per_head": "random_rotations_per_head"}
    sizes: dict[str, Any] = {"bucket_size": 4, "n_hashes": 3}
    torch.manual_seed(0)
    theirs = package.LSHSelfAttention(8, heads=4, **sizes, **{called.get(n, n): x for n, x in options.items() if n != "rotary"}).double()
    ours = foveate.nn.LSHSelfAttention(embed_dim=8, num_heads=4, **sizes, **options, dtype=torch.float64)
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(std=0.6)
    assert foveate.nn.load_published(ours, theirs.state_dict()) == "lucidrains/reformer-pytorch"
    drawn = recorded_draws(monkeypatch)
    real = torch.arange(32) < torch.tensor([[32], [21]]) if masked else torch.ones(2, 32, dtype=torch.bool)
    one = torch.randn(2, 32, 8, dtype=torch.float64, requires_grad=True)
    other = one.detach().clone().requires_grad_()
    drawn.clear()
    angle = torch.arange(32.0, dtype=torch.float64)[:, None] * torch.tensor([1.0])  # channels are two
    turns = {"pos_emb": torch.cat([angle.sin(), angle.cos()], -1)[None]} if options.get("rotary") else {}
    want = theirs(other, input_mask=real if masked else None, **turns)
    got = ours(one, rotations=drawn[0] if drawn else None, mask=real if masked else None)
    torch.testing.assert_close(got[real], want[real], rtol=1e-10, atol=1e-10)
    cotangent = torch.randn(got.shape, dtype=got.dtype) * real[..., None]
    got.backward(cotangent)
    want.backward(cotangent)
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-10)
    assert_same_gradients(theirs, ours, "lucidrains/reformer-pytorch")
