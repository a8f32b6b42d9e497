"""Errors against a setting: they fall, and nobody takes part who was not asked for."""

import pytest
import torch

from foveate import nn
from foveate.compare import minilm
from foveate.compare.inputs import Sample, Size, Source, text_sources
from foveate.compare.settings import Settings
from foveate.compare.sweeps import LONGEST, SWEEPS, exact_shared, run_sweeps
from tests.compare.made import qkv_source

SETTINGS = Settings(lengths=(128, 256))


def clustered_source(longest: int = 256) -> Source:
    """Queries near keys, eight of each kind, as a trained model has them."""
    torch.manual_seed(0)
    centres = torch.randn(1, 2, longest // 8, 16) * 3
    q, k = (centres.repeat(1, 1, 8, 1) + 0.3 * torch.randn(1, 2, longest, 16) for _ in range(2))
    v = torch.randn(1, 2, longest, 16)
    return Source("qkv", "your text", "random numbers", longest, lambda n: Sample((q[:, :, :n], k[:, :, :n], v[:, :, :n]), Size(n, 2, 16)))


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda sweep: f"{sweep.label}, {sweep.setting}")
def test_more_of_it_leaves_less_error(sweep) -> None:
    found = [each for each in run_sweeps(clustered_source(), None, SETTINGS) if (each.name, each.setting) == (sweep.label, sweep.setting)]
    assert len(found) == 1
    assert found[0].length == 256 and len(found[0].values) == len(found[0].errors) > 1
    assert found[0].errors[-1] < found[0].errors[0]


def test_only_mechanisms_that_were_asked_for_are_swept() -> None:
    assert {each.slug for each in run_sweeps(qkv_source(), ["smyrf"], Settings(lengths=(64,)))} == {"smyrf"}
    assert run_sweeps(qkv_source(), ["vanilla"], Settings(lengths=(64,))) == []


def test_a_long_input_is_swept_at_a_length_of_moderate_cost() -> None:
    assert {each.length for each in run_sweeps(qkv_source(4096), ["performer"], Settings(lengths=(1024, 4096)))} == {1024}
    assert LONGEST >= 1024


def test_one_chunk_for_all_is_what_reformer_approximates() -> None:
    sample = clustered_source().at(64)
    q, _, v = (x.double() for x in sample.tensors)
    whole = nn.LSHAttention(bucket_size=64, n_hashes=2, n_buckets=[2])(q, v).out
    torch.testing.assert_close(whole, exact_shared(sample), rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(not minilm.installed(), reason="needs MiniLM")
def test_in_minilm_rounds_clusters_and_keys_bring_an_untrained_stand_in_nearer_to_softmax() -> None:
    (source, *_) = text_sources(None, 2, 512)
    for swept in run_sweeps(source, ["smyrf", "clustered-attention", "reformer"], Settings(lengths=(512,))):
        assert swept.errors[-1] < 0.8 * swept.errors[0], swept
