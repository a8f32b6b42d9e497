"""What is compared on: a text, a photo or the user's own queries, keys and values, at any length.

A Source gives one kind of input at the lengths asked for:
  qkv       q, k, v [B,H,N,D]      every head of one layer of MiniLM, or the user's file
  vectors   x [B,N,E]              the vectors that layer reads
  map       x [1,C,h,w], N = h w   a photo through a fixed filter bank, at several resolutions
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from foveate.compare import minilm, photo
from foveate.compare.errors import UserError

Kind = Literal["qkv", "vectors", "map"]
LENGTHS = (256, 512, 1024, 2048, 4096)
LAYER = 3


@dataclass(frozen=True)
class Size:
    """How large a sample is."""

    length: int  # positions
    heads: int  # of a map, 1
    width: int  # of a head, D; of a vector, all heads together, E; of a map, C


@dataclass(frozen=True)
class Sample:
    """What one call is given: (q, k, v) or (x,)."""

    tensors: tuple[Tensor, ...]
    size: Size

    def to(self, dtype: torch.dtype) -> Sample:
        """The same in another number type."""
        return Sample(tuple(tensor.to(dtype).contiguous() for tensor in self.tensors), self.size)


@dataclass(frozen=True)
class Source:
    """One kind of input, at any length up to `longest`."""

    kind: Kind
    subject: str  # "your text"
    description: str  # what the numbers are and where they come from
    longest: int
    at: Callable[[int], Sample]
    photo: Tensor | None = None  # [3,H,W], of a map


def default_sources(layer: int, longest: int) -> list[Source]:
    """A text and a photo that come with Python and with scikit-learn; the photo alone where MiniLM is not installed."""
    return [*(text_sources(None, layer, longest) if minilm.installed() else ()), photo_source(None)]


def text_sources(path: Path | None, layer: int, longest: int) -> list[Source]:
    """What a MiniLM layer reads of a text file (None: the text that comes with Python): q, k and v, and its vectors."""
    if not 0 <= layer < minilm.LAYERS:
        raise UserError(f"--layer must be from 0 to {minilm.LAYERS - 1}, got {layer}")
    text = python_reference() if path is None else _read_text(path)
    subject = "the Python language reference" if path is None else "your text"
    encoder = minilm.MiniLM()
    window = minilm.POSITIONS - 2
    ids = encoder.tokens(text)[: -(-longest // minilm.POSITIONS) * window]
    if not ids:
        raise UserError(f"{path} holds no words")
    with torch.inference_mode():
        states = [encoder.layer_state(ids[start : start + window], layer) for start in range(0, len(ids), window)]
    x = torch.cat([state.x for state in states])[None]
    q, k, v = (torch.cat([getattr(state, part) for state in states], dim=1)[None] for part in "qkv")
    windows = f", read in {len(states)} windows of {minilm.POSITIONS} tokens joined along the length" if len(states) > 1 else ""
    where = f"layer {layer} of the MiniLM encoder{windows}"
    return [
        _qkv_source(q, k, v, subject, f"queries, keys and values of all {q.shape[1]} heads (width {q.shape[3]}) of {where}"),
        _vector_source(x, minilm.HEADS, subject, f"the vectors (width {x.shape[2]}) that reach {where}"),
    ]


def photo_source(path: Path | None) -> Source:
    """Feature maps of a photo (None: a flower that comes with scikit-learn)."""
    pixels = photo.read_photo(path or _sample_photo())
    if min(pixels.shape[1:]) < 16:
        raise UserError(f"{path} is too small: {pixels.shape[2]} x {pixels.shape[1]} pixels, at least 16 x 16 are needed")
    responses = photo.filter_bank(pixels)

    def at(length: int) -> Sample:
        x = photo.feature_map(responses, photo.grid_of(length))
        return Sample((x,), Size(x.shape[2] * x.shape[3], 1, x.shape[1]))

    subject = "the sample photo" if path is None else "your photo"
    description = f"{photo.CHANNELS} channels of colour, oriented edges and contrast, at several resolutions (fixed filters, not trained)"
    return Source("map", subject, description, pixels[0].numel(), at, pixels)


def file_sources(path: Path) -> list[Source]:
    """The user's own q, k and v, each [B,H,N,D], [H,N,D] or [N,D], from a .safetensors or .npz file."""
    tensors = _read_tensors(path)
    missing = [name for name in "qkv" if name not in tensors]
    if missing:
        names = ", ".join(sorted(tensors)) or "nothing"
        raise UserError(f"{path} must hold tensors named q, k and v; {', '.join(missing)} missing (it holds {names})")
    q, k, v = (_as_heads(tensors[name], name, path) for name in "qkv")
    if q.shape != k.shape or q.shape[:3] != v.shape[:3]:
        raise UserError(
            f"{path}: q, k and v must agree in batch, heads and length, and q and k in width; "
            f"got q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
        )
    joined = v.transpose(1, 2).flatten(2)  # [B,N,H Dv]
    shape = f"batch {q.shape[0]}, {q.shape[1]} heads of width {q.shape[3]}"
    return [
        _qkv_source(q, k, v, "your tensors", f"queries, keys and values from {path.name}: {shape}"),
        _vector_source(joined, q.shape[1], "your tensors", f"the values from {path.name}, all heads side by side (width {joined.shape[2]})"),
    ]


