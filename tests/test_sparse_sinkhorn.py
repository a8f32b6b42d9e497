"""What is peculiar to sparse Sinkhorn attention: sorting matrices, lengths, SortCut, early tokens."""

import torch

import foveate


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
