"""What is peculiar to sparse Sinkhorn attention: sorting matrices, lengths, SortCut, early tokens, agreement with the
PyPI package."""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate._checkpoints import renamed, sources

SOURCE = "lucidrains/sinkhorn-transformer"


def _attention(**options) -> foveate.nn.SinkhornAttention:
    return foveate.nn.SinkhornAttention(num_heads=2, head_dim=4, bucket_size=4, **options)


def test_mixtures_approach_doubly_stochastic_ones() -> None:
    q, k, v = torch.randn(3, 1, 2, 24, 4, dtype=torch.float64)
    S = _attention(non_permutative=False, sinkhorn_iter=200)(q, k, v).sort_matrix
    torch.testing.assert_close(S.sum(-1), torch.ones_like(S.sum(-1)), rtol=0, atol=2e-2)
    torch.testing.assert_close(S.sum(-2), torch.ones_like(S.sum(-2)), rtol=0, atol=2e-2)


def test_awkward_lengths_are_those_of_a_padded_sequence() -> None:
    q, k, v = torch.randn(3, 2, 2, 14, 4, dtype=torch.float64)
    longer = [torch.nn.functional.pad(x, (0, 0, 0, 2)) for x in (q, k, v)]
    there = (torch.arange(16) < 14).expand(2, 16)
    for options in ({"n_top_buckets": 2}, {"n_sortcut": 2}):
        layer = _attention(**options)
        torch.testing.assert_close(layer(q, k, v).out, layer(*longer, key_mask=there).out[:, :, :14])


def test_all_buckets_of_a_cut_weigh_by_their_probability() -> None:
    q, k, v = torch.randn(3, 1, 2, 12, 4, dtype=torch.float64)
    out, S = _attention(n_sortcut=9)(q, k, v)
    assert S.shape == (1, 2, 3, 3)  # no more rows than buckets
    buckets = [torch.einsum("bhrc,bhcnd->bhrnd", S, x.unflatten(2, (3, 4))).flatten(2, 3) for x in (k, v)]
    for u in range(3):
        own = slice(4 * u, 4 * u + 4)
        keys, values = (torch.cat([far, x[:, :, own]], 2) for far, x in zip(buckets, (k, v), strict=True))
        torch.testing.assert_close(out[:, :, own], foveate.attention(q[:, :, own], keys, values))


def test_tokens_before_the_first_late_bucket_see_only_each_other() -> None:
    layer = foveate.nn.SinkhornCausalAttention(num_heads=2, head_dim=4, bucket_size=4).double()
    q, k, v = torch.randn(3, 1, 2, 12, 4, dtype=torch.float64)
    out = layer(q, k, v).out
    want = foveate.attention(q[:, 1:, :3], k[:, 1:, :3], v[:, 1:, :3], causal=True)
    torch.testing.assert_close(out[:, 1:, :3], want)


def test_a_key_that_takes_no_part_is_not_mixed_in_if_causal() -> None:
    layer = foveate.nn.SinkhornCausalAttention(num_heads=2, head_dim=4, bucket_size=4, n_top_buckets=3).double()
    q, k, v = torch.randn(3, 1, 2, 16, 4, dtype=torch.float64)
    there = torch.rand(1, 16) < 0.6
    other = v.masked_fill(~there[:, None, :, None], 1e3)
    torch.testing.assert_close(layer(q, k, v, key_mask=there).out, layer(q, k, other, key_mask=there).out)


def test_streaming_gives_the_sorting_of_buckets_in_which_tokens_ask() -> None:
    layer = foveate.nn.SinkhornCausalAttention(num_heads=2, head_dim=4, bucket_size=4).double()
    q, k, v = torch.randn(3, 1, 2, 16, 4, dtype=torch.float64)
    whole = layer(q, k, v).sort_matrix  # [1,2,4*2,5]
    *_, state = layer.step(q[:, :, :8], k[:, :, :8], v[:, :, :8], state=None)
    _, later, _ = layer.step(q[:, :, 8:], k[:, :, 8:], v[:, :, 8:], state=state)
    torch.testing.assert_close(later[:, :, -4:], whole[:, :, -4:])


CAUSAL: dict[str, Any] = {"causal": True, "n_top_buckets": 2}
MIXED: dict[str, Any] = {"non_permutative": False, "values_from_keys": True}
NAMES = {"num_heads": "heads", "head_dim": "dim_head", "attention_dropout": "attn_dropout"}


