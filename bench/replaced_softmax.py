"""MiniLM, trained with softmax, with its softmax replaced in all six layers and nothing trained, against what is spent.

Each cell: relative error of what one layer's attention gives, mean over layers / cosine of a text's vector with that of the original when
all layers are replaced. The settings are those of the last table of `foveate compare --text`. Reformer's queries are its keys, so that it
cannot stand in for a softmax with keys of their own: it has the error alone, from attention with queries as keys.

    python bench/replaced_softmax.py [--length 512] [--seed 0] [--mechanisms smyrf clustered-attention ...]
"""

import argparse

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from foveate import nn
from foveate.compare import inputs, minilm
from foveate.compare.settings import Settings
from foveate.compare.sweeps import SWEEPS, Sweep, run_sweeps


def cosine(sweep: Sweep, value: int, text: str, original: Tensor, seed: int) -> float:
    """Of the text's vectors."""
    attention = getattr(nn, sweep.form)(**sweep.options(value))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result = attention(q, k, v)
        return result if isinstance(result, Tensor) else result[0]

    torch.manual_seed(seed)
    return float(minilm.MiniLM(attend=attend).embed(text) @ original)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=minilm.POSITIONS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mechanisms", nargs="+", default=None)
    given = parser.parse_args()
    text = inputs.python_reference()
    original = minilm.MiniLM().embed(text)
    settings = Settings(lengths=(given.length,), seed=given.seed)
    layers = [run_sweeps(inputs.text_sources(None, layer, given.length)[0], given.mechanisms, settings) for layer in range(minilm.LAYERS)]
    table = Table(title=f"MiniLM, {given.length} tokens: relative error of a layer / cosine of the text's vector", box=box.MARKDOWN)
    for column in ("mechanism", "setting", "error / cosine"):
        table.add_column(column)
    for swept in zip(*layers, strict=True):
        (sweep,) = (each for each in SWEEPS if (each.label, each.setting) == (swept[0].name, swept[0].setting))
        cells = []
        for i, value in enumerate(swept[0].values):
            error = sum(each.errors[i] for each in swept) / len(swept)
            beside = "" if sweep.queries_are_keys else f" / {cosine(sweep, value, text, original, given.seed):.3f}"
            cells.append(f"{value}: {error:.3f}{beside}")
        table.add_row(swept[0].name, swept[0].setting, ", ".join(cells))
    Console(width=200).print(table)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
