"""Texts, photos and the user's own tensors."""

from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file

from foveate.compare import inputs, photo
from foveate.compare.errors import UserError
from foveate.compare.minilm import MiniLM


def write_npz(path: Path, **arrays: numpy.ndarray) -> Path:
    numpy.savez(path, **arrays)
    return path


def random_qkv(*shape: int) -> dict[str, numpy.ndarray]:
    draw = numpy.random.default_rng(0)
    return {name: draw.standard_normal(shape).astype(numpy.float32) for name in "qkv"}


def test_text_is_read_in_windows_joined_along_the_length(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The sea was calm, and the harbour slept. " * 80)
    qkv, vectors = inputs.text_sources(text, layer=2, longest=1024)
    encoder = MiniLM()
    tokens = encoder.tokens(text.read_text())
    second = encoder.layer_state(tokens[510:1020], 2)
    q, _, v = qkv.at(600).tensors
    assert q.shape == (1, 12, 600, 32)
    torch.testing.assert_close(q[0, :, 512:], second.q[:, :88])
    torch.testing.assert_close(v[0, :, 512:], second.v[:, :88])
    torch.testing.assert_close(vectors.at(600).tensors[0][0, 512:], second.x[:88])


def test_a_short_text_sets_its_own_lengths(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six")
    source = inputs.text_sources(text, layer=0, longest=4096)[0]
    assert source.longest == 8  # and the two tokens that frame a window
    assert inputs.choose_lengths(None, source) == ([2, 4, 8], [])


def test_lengths_beyond_the_input_are_told_apart(tmp_path: Path) -> None:
    source = inputs.file_sources(write_npz(tmp_path / "a.npz", **random_qkv(1, 1, 300, 4)))[0]
    assert inputs.choose_lengths((1024, 128, 256), source) == ([128, 256], [1024])
    with pytest.raises(UserError, match="300 positions"):
        inputs.choose_lengths((512,), source)


@pytest.mark.parametrize("shape", [(20, 4), (2, 20, 4), (3, 2, 20, 4)])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_tensors_of_the_user_are_read_with_leading_dimensions_filled(tmp_path: Path, shape: tuple[int, ...], suffix: str) -> None:
    arrays = random_qkv(*shape)
    path = tmp_path / f"mine{suffix}"
    if suffix == ".npz":
        write_npz(path, **arrays)
    else:
        save_file({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
    sample = inputs.file_sources(path)[0].at(20)
    assert sample.tensors[1].shape == (1,) * (4 - len(shape)) + shape
    assert (sample.size.length, sample.size.width) == (20, 4)
    torch.testing.assert_close(sample.tensors[1].reshape(shape), torch.from_numpy(arrays["k"]))


def test_faults_of_a_file_are_named(tmp_path: Path) -> None:
    good = random_qkv(1, 2, 10, 4)
    cases = {
        "k, v missing": {"q": good["q"]},
        "NaN": {**good, "k": good["k"] * numpy.nan},
        "must agree": {**good, "k": good["k"][:, :, :5]},
        "must be [B,H,N,D]": {**good, "v": good["v"][0, 0, 0]},
        "is empty": {**good, "q": good["q"][:, :, :0]},
    }
    for message, arrays in cases.items():
        with pytest.raises(UserError) as told:
            inputs.file_sources(write_npz(tmp_path / "bad.npz", **arrays))
        assert message in str(told.value)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["absent.npz", "noise.npz", "noise.safetensors", "noise.csv"])
def test_unreadable_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    if not name.startswith("absent"):
        (tmp_path / name).write_bytes(b"\x00\xff no tensors here")
    with pytest.raises(UserError) as told:
        inputs.file_sources(tmp_path / name)
    assert name in str(told.value)
    assert "\n" not in str(told.value)


def test_text_must_be_text_and_the_layer_must_exist(tmp_path: Path) -> None:
    (tmp_path / "noise.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        inputs.text_sources(tmp_path / "noise.txt", 0, 256)
    with pytest.raises(UserError, match="from 0 to 5"):
        inputs.text_sources(None, 6, 256)


@pytest.mark.parametrize(("length", "grid"), [(256, (16, 16)), (512, (16, 32)), (4096, (64, 64)), (1000, (25, 40)), (1, (1, 1))])
def test_grid_has_as_many_cells_as_the_length_allows(length: int, grid: tuple[int, int]) -> None:
    assert photo.grid_of(length) == grid


def test_photo_becomes_standardised_feature_maps_the_same_each_time() -> None:
    source = inputs.photo_source(None)
    first, again = source.at(1024).tensors[0], inputs.photo_source(None).at(1024).tensors[0]
    assert first.shape == (1, photo.CHANNELS, 32, 32)
    assert torch.equal(first, again)
    assert torch.isfinite(first).all()
    torch.testing.assert_close(first.mean((2, 3)), torch.zeros(1, photo.CHANNELS), atol=1e-4, rtol=0)
    torch.testing.assert_close(first.std((2, 3), correction=0), torch.ones(1, photo.CHANNELS), atol=1e-3, rtol=0)


def test_filters_answer_to_their_own_orientation() -> None:
    columns = (torch.arange(64) % 8 < 4).float()
    stripes = columns.expand(3, 64, 64)
    upright, level = (photo.filter_bank(each)[12:20].mean((1, 2)) for each in (stripes, stripes.transpose(1, 2)))
    assert upright.argmax() == 0
    assert level.argmax() == 4