def named_as_theirs(options: dict[str, Any]) -> dict[str, Any]:
    """Options of the package; it knows no `values_from_keys`, since there is no choice."""
    theirs = {NAMES.get(n, n): x for n, x in options.items() if n not in ("sort_net", "values_from_keys", "max_buckets")}
    return theirs | {"use_simple_sort_net": options.get("sort_net") == "simple"}


def drawn_noise(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The package's draws from now on."""
    inside = importlib.import_module("sinkhorn_transformer.sinkhorn_transformer")
    sample, drawn = inside.sample_gumbel, []

    def recorded(*args: Any, **kwargs: Any) -> Tensor:
        drawn.append(sample(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(inside, "sample_gumbel", recorded)
    return drawn


@pytest.mark.parametrize(
    "options",
    [
        {"values_from_keys": True},
        {"values_from_keys": True, "n_top_buckets": 2, "n_local_attn_heads": 2, "head_dim": 3},
        {"values_from_keys": True, "sort_net": "simple"},  # with more buckets the package has no gradient
        MIXED,
        {**MIXED, "sort_net": "simple", "sinkhorn_iter": 7, "n_local_attn_heads": 1},
        {"n_sortcut": 2},
        {"context_only": True, "n_sortcut": 2, "kv_bucket_size": 3},
        CAUSAL,
        {**CAUSAL, "n_local_attn_heads": 2},
        {**CAUSAL, "sort_net": "simple", "temperature": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("masked", [False, True])
def test_the_layer_agrees_with_the_package(options: dict[str, Any], masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same weights and noise: outputs at real tokens and all gradients. Its sorted values are sorted keys, see `values_from_keys`."""
    package = pytest.importorskip("sinkhorn_transformer")
    torch.manual_seed(0)
    theirs = package.SinkhornSelfAttention(8, bucket_size=4, max_seq_len=16, **named_as_theirs({"num_heads": 4, **options})).double()
    ours = foveate.nn.SinkhornSelfAttention(embed_dim=8, num_heads=4, bucket_size=4, max_buckets=4, **options, dtype=torch.float64)
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(std=0.6)
    assert foveate.nn.load_published(ours, theirs.state_dict()) == SOURCE
    drawn = drawn_noise(monkeypatch)
    monkeypatch.setattr(torch.Tensor, "topk", lambda x, k, dim: x.max(dim, keepdim=True))  # of equal scores, a ReLU's zeros, the first
    real = torch.arange(16) < torch.tensor([[16], [11]])
    x, cross = torch.randn(2, 16, 8, dtype=torch.float64), torch.randn(2, 9, 8, dtype=torch.float64)
    context = {"context": cross} if options.get("context_only") else {}
    if masked:
        context |= {"context_mask": torch.arange(9) < torch.tensor([[9], [5]])} if context else {}
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    want = theirs(other, input_mask=real if masked else None, **context)
    noise = {"gumbel": drawn[0].unflatten(0, (2, -1))} if drawn else {}
    got = ours(one, key_mask=real if masked else None, **context, **noise)
    weights = torch.randn_like(got) * (real[..., None] if masked else 1)
    torch.testing.assert_close(got * (weights != 0), want * (weights != 0), rtol=1e-10, atol=1e-10)
    (got * weights).sum().backward()
    (want * weights).sum().backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-10)
    assert_same_gradients(theirs, ours)


def assert_same_gradients(theirs: torch.nn.Module, ours: Any) -> None:
    wanted, _ = renamed(sources(ours.form)[SOURCE], {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None})
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name], rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("options", [{**CAUSAL, "n_local_attn_heads": 1}, {"values_from_keys": True, "sort_net": "simple"}], ids=str)
def test_the_model_agrees_with_the_package(options: dict[str, Any]) -> None:
    package = pytest.importorskip("sinkhorn_transformer")
    torch.manual_seed(0)
    theirs = package.SinkhornTransformerLM(11, 8, 16, 2, bucket_size=4, heads=2, **named_as_theirs({"n_top_buckets": 1, **options})).double()
    ours = foveate.nn.SinkhornTransformer(
        vocab_size=11, embed_dim=8, max_len=16, depth=2, bucket_size=4, num_heads=2, dtype=torch.float64, **{"n_top_buckets": 1, **options}
    )
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(std=0.5)
    assert foveate.nn.load_published(ours, theirs.state_dict()) == SOURCE
    ids = torch.randint(11, (2, 16))
    want, got = theirs(ids), ours(ids)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    weights = torch.randn_like(got)
    (got * weights).sum().backward()
    (want * weights).sum().backward()
    assert_same_gradients(theirs, ours)
