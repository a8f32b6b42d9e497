"""What is peculiar to Linformer: a longest length, matrices that are not trained, one matrix for a whole stack."""

import pytest
import torch

import foveate


def test_shorter_sequences_use_the_first_columns_and_longer_ones_are_refused() -> None:
    attention = foveate.nn.LinformerAttention(length=8, rank=3)
    q, k, v = torch.randn(3, 1, 2, 5, 4)
    padding = (0, 0, 0, 3)
    long = attention(q, torch.nn.functional.pad(k, padding), torch.nn.functional.pad(v, padding))
    torch.testing.assert_close(attention(q, k, v), long)
    with pytest.raises(ValueError, match="length: the keys are 9 tokens, more than length = 8"):
        attention(*torch.randn(3, 1, 2, 9, 4))


def test_projections_are_checked_against_the_options() -> None:
    q, k, v = torch.randn(3, 1, 2, 5, 4)
    with pytest.raises(ValueError, match=r"\[rank,length\] or .* rank = 4, length = 8, got \[3, 8\]"):
        foveate.linformer_attention(q, k, v, key_projection_weight=torch.randn(3, 8), length=8, rank=4, sharing="kv")
    with pytest.raises(ValueError, match="the kind linear needs the weights of its projections"):
        foveate.linformer_attention(q, k, v, length=8, rank=4)


def test_causality_is_not_offered() -> None:
    with pytest.raises(TypeError, match="no option 'causal'"):
        foveate.nn.LinformerAttention(length=8, rank=3, causal=True)


def test_fixed_projections_are_kept_but_not_trained() -> None:
    attention = foveate.nn.LinformerMultiheadAttention(embed_dim=8, num_heads=2, length=6, rank=3, kind="fixed")
    assert "key_projection.fixed" in attention.state_dict()
    assert not any("projection" in name for name, _ in attention.named_parameters())


def test_fewer_projections_the_more_is_shared() -> None:
    def numbers(sharing: str) -> int:
        encoder = foveate.nn.LinformerEncoder(embed_dim=8, num_heads=2, depth=3, length=6, rank=4, sharing=sharing)
        return sum(p.numel() for name, p in encoder.named_parameters() if "projection" in name) // (4 * 6)

    assert [numbers(sharing) for sharing in ("none", "headwise", "kv", "layerwise")] == [3 * 2 * 2, 3 * 2, 3, 1]


def test_each_block_may_have_fewer_slots() -> None:
    encoder = foveate.nn.LinformerEncoder(embed_dim=8, num_heads=2, depth=3, length=6, rank=4, rank_step=2)
    assert [block.attention.key_projection.weight.shape[0] for block in encoder.blocks.children()] == [4, 2, 1]


def test_the_orders_agree_without_biases() -> None:
    options = {"embed_dim": 8, "num_heads": 2, "length": 9, "rank": 4, "sharing": "none", "bias": False, "dtype": torch.float64}
    one = foveate.nn.LinformerMultiheadAttention(project="input", **options)
    two = foveate.nn.LinformerMultiheadAttention(project="heads", **options)
    two.load_state_dict(one.state_dict())
    x, there = torch.randn(2, 7, 8, dtype=torch.float64), torch.rand(2, 7) < 0.7
    torch.testing.assert_close(one(x, key_mask=there), two(x, key_mask=there), rtol=1e-10, atol=1e-11)
