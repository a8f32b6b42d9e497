"""What is peculiar to blockwise attention: blocks of unequal sizes, shifts by numbers of heads, dropout in training."""

import pytest
import torch
from torch import Tensor

import foveate


def plainly(q: Tensor, k: Tensor, v: Tensor, table: Tensor, keep: Tensor) -> Tensor:
    """Query by query."""
    out = torch.zeros_like(v)
    (batch, heads, n, width), blocks = q.shape, table.shape[1]
    for b in range(batch):
        for h in range(heads):
            for i in range(n):
                seen = [j for j in range(n) if j * blocks // n == table[h, i * blocks // n] and keep[b, j]]
                if seen:
                    out[b, h, i] = (k[b, h, seen] @ q[b, h, i] / width**0.5).softmax(0) @ v[b, h, seen]
    return out


@pytest.mark.parametrize("n", range(1, 10))
@pytest.mark.parametrize("blocks", [1, 2, 3, 5])
def test_any_length_is_cut_into_blocks_that_differ_by_one(n: int, blocks: int) -> None:
    torch.manual_seed(n)
    q, k, v = torch.randn(3, 2, 3, n, 4, dtype=torch.float64)
    keep, table = torch.rand(2, n) < 0.7, torch.rand(3, blocks).argsort(-1)
    out = foveate.blockwise_attention(q, k, v, permutations=table, key_mask=keep, num_blocks=blocks)
    torch.testing.assert_close(out, plainly(q, k, v, table, keep))


def test_heads_take_turns_unless_counted() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 4, 12, 4, dtype=torch.float64)
    for counts, shifts in (([], [0, 1, 2, 0]), ([2, 0, 2], [0, 0, 2, 2]), ([4], [0, 0, 0, 0])):
        table = torch.tensor([[(b + shift) % 3 for b in range(3)] for shift in shifts])
        out = foveate.blockwise_attention(q, k, v, num_blocks=3, heads_per_permutation=counts)
        torch.testing.assert_close(out, plainly(q, k, v, table, torch.ones(1, 12, dtype=torch.bool)))


def test_counts_must_fit_the_heads() -> None:
    q = torch.randn(1, 4, 12, 4)
    with pytest.raises(ValueError, match=r"heads_per_permutation must add up to the 4 heads, got \[2, 1\]"):
        foveate.blockwise_attention(q, q, q, heads_per_permutation=[2, 1])
    with pytest.raises(ValueError, match=r"permutations must be .* num_blocks = 2"):
        foveate.blockwise_attention(q, q, q, permutations=torch.zeros(4, 3, dtype=torch.int64))


def test_dropout_is_drawn_in_training_only() -> None:
    torch.manual_seed(0)
    layer, x = foveate.nn.BlockwiseMultiheadAttention(embed_dim=8, num_heads=2, dropout=0.5), torch.randn(1, 9, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
