"""Memory and time of a training step of Performer, with `memory="full"` and part by part with `memory="minimal"`.

Peak: the high-water mark of torch's CPU allocator over forward and backward. Extra: what of it is neither the result nor a gradient of an
input or parameter, which both need. Times are of one run.

    python bench/performer_memory.py [--length 65536] [--heads 2] [--features 256] [--chunks 256 1024 4096] [--threads 1]
"""

import argparse
import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

import foveate
from foveate.compare.measure import peak_extra_bytes

D = 64
MIB = 2**20


def trained(call: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Callable[[], object]:
    """A step of training."""
    with torch.no_grad():
        weights = torch.randn_like(call())
    return lambda: torch.autograd.grad(call(), leaves, weights)


def kept(result: Tensor, leaves: Iterable[Tensor]) -> int:
    """Bytes of the result and of the leaves' gradients."""
    return sum(t.numel() * t.element_size() for t in (result, *leaves))


def table(title: str, make: Callable[[str, int], tuple[Callable[[], Tensor], list[Tensor]]], chunks: list[int]) -> None:
    """One row for full memory, one for each chunk of minimal memory."""
    print(f"\n{title}\n{'memory':>8} {'chunk':>6} {'peak MiB':>9} {'extra MiB':>10} {'less extra':>10} {'seconds':>8}")
    full = 0.0
    for memory, chunk in [("full", 0), *(("minimal", chunk) for chunk in chunks)]:
        call, leaves = make(memory, chunk or 1024)
        step = trained(call, leaves)
        with torch.no_grad():
            needed = kept(call(), leaves)
        started = time.perf_counter()
        step()
        seconds = time.perf_counter() - started
        peak = peak_extra_bytes(step)
        extra = peak - needed
        full = full or extra
        print(f"{memory:>8} {chunk or '':>6} {peak / MIB:9.0f} {extra / MIB:10.1f} {full / extra:10.1f} {seconds:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=65536)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--chunks", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    N, H = given.length, given.heads
    W = foveate.random_projection(given.features, D)

    for causal in (True, False):
        q, k, v = (torch.randn(1, H, N, D, requires_grad=True) for _ in range(3))

        def function(memory: str, chunk: int, causal: bool = causal, x: tuple[Tensor, ...] = (q, k, v)) -> tuple[Callable[[], Tensor], list[Tensor]]:
            return lambda: foveate.performer_attention(*x, projection=W, causal=causal, memory=memory, chunk=chunk), list(x)

        table(f"performer_attention, N={N}, H={H}, D={D}, {given.features} features, causal={causal}", function, given.chunks)

    x = torch.randn(1, N, H * D, requires_grad=True)

    def layer(memory: str, chunk: int) -> tuple[Callable[[], Tensor], list[Tensor]]:
        module = foveate.nn.PerformerMultiheadAttention(
            embed_dim=H * D, num_heads=H, nb_features=given.features, causal=True, memory=memory, chunk=chunk
        )
        return lambda: module(x), [x, *module.parameters()]

    table(f"PerformerMultiheadAttention, N={N}, E={H * D}, H={H}, {given.features} features, causal", layer, given.chunks)


if __name__ == "__main__":
    main()
