"""What is peculiar to GMAT: the memory counts once in one softmax, its absence leaves independent chunks, any sparse set may carry it."""

import pytest
import torch
from torch import Tensor

import foveate
from foveate import patterns
from tests.naive import attend


def qkv(n: int) -> list[Tensor]:
    return list(torch.randn(3, 2, 2, n, 4, dtype=torch.float64))


@pytest.mark.parametrize("memory", [0, 1, 5])
@pytest.mark.parametrize("n", [1, 4, 9, 30])
def test_memory_and_chunk_in_one_softmax(memory: int, n: int) -> None:
    q, k, v = qkv(memory + n)
    key_mask = torch.rand(2, n) < 0.6
    key_mask[1] = False  # all padding
    i, j = torch.arange(memory + n)[:, None] - memory, torch.arange(memory + n) - memory
    seen = (i < 0) | (j < 0) | (i // 4 == j // 4)
    there = torch.cat([torch.ones(2, memory, dtype=torch.bool), key_mask], 1)[:, None, None]
    found = foveate.gmat_attention(q, k, v, key_mask=key_mask, memory=memory, chunk=4)
    torch.testing.assert_close(found, attend(q, k, v, seen & there))
    if memory == 0:
        assert (found[1] == 0).all()


def test_any_pattern_may_carry_the_memory() -> None:
    q, k, v = qkv(3 + 20)
    sparse = patterns.strided(5) | patterns.block_diagonal(4)
    found = foveate.gmat_attention(q, k, v, memory=3, sparse="pattern", pattern=sparse.expression)
    want = foveate.sparse_attention(q, k, v, patterns.global_tokens(3) | patterns.shifted(sparse, 3))
    torch.testing.assert_close(found, want if isinstance(want, Tensor) else want[0])
    with pytest.raises(ValueError, match="goes with sparse = pattern"):
        foveate.gmat_attention(q, k, v, memory=3, pattern="causal()")
    with pytest.raises(ValueError, match="goes with sparse = pattern"):
        foveate.gmat_attention(q, k, v, memory=3, sparse="pattern")
    with pytest.raises(ValueError, match="there is no rule 'windows'"):
        foveate.gmat_attention(q, k, v, memory=3, sparse="pattern", pattern="windows(3)")
    with pytest.raises(ValueError, match="must not name tables"):
        foveate.gmat_attention(q, k, v, memory=3, sparse="pattern", pattern="dense(#0)")


def test_only_the_memory_passes_between_chunks() -> None:
    x = torch.randn(1, 12, 8, dtype=torch.float64)
    other = x.clone()
    other[:, :4] = torch.randn(4, 8)
    for memory, passes in ((0, False), (2, True)):
        encoder = foveate.nn.GMATEncoder(embed_dim=8, num_heads=2, num_layers=2, memory=memory, chunk=4, inner_dim=8, dtype=torch.float64)
        assert torch.equal(encoder(x).out[:, 4:], encoder(other).out[:, 4:]) != passes


def test_the_sequence_is_rebuilt_from_the_memory_alone() -> None:
    model = foveate.nn.GMATCompression(embed_dim=8, num_heads=2, memory=3, chunk=4, inner_dim=8, length=20, dtype=torch.float64)
    x = torch.randn(2, 12, 8, dtype=torch.float64, requires_grad=True)
    out, stored = model(x)
    through = torch.autograd.grad(out.sum(), [x, stored], retain_graph=True)
    again = torch.autograd.grad(stored, x, through[1])[0]
    torch.testing.assert_close(through[0], again)
    with pytest.raises(ValueError, match="at most 20 tokens"):
        model(torch.randn(1, 21, 8, dtype=torch.float64))
