"""Procedures of training around a forward.

    loss = foveate.training.backward_in_chunks(step, chunks)

gives the gradient of a whole sequence with the memory of one chunk, for models whose layers pass nothing but small states on:
linear attention, Performer, SLiM Performer, Memformer.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

State = Sequence[Tensor]
Step = Callable[[Any, State | None], tuple[Tensor, State]]
"""A chunk and the state before it (None starts) to the chunk's result and the state after it."""

__all__ = ["backward_in_chunks", "recover_by_subtraction"]


def backward_in_chunks(step: Step, chunks: Iterable[Any], *, recover: Callable[[Any, State], State] | None = None) -> Tensor:
    """Adds the gradient of the sum of the chunks' losses to the leaves, as one backward would; returns the sum, without graph.

    `step` gives a chunk's loss, a scalar, and the state after it. It is run once forward over all chunks without a graph, and once more
    for each chunk from the last to the first, so that one chunk's graph is alive at a time. Draws from torch's global generators, such as
    dropout's, are the same both times; others are to be given with the chunk. A first state that is trained gets its gradient where `step`
    makes it itself.
    recover: the state before a chunk from the chunk and the state after it, such as `recover_by_subtraction`; by default the states at all
    borders are kept. (SLiM Performer, arXiv 2012.11346; with the states kept, the memory replay back-propagation of Memformer, arXiv
    2010.06891.)

    >>> layer = foveate.nn.SlimPerformerLayer(hidden_dim=8, n_heads=2, ffn_dim=8)
    >>> def step(x, state):
    ...     out, state = layer.step(x, state=state)
    ...     return out.square().sum(), state
    >>> loss = foveate.training.backward_in_chunks(step, torch.randn(1, 100, 8).split(10, 1))
    """
    parts = list(chunks)
    starts: list[State | None] = []
    draws: list[list[Tensor]] = []
    end: State | None = None
    total: Tensor | None = None
    with torch.no_grad():
        for part in parts:
            starts.append(end if recover is None else None)
            draws.append(_generators())
            loss, end = step(part, end)
            total = loss if total is None else total + loss
    if total is None:
        raise ValueError("backward_in_chunks: chunks must hold one chunk or more, got none")

    ahead: list[Tensor | None] = []  # what the chunks after this one want of the state before them
    after_all = _generators()
    for i in reversed(range(len(parts))):
        start = starts[i]
        if recover is not None and i > 0:
            assert end is not None
            with torch.no_grad():
                start = recover(parts[i], end)
        leaves = None if start is None else [x.detach().requires_grad_(x.is_floating_point()) for x in start]
        _set_generators(draws[i])
        with torch.enable_grad():
            loss, after = step(parts[i], leaves)
        wanted = [(x, g) for x, g in zip(after, ahead, strict=False) if g is not None and x.requires_grad]
        outputs = [(loss, None)] * loss.requires_grad + wanted
        if outputs:
            torch.autograd.backward([x for x, _ in outputs], [g for _, g in outputs])
        ahead = [] if leaves is None else [x.grad for x in leaves]
        end = start
    _set_generators(after_all)
    return total


def _generators() -> list[Tensor]:
    """The states of torch's global generators: the CPU's, then those of the CUDA devices in use."""
    on_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if on_cuda else [])]


def _set_generators(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if states[1:]:
        torch.cuda.set_rng_state_all(states[1:])


def recover_by_subtraction(layers: Sequence[Step], embed: Callable[[Any], Tensor] = lambda chunk: chunk) -> Callable[[Any, State], State]:
    """The state before a chunk, for a stack of layers whose states are sums: what a chunk adds is taken away, layer by layer.

    `embed` makes the first layer's input of a chunk. The state of the stack is that of its layers, one after another. Keeps one state
    alone, at the price of a forward more and of the digits that subtraction loses, many in single precision.
    """

    def recover(chunk: Any, end: State) -> State:
        x, start = embed(chunk), []
        each = len(end) // len(layers)
        for i, layer in enumerate(layers):
            _, added = layer(x, None)
            before = [after - gain for after, gain in zip(end[i * each : (i + 1) * each], added, strict=True)]
            x, _ = layer(x, before)
            start += before
        return start

    return recover
