"""Memory of a training step that runs parts anew: Reformer's reversible stack against depth, Memformer's replay against segments.

Peak: the high-water mark of torch's CPU allocator over forward and backward, beyond what the gradients of the parameters take, which both
ways need. Plain: the same function in the ordinary way of autograd, which keeps what every layer, or every segment, needs for its gradient.
Both ways give the same gradients, which is checked. Times are of one run.

    python bench/reversible_memory.py [--depths 2 4 8 16] [--segments 2 4 8 16] [--length 1024] [--width 128] [--threads 1]
"""

import argparse
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

import foveate
from foveate.compare.measure import peak_extra_bytes
from foveate.training import backward_in_chunks

MIB = 2**20
Backward = Callable[[], None]  # one forward and backward, which adds to the gradients of the parameters


def gradients(run: Backward, parameters: Iterable[torch.nn.Parameter]) -> dict[int, Tensor]:
    """Of the parameters, by number."""
    own = list(parameters)
    for p in own:
        p.grad = None
    run()
    return {i: p.grad.clone() for i, p in enumerate(own) if p.grad is not None}


def peak(run: Backward, parameters: Iterable[torch.nn.Parameter]) -> float:
    """Most MiB beyond the gradients of the parameters."""
    own = list(parameters)
    for p in own:
        p.grad = None
    most = peak_extra_bytes(run)
    return (most - sum(p.grad.numel() * p.grad.element_size() for p in own if p.grad is not None)) / MIB


def compared(table: Table, name: int, module: torch.nn.Module, ways: dict[str, Backward]) -> None:
    """A row: memory and time of both ways."""
    found = {way: gradients(run, module.parameters()) for way, run in ways.items()}
    (one, other) = found.values()
    for i in other:
        torch.testing.assert_close(one[i], other[i], rtol=1e-3, atol=1e-4 * float(other[i].abs().max() + 1e-6))
    cells = []
    for run in ways.values():
        started = time.perf_counter()
        run()
        seconds = time.perf_counter() - started
        cells.append((peak(run, module.parameters()), seconds))
    (anew, anew_s), (plain, plain_s) = cells
    table.add_row(str(name), f"{anew:.1f}", f"{plain:.1f}", f"{plain / anew:.1f}", f"{anew_s / plain_s:.2f}")


def columns(title: str, what: str) -> Table:
    table = Table(title=title, box=box.MARKDOWN)
    for column in (what, "run anew, MiB", "plain, MiB", "times as much", "time anew / plain"):
        table.add_column(column, justify="right")
    return table


def plain_reformer(stack: Any, x: Tensor, rotations: Tensor, sizes: dict[str, Any]) -> Tensor:
    """The stack's result by autograd's own means."""
    one = two = x
    for place, layer in enumerate(stack.layers.children()):
        y = F.layer_norm(two, two.shape[2:], layer.attention_norm.weight, layer.attention_norm.bias, 1e-12)
        if place % 2 == 1:
            read = foveate.reformer_lsh_self_attention(
                y, rotations[place // 2], query_key_weight=layer.query_key.weight, value_weight=layer.value.weight, num_buckets=[8, 8], **sizes
            ).out
        else:
            read = foveate.reformer_local_self_attention(
                y, query_weight=layer.query.weight, key_weight=layer.key.weight, value_weight=layer.value.weight, **sizes
            )
        one = one + F.linear(read, layer.out.weight)
        y = F.layer_norm(one, one.shape[2:], layer.network_norm.weight, layer.network_norm.bias, 1e-12)
        up, down = layer.network.up, layer.network.down
        two = two + F.linear(F.linear(y, up.weight, up.bias).relu(), down.weight, down.bias)
    both = torch.cat([one, two], -1)
    return F.layer_norm(both, both.shape[2:], stack.norm.weight, stack.norm.bias, 1e-12)


def reformer(given: argparse.Namespace) -> Table:
    E, H = given.width, 2
    table = columns(f"Reformer's stack, N={given.length}, E={E}, local and LSH layers in turn", "layers")
    for depth in given.depths:
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"embed_dim": E, "num_heads": H, "head_dim": E // H, "chunk_length": 64, "causal": True}
        stack = foveate.nn.Reformer(inner_dim=2 * E, layers=["local", "lsh"] * (depth // 2), num_buckets=[8, 8], **sizes)
        x = torch.randn(1, given.length, E)
        rotations = torch.randn(depth // 2, H, E // H, 1, 8)

        def reversible(stack: Any = stack, x: Tensor = x, rotations: Tensor = rotations) -> None:
            stack(x, rotations=rotations).square().mean().backward()

        def plain(stack: Any = stack, x: Tensor = x, rotations: Tensor = rotations, sizes: dict[str, Any] = sizes) -> None:
            plain_reformer(stack, x, rotations, sizes).square().mean().backward()

        compared(table, depth, stack, {"anew": reversible, "plain": plain})
    return table


def memformer(given: argparse.Namespace) -> Table:
    E, segment = given.width, 128
    table = columns(f"Memformer, segments of {segment} tokens, E={E}, 2 layers, 16 slots", "segments")
    for count in given.segments:
        torch.manual_seed(0)
        model = foveate.nn.Memformer(vocab_size=64, embed_dim=E, num_heads=2, encoder_depth=2, decoder_depth=2, slots=16)
        segments = torch.randint(64, (1, count * segment)).split(segment, 1)

        def step(ids: Tensor, state: Any, model: Any = model) -> tuple[Tensor, Any]:
            out, _, state = model.step(ids, ids, state=state)
            return F.cross_entropy(out.transpose(1, 2), ids), state

        def replay(segments: Any = segments) -> None:
            backward_in_chunks(step, segments)

        def plain(segments: Any = segments) -> None:
            state, total = None, torch.zeros(())
            for ids in segments:
                loss, state = step(ids, state)
                total = total + loss
            total.backward()

        compared(table, count, model, {"anew": replay, "plain": plain})
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--segments", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    Console().print(reformer(given))
    Console().print(memformer(given))


if __name__ == "__main__":
    main()
