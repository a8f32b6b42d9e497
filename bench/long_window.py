"""Memory and time of training through a sliding window at lengths where a matrix of scores is out of the question.

For each length: the most that is held at once over forward and backward, in the high-water mark of torch's CPU allocator and without queries,
keys and values; what a float32 matrix of scores of one head alone would take; the seconds of one run.

    python bench/long_window.py [--lengths 8192 32768 131072] [--window 256] [--threads 2]
"""

import argparse
import time

import torch
from contest import heads

import foveate
from foveate.compare.measure import peak_extra_bytes

GB = 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 32768, 131072])
    parser.add_argument("--window", type=int, default=256, help="keys on each side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    pattern = foveate.patterns.sliding_window(given.window, given.window)
    print(f"{'N':>8} {'peak GB':>8} {'q, k, v GB':>11} {'one matrix GB':>14} {'seconds':>8}")
    for N in given.lengths:
        q, k, v = heads(N, torch.float32, grad=True)
        weights = torch.randn_like(v)

        def step(x: tuple[torch.Tensor, ...] = (q, k, v), weights: torch.Tensor = weights) -> object:
            return torch.autograd.grad(foveate.sparse_attention(*x, pattern), x, weights)

        started = time.perf_counter()
        step()
        seconds = time.perf_counter() - started
        given_bytes = sum(x.numel() * x.element_size() for x in (q, k, v))
        print(f"{N:8} {peak_extra_bytes(step) / GB:8.2f} {given_bytes / GB:11.2f} {4 * N * N / GB:14.2f} {seconds:8.2f}")


if __name__ == "__main__":
    main()
