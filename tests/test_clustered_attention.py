"""What is peculiar to clustered attention: ties, empty clusters, and what it is where clusters are single queries."""

import pytest
import torch

import foveate


def _bits(*codes: str) -> torch.Tensor:
    """Vectors [1,1,N,D] whose hash bits under identity planes are these."""
    return torch.tensor([[float(bit) * 2 - 1 for bit in code] for code in codes], dtype=torch.float64)[None, None]


def _identity(bits: int) -> torch.Tensor:
    return torch.cat([torch.eye(bits), torch.zeros(bits, 1)], 1).double()


def _groups(q: torch.Tensor, seeds: list[int], **options) -> tuple[list[int], list[int]]:
    k = torch.randn(1, 1, 3, q.shape[-1], dtype=torch.float64)
    inputs = {"planes": _identity(q.shape[-1]), "init_centroids": torch.tensor(seeds)}
    given = {name: options.pop(name) for name in ("query_mask", "empty_codes") if name in options}
    result = foveate.clustered_attention(q, k, k, **inputs, **given, clusters=len(seeds), **options)
    return result.groups[0, 0].tolist(), result.counts[0, 0].tolist()


def test_of_clusters_equally_near_the_first_wins() -> None:
    q = _bits("0000", "0011", "0001")  # the last is as far from the first as from the second
    assert _groups(q, [0, 1], iterations=1) == ([0, 1, 0], [2, 1])


def test_a_bit_that_half_of_a_cluster_has_is_not_the_clusters() -> None:
    q = _bits("0000", "0011", "1111", "1111")
    # The first cluster holds 0000 and 0011: its code becomes 0000, not 0011.
    assert _groups(q, [0, 2], iterations=2) == ([0, 0, 1, 1], [2, 2])


def test_a_cluster_left_empty_keeps_its_code_or_takes_the_one_given() -> None:
    q = _bits("0000", "0000", "1111")
    assert _groups(q, [0, 1], iterations=3) == ([0, 0, 0], [3, 0])
    codes = torch.zeros(2, 2, 4, dtype=torch.bool)
    codes[:, 1] = True
    assert _groups(q, [0, 1], iterations=3, empty_codes=codes) == ([0, 0, 1], [2, 1])


def test_queries_that_do_not_count_belong_to_no_cluster() -> None:
    q = _bits("0000", "1111", "1111")
    mask = torch.tensor([[True, False, True]])
    assert _groups(q, [0, 2], iterations=2, query_mask=mask) == ([0, 3, 1], [1, 1])


def test_a_cluster_for_each_query_is_attention() -> None:
    q, k, v = torch.randn(3, 1, 1, 8, 4, dtype=torch.float64)
    q = _bits(*[f"{n:04b}" for n in range(8)]) * 0.3
    for form, options in (("clustered_attention", {}), ("improved_clustered_attention", {"topk": 3})):
        result = getattr(foveate, form)(q, k, v, planes=_identity(4), init_centroids=torch.arange(8), clusters=8, **options)
        torch.testing.assert_close(result.out, foveate.attention(q, k, v), rtol=1e-10, atol=1e-11)


def test_all_keys_of_a_cluster_are_attention() -> None:
    q, k, v = torch.randn(3, 1, 2, 10, 4, dtype=torch.float64)
    result = foveate.improved_clustered_attention(q, k, v, clusters=2, topk=16)
    torch.testing.assert_close(result.out, foveate.attention(q, k, v), rtol=1e-10, atol=1e-11)


def test_of_keys_equally_large_the_first_are_taken() -> None:
    q = torch.ones(1, 1, 4, 2, dtype=torch.float64)
    k, v = torch.ones(1, 1, 6, 2, dtype=torch.float64), torch.arange(6.0).double()[None, None, :, None]
    out = foveate.improved_clustered_causal_attention(q, k, v, clusters=1, topk=2).out  # keys 0 and 1
    torch.testing.assert_close(out.flatten(), torch.tensor([0.0, 0.5, 0.5, 0.5]).double())


def test_the_gradient_of_the_mass_is_an_option() -> None:
    q, k, v = torch.randn(3, 1, 1, 8, 4, dtype=torch.float64)
    draws = {"planes": torch.randn(8, 5).double(), "init_centroids": torch.arange(2)}

    def gradient(full: bool) -> torch.Tensor:
        leaf = k.clone().requires_grad_()
        out = foveate.improved_clustered_attention(q, leaf, v, **draws, clusters=2, topk=3, full_gradient=full).out
        return torch.autograd.grad(out.square().sum(), leaf)[0]

    assert not torch.allclose(gradient(True), gradient(False))


def test_more_than_63_bits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bits must lie in 1 to 63, got 64"):
        q = torch.randn(1, 1, 4, 2)
        foveate.clustered_attention(q, q, q, clusters=2, bits=64)
