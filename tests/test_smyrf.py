"""What is peculiar to SMYRF: clusters as large as the sequence are plain attention, awkward lengths only fill the last cluster."""

import pytest
import torch

import foveate


def test_one_cluster_is_attention() -> None:
    q, k, v = torch.randn(3, 2, 2, 13, 4, dtype=torch.float64)
    there = torch.rand(2, 13) < 0.7
    out = foveate.smyrf_attention(q, k, v, key_mask=there, n_hashes=3, q_cluster_size=16, k_cluster_size=13).out
    torch.testing.assert_close(out, foveate.attention(q, k, v, key_mask=there), rtol=1e-10, atol=1e-11)


def test_awkward_lengths_are_those_of_sorted_tokens_cut_short() -> None:
    q, k, v = torch.randn(3, 1, 1, 10, 4, dtype=torch.float64)
    result = foveate.smyrf_attention(q, k, v, n_hashes=1, q_cluster_size=4, k_cluster_size=4)
    for start in (0, 4, 8):
        asked, found = result.q_order[0, 0, 0, start : start + 4], result.k_order[0, 0, 0, start : start + 4]
        want = foveate.attention(q[:, :, asked], k[:, :, found], v[:, :, found])
        torch.testing.assert_close(result.out[:, :, asked], want, rtol=1e-10, atol=1e-11)


def test_what_is_masked_is_sorted_to_the_end() -> None:
    q, k, v = torch.randn(3, 2, 2, 11, 4)
    there = torch.rand(2, 11) < 0.5
    there[:, 0] = True
    order = foveate.smyrf_attention(q, k, v, key_mask=there, n_hashes=2, q_cluster_size=4, k_cluster_size=4).k_order
    for b, count in enumerate(there.sum(1).tolist()):
        assert there[b, order[b, ..., :count]].all()
        assert not there[b, order[b, ..., count:]].any()


def test_unequal_numbers_of_clusters_are_refused_by_name() -> None:
    q, k = torch.randn(1, 1, 8, 4), torch.randn(1, 1, 16, 4)
    with pytest.raises(ValueError, match=r"q_cluster_size and k_cluster_size .* got 2 of 8 queries and 4 of 16 keys"):
        foveate.smyrf_attention(q, k, k, q_cluster_size=4, k_cluster_size=4)


def test_draws_follow_the_global_generator() -> None:
    q, k, v = torch.randn(3, 1, 2, 16, 4)
    torch.manual_seed(1)
    one = foveate.smyrf_attention(q, k, v, q_cluster_size=4, k_cluster_size=4)
    torch.manual_seed(1)
    two = foveate.smyrf_attention(q, k, v, q_cluster_size=4, k_cluster_size=4)
    other = foveate.smyrf_attention(q, k, v, q_cluster_size=4, k_cluster_size=4)
    assert torch.equal(one.out, two.out)
    assert not torch.equal(one.q_order, other.q_order)