def choose_lengths(asked: Sequence[int] | None, source: Source) -> tuple[list[int], list[int]]:
    """Lengths to measure, and those asked for that are longer than the input."""
    if asked is None:
        usual = [length for length in LENGTHS if length <= source.longest]
        return usual or sorted({max(1, source.longest // part) for part in (4, 2, 1)}), []
    fitting = sorted({length for length in asked if length <= source.longest})
    if not fitting:
        raise UserError(f"{source.subject} has {source.longest} positions: ask for --lengths up to that")
    return fitting, sorted({length for length in asked if length > source.longest})


def _qkv_source(q: Tensor, k: Tensor, v: Tensor, subject: str, description: str) -> Source:
    q, k, v = q.clone(), k.clone(), v.clone()  # leaves inference mode

    def at(length: int) -> Sample:
        return Sample((q[:, :, :length], k[:, :, :length], v[:, :, :length]), Size(length, q.shape[1], q.shape[3]))

    return Source("qkv", subject, description, q.shape[2], at)


def _vector_source(x: Tensor, heads: int, subject: str, description: str) -> Source:
    x = x.clone()
    return Source("vectors", subject, description, x.shape[1], lambda length: Sample((x[:, :length],), Size(length, heads, x.shape[2])))


def _as_heads(tensor: Tensor, name: str, path: Path) -> Tensor:
    if not 2 <= tensor.dim() <= 4:
        raise UserError(f"{path}: {name} must be [B,H,N,D], [H,N,D] or [N,D], got {list(tensor.shape)}")
    if tensor.numel() == 0:
        raise UserError(f"{path}: {name} is empty, {list(tensor.shape)}")
    if not torch.isfinite(tensor).all():
        raise UserError(f"{path}: {name} holds NaN or infinite numbers")
    return tensor.float().reshape((1,) * (4 - tensor.dim()) + tuple(tensor.shape))


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name; any fault of the file is the user's to know in one line."""
    _must_exist(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if path.suffix == ".npz":
            import numpy

            with numpy.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except Exception as problem:  # each format has errors of its own
        raise UserError(f"cannot read {path}: {str(problem).splitlines()[0]}") from None
    raise UserError(f"--qkv reads .safetensors and .npz files, not {path.name}")


def _read_text(path: Path) -> str:
    _must_exist(path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text in UTF-8") from None
    except OSError as problem:
        raise UserError(f"cannot read {path}: {problem.strerror}") from None


def _must_exist(path: Path) -> None:
    if not path.exists():
        raise UserError(f"no such file: {path}")


def python_reference() -> str:
    """The Python language reference as `help()` prints it: some hundred thousand words of technical prose."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def _sample_photo() -> Path:
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise UserError("the sample photo comes with scikit-learn: pip install scikit-learn, or give --image FILE")
    return Path(found.origin).parent / "datasets" / "images" / "flower.jpg"
