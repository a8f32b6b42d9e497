"""What is peculiar to the BP-Transformer: its edges partition the sequence, attention by tiles equals attention edge by edge, each sequence of
a batch has its own tree, spans stream."""

from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from tests.contract import Case

BLOCK: dict[str, Any] = {"embed_dim": 6, "num_heads": 2, "inner_dim": 8, "neighbors": 2, "clip_dist": 2}


def graph(tokens: int, **how: Any) -> tuple[Tensor, Tensor]:
    edges, node_pos = torch.ops.foveate.partition_graph(tokens, **how)
    return edges, node_pos


def covers(tokens: int) -> list[set[int]]:
    """The tokens that each node stands for."""
    sizes = [tokens]
    while sizes[-1] > 1:
        sizes.append((sizes[-1] + 1) // 2)
    return [set(range(u << j, min((u + 1) << j, tokens))) for j, size in enumerate(sizes) for u in range(size)]


def by_edges(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, edges: Tensor) -> Tensor:
    """Node by node."""
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=v.dtype)
    for node in range(q.shape[2]):
        source, _, kind = edges[:, edges[1] == node]
        keys = k[:, :, source] if table is None else k[:, :, source] + table[kind]
        scores = keys @ q[:, :, node].unsqueeze(-1) / q.shape[-1] ** 0.5
        out[:, :, node] = (scores.softmax(2) * v[:, :, source]).sum(2)
    return out


def attend(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, tokens: int, *, lengths: Tensor | None = None, seed: Tensor | None = None, **how: Any
) -> Tensor:
    settings = {"before": 0, "complete": False, "causal": False, "right_overflow": False, "scale": q.shape[-1] ** -0.5, "dropout": 0, **how}
    return torch.ops.foveate._partition_attention(q, k, v, table, lengths, seed, tokens=tokens, **settings)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_what_a_token_reads_is_every_token_once(step: int, causal: bool) -> None:
    for tokens in range(1, 60):
        edges, _ = graph(tokens, step=step, causal=causal)
        stands_for = covers(tokens)
        for i in range(tokens):
            read = [token for source in edges[0, edges[1] == i].tolist() for token in stands_for[source]]
            assert sorted(read) == list(range(i + 1 if causal else tokens))


