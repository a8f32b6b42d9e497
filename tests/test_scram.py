"""What is peculiar to SCRAM: what the search finds, and what it never sees."""

import pytest
import torch

import foveate

GRIDS = {"query_grid": [8, 8], "key_grid": [8, 8]}


def test_long_search_finds_most_best_matches_of_a_smooth_image() -> None:
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(0, 2, 8), torch.linspace(0, 2, 8), indexing="ij")
    features = torch.stack([x.sin(), x.cos(), y.sin(), y.cos()], -1).double().reshape(1, 1, 64, 4)  # best match: itself
    for propagation in ("jacobi", "scan"):
        match = foveate.scram_attention(features, features, features, **GRIDS, iterations=12, search_levels=4, propagation=propagation).match
        assert (match == torch.arange(64)).double().mean() > 0.9


def test_a_wide_support_is_attention() -> None:
    q, k, v = torch.randn(3, 1, 2, 64, 4, dtype=torch.float64)
    result = foveate.scram_attention(q, k, v, **GRIDS, query_radius=0, key_radius=8)
    torch.testing.assert_close(result.out, foveate.attention(q, k, v), rtol=1e-10, atol=1e-11)
    assert (result.support_size == 64).all()


def test_a_key_that_takes_no_part_is_neither_matched_nor_seen() -> None:
    q, k, v = torch.randn(3, 2, 1, 64, 4, dtype=torch.float64)
    there = torch.rand(2, 64) < 0.5
    k = k.masked_fill(~there[:, None, :, None], 100.0)  # would be the best match
    result = foveate.scram_attention(q, k, v, key_mask=there, **GRIDS, iterations=6, search_levels=4)
    assert there.gather(1, result.match[:, 0]).double().mean() > 0.95  # all but those that met none
    hidden = v.masked_fill(~there[:, None, :, None], float("nan"))
    assert foveate.scram_attention(q, k, hidden, key_mask=there, **GRIDS).out.isfinite().all()


@pytest.mark.parametrize("propagation", ["jacobi", "scan"])
def test_equal_scores_leave_the_first_match(propagation: str) -> None:
    q, k, v = torch.ones(3, 1, 1, 16, 4)
    start = torch.randint(0, 16, (1, 1, 16))
    match = foveate.scram_attention(q, k, v, init_match=start, query_grid=[4, 4], key_grid=[4, 4], propagation=propagation).match
    assert torch.equal(match, start)


def test_lengths_that_do_not_fill_the_grid_are_refused_by_name() -> None:
    q = torch.randn(1, 1, 10, 4)
    with pytest.raises(ValueError, match=r"q must be of the grid \[3, 4\] = 12, got 10"):
        foveate.scram_attention(q, q, q, query_grid=[3, 4])