@pytest.mark.parametrize(("causal", "right_overflow"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("step", [1, 2, 3, 5, 21])
def test_attention_by_tiles_is_attention_by_edges(step: int, causal: bool, right_overflow: bool) -> None:
    generator = torch.Generator().manual_seed(step)
    for tokens in (1, 2, 3, 5, 8, 19, 33, 46, 77):
        how = {"step": step, "clip_dist": 2, "causal": causal, "right_overflow": right_overflow}
        edges, node_pos = graph(tokens, **how)
        q, k, v = torch.randn(3, 1, 2, len(node_pos), 3, dtype=torch.float64, generator=generator)
        table = torch.randn((2 * step + 1) * 3, 3, dtype=torch.float64, generator=generator)
        for positions in (table, None):
            got = attend(q, k, v, positions, tokens, **how)
            torch.testing.assert_close(got, by_edges(q, k, v, positions, edges), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_kernel_and_its_gradients_are_the_formula_s(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens, step, causal = [1, 7, 64, 65, 150, 200][seed], [1, 4, 2, 3, 5, 9][seed], seed % 3 == 0
    how = {"step": step, "clip_dist": 2, "causal": causal, "right_overflow": seed % 2 == 0, "scale": 0.4, "complete": causal}
    nodes, before = len(graph(tokens, step=step)[1]), tokens // 3 if causal else 0
    lengths = None if causal else torch.tensor([tokens, tokens // 2])
    shapes = [(2, 2, nodes, 5)] * 2 + [(2, 2, nodes, 3), ((2 * step + 1) * 3, 5)]
    given = [torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes]
    given[1] = given[1].transpose(1, 2).contiguous().transpose(1, 2)
    weights = torch.randn(2, 2, nodes, 3, dtype=dtype, generator=generator)
    found = []
    for operator in (torch.ops.foveate._partition_attention, torch.ops.foveate._partition_attention_formula):
        leaves = [x.clone().requires_grad_() for x in given]
        out = operator(*leaves, lengths, None, tokens=tokens, before=before, **how)
        found.append([out, *torch.autograd.grad(out, leaves, weights, allow_unused=True)])
    tolerance = 1e-11 if dtype == torch.float64 else 2e-4
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("right_overflow", [True, False])
def test_each_sequence_has_a_tree_of_its_own(causal: bool, right_overflow: bool) -> None:
    options = {**BLOCK, "num_layers": 2, "causal": causal, "right_overflow": right_overflow, "dropout": 0}
    model = Case("bp_transformer", {}, options).layer()
    lengths = torch.tensor([23, 9, 16, 2, 13, 0])
    x = torch.randn(6, 23, 6, dtype=torch.float64)
    tokens, spans = model(x, lengths=lengths)
    for b, length in enumerate(lengths.tolist()[:-1]):
        alone = model(x[b : b + 1, :length])
        torch.testing.assert_close(tokens[b : b + 1, :length], alone.tokens, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(spans[b : b + 1, -1], alone.spans[:, -1], rtol=1e-10, atol=1e-11, msg="the root")
    assert tokens.isfinite().all()
    assert spans.isfinite().all()


def test_padding_asks_for_nothing() -> None:
    q, k, v = torch.randn(3, 2, 1, 13 + 7 + 4 + 2 + 1, 3, dtype=torch.float64).requires_grad_()
    out = attend(q, k, v, None, 13, lengths=torch.tensor([5, 0]), step=2, clip_dist=2)
    assert not out[0, :, 5:13].any()
    assert not out[1].any()
    (gradient,) = torch.autograd.grad(out[0, :, 5:13].sum() + out[1].sum(), q)
    assert not gradient.any()


@pytest.mark.parametrize("memory", [True, False])
def test_spans_come_with_the_step_that_ends_them(memory: bool) -> None:
    model = Case("bp_transformer", {}, {**BLOCK, "num_layers": 3, "causal": True, "memory": memory, "max_len": 40}).layer()
    x = torch.randn(2, 37, 6, dtype=torch.float64)
    given = {"memory_states": torch.randn(2, 4, 6, dtype=torch.float64), "memory_mask": torch.tensor([[True] * 3 + [False]] * 2)} if memory else {}
    tokens, spans = model(x, **given)
    _, node_pos = graph(37)
    ends = {(int(end), number): spans[:, number] for number, end in enumerate(node_pos[37:].tolist())}
    state, at, outputs = None, 0, []
    for size in (1, 1, 3, 2, 9, 1, 16, 4):
        if state is not None:
            given.pop("memory_states", None)
        out, ended, state = model.step(x[:, at : at + size], state=state, **given)
        outputs.append(out)
        whole = [number for (end, number) in sorted(ends, key=lambda e: e[1]) if at <= end < at + size]
        kept = [number for number in whole if is_full(number, 37)]
        torch.testing.assert_close(ended, spans[:, kept], rtol=1e-9, atol=1e-10)
        at += size
    torch.testing.assert_close(torch.cat(outputs, 1), tokens, rtol=1e-9, atol=1e-10)


def is_full(number: int, tokens: int) -> bool:
    """Whether span `number` stands for as many tokens as a span of its level should."""
    level, size = 1, (tokens + 1) // 2
    while number >= size:
        number, level, size = number - size, level + 1, (size + 1) // 2
    return (number + 1) << level <= tokens


def test_a_memory_changes_tokens_and_norms_spans() -> None:
    block = Case("bp_transformer_block", {}, {**BLOCK, "memory": True}).layer()
    x, memory = torch.randn(1, 9, 6).double(), torch.randn(1, 3, 6).double()
    tokens, spans = block(x, memory_states=memory)
    other_tokens, other_spans = block(x, memory_states=memory + 1)
    assert not torch.allclose(tokens, other_tokens)
    torch.testing.assert_close(spans, other_spans)
    with pytest.raises(ValueError, match="memory_states must be given"):
        block(x)


def test_dropout_is_for_training() -> None:
    model = foveate.nn.BPTransformer(**{**BLOCK, "num_layers": 1, "dropout": 0.5})
    x = torch.randn(1, 9, 6)
    assert torch.equal(model.eval()(x)[0], model(x)[0])
    assert not torch.equal(model.train()(x)[0], model(x)[0])


def test_an_exported_model_serves_trees_of_any_depth() -> None:
    model = Case("bp_transformer", {}, {**BLOCK, "num_layers": 2, "right_overflow": True}).layer()
    length = torch.export.Dim("length", min=3, max=4096)
    program = torch.export.export(model, (torch.randn(1, 13, 6).double(),), dynamic_shapes={"x": {1: length}}).module()
    for tokens in (3, 4, 5, 16, 33, 100):
        x = torch.randn(1, tokens, 6, dtype=torch.float64)
        for got, want in zip(program(x), model(x), strict=True):
            torch.testing.assert_close(got, want)


def test_cost_follows_the_edges() -> None:
    """Causal degrees as the paper counts them: about k (log2(N / k) + 1) + 1, and N log2 N edges to spans."""
    edges, _ = graph(8192, step=4, causal=True)
    degree = (edges[1] < 8192).sum() / 8192
    assert 39 < degree < 40
    assert (edges[1] >= 8192).sum() == 13 * 8192


def test_names_of_published_weights() -> None:
    """A decoder's layer of the authors' code, whose table has 1000 rows."""
    given = {f"layers.0.proj_{c}.{i}.weight": torch.randn(6, 6) for c in "qkvo" for i in (0, 1)}
    for name in ("norm_in.0", "norm_in.1", "norm_inter"):
        given |= {f"layers.0.{name}.weight": torch.randn(6), f"layers.0.{name}.bias": torch.randn(6)}
    given |= {"layers.0.ffn.0.w_1.weight": torch.randn(8, 6), "layers.0.ffn.0.w_1.bias": torch.randn(8)}
    given |= {"layers.0.ffn.0.w_2.weight": torch.randn(6, 8), "layers.0.ffn.0.w_2.bias": torch.randn(6)}
    given["layers.0.embed_ak.weight"] = torch.randn(1000, 3)
    model = foveate.nn.BPTransformer(**BLOCK, num_layers=1, memory=True, input_norm=False)
    assert foveate.nn.load_published(model, given) == "paper, with memory"


@pytest.mark.parametrize("lengths", [None, torch.tensor([13, 7])])
def test_dropped_weights_average_to_those_kept(lengths: Tensor | None) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 13 + 7 + 4 + 2 + 1, 4, generator=generator)

    def attended(seed: int | None, dropout: float = 0.3) -> Tensor:
        given = None if seed is None else torch.tensor(seed)
        return attend(q, k, v, None, 13, lengths=lengths, seed=given, dropout=dropout, step=2, clip_dist=2)

    assert torch.equal(attended(1), attended(1)) and not torch.equal(attended(1), attended(2))
    torch.testing.assert_close(attended(1, dropout=0.0), attended(None))
    mean = torch.stack([attended(977 * seed) for seed in range(500)]).mean(0)
    assert (mean - attended(None)).norm() < 0.06 * mean.norm()
    for nodes in (slice(13), slice(13, 20), slice(20, None)):  # tokens, short spans, long ones
        assert not torch.equal(attended(1)[:, :, nodes], attended(None)[:, :, nodes])
