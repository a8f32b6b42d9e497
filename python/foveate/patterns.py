"""Who attends to whom, as data: rules on the positions of queries and keys, joined by `|`, `&` and `~`.

    pattern = (sliding_window(128, 0) | strided(64)) & causal()
    out = foveate.sparse_attention(q, k, v, pattern)

A rule compares the position i of a query with the position j of a key. The last query meets the last key, so with N queries and M
keys query n stands at i = n + M - N. A pattern knows no length: the same one serves every length.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Pattern",
    "block_diagonal",
    "block_window",
    "causal",
    "dilated",
    "draw_blocks",
    "fixed",
    "from_blocks",
    "from_dense",
    "global_tokens",
    "heads",
    "keys",
    "queries",
    "random_blocks",
    "shifted",
    "sliding_window",
    "staircase",
    "strided",
]


@dataclass(frozen=True, eq=False, repr=False)
class Pattern:
    """A rule, or several joined: `a | b` shows what either shows, `a & b` what both show, `~a` what a hides.

    The functions of this module make them. `to_dense` writes one out, `plot` draws it.

    >>> from foveate.patterns import sliding_window, causal
    >>> pattern = sliding_window(1, 1) & ~causal()
    >>> pattern
    sliding_window(1, 1) & ~causal()
    >>> pattern.to_dense(3).int()
    tensor([[0, 1, 0],
            [0, 0, 1],
            [0, 0, 0]], dtype=torch.int32)
    """

    expression: str
    """As the operators read it: "and(sliding_window(1,1),not(causal()))"."""
    tables: tuple[Tensor, ...] = ()
    """The tensors that the expression names #0, #1, ..."""
    text: str = ""
    """As Python writes it."""

    def __post_init__(self) -> None:
        if not torch.compiler.is_compiling():
            torch.ops.foveate.pattern_check(self.expression)

    def __and__(self, other: "Pattern") -> "Pattern":
        return self._join("and", "&", other)

    def __or__(self, other: "Pattern") -> "Pattern":
        return self._join("or", "|", other)

    def __invert__(self) -> "Pattern":
        return Pattern(f"not({self.expression})", self.tables, f"~{_grouped(self.text or self.expression)}")

    def _join(self, how: str, sign: str, other: "Pattern") -> "Pattern":
        if not isinstance(other, Pattern):
            return NotImplemented
        after = re.sub(r"#(\d+)", lambda number: f"#{int(number[1]) + len(self.tables)}", other.expression)
        text = f" {sign} ".join(_grouped(part.text or part.expression, sign) for part in (self, other))
        return Pattern(f"{how}({self.expression},{after})", self.tables + other.tables, text)

    def __bool__(self) -> bool:
        raise TypeError("a pattern is neither true nor false: join patterns with & and | and ~, not with and, or, not")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pattern):
            return NotImplemented
        same = self.expression == other.expression and len(self.tables) == len(other.tables)
        return same and all(a.shape == b.shape and bool((a == b).all()) for a, b in zip(self.tables, other.tables, strict=True))

    def __hash__(self) -> int:
        return hash((self.expression, tuple(table.shape for table in self.tables)))

    def __repr__(self) -> str:
        return self.text or self.expression

    def to_dense(self, n: int, m: int | None = None, *, heads: int | None = None) -> Tensor:
        """True where query n sees key m: bool [n,m], or [H,n,m] where the heads differ. m is n where it is left out.

        `heads` is needed where only `heads()` tells them apart.

        >>> foveate.patterns.causal().to_dense(2, 3).int()
        tensor([[1, 1, 0],
                [1, 1, 1]], dtype=torch.int32)
        """
        seen: Tensor = torch.ops.foveate.pattern_to_dense(self.expression, list(self.tables), n, n if m is None else m, heads)
        return seen

    def plot(self, path: str | os.PathLike[str] | None = None, *, n: int = 64, m: int | None = None, head: int = 0, heads: int | None = None) -> str:
        """A picture of n queries (downwards) by m keys of one head, returned as text; two queries to a line.

        With `path` it is also written as an image (needs pillow), a pixel for each pair.

        >>> print(foveate.patterns.block_diagonal(2).plot(n=6))
        ██
          ██
            ██
        """
        seen = self.to_dense(n, m, heads=heads)
        seen = seen[head] if seen.dim() == 3 else seen
        if path is not None:
            _write_image(seen, path)
        rows = torch.nn.functional.pad(seen, (0, 0, 0, n % 2)).reshape(-1, 2, seen.shape[1]).long()
        return "\n".join("".join(" ▀▄█"[k] for k in line).rstrip() for line in (rows[:, 0] + 2 * rows[:, 1]).tolist())


def _grouped(text: str, sign: str = "") -> str:
    """The text in brackets, unless it is one rule, or already joined by the same sign."""
    outer = re.sub(r"\[[^\]]*\]", "", text)
    while (bare := re.sub(r"\([^()]*\)", "", outer)) != outer:
        outer = bare
    signs = set(re.findall(r" ([&|]) ", outer))
    return text if not signs or (sign and signs == {sign}) else f"({text})"


def _write_image(seen: Tensor, path: str | os.PathLike[str]) -> None:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("Pattern.plot writes images with pillow: pip install pillow") from error
    Image.fromarray((255 * (~seen).to(torch.uint8)).cpu().numpy()).save(path)


def _rule(name: str, *numbers: int) -> Pattern:
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"patterns.{name} takes whole numbers, got {number!r}")
    return Pattern(f"{name}({','.join(map(str, numbers))})", (), f"{name}({', '.join(map(str, numbers))})")


def _tabled(name: str, expression: str, table: Any, *, dims: Sequence[int], **others: Any) -> Pattern:
    tensor = torch.as_tensor(table)
    if tensor.is_floating_point() or tensor.is_complex():
        raise TypeError(f"patterns.{name} takes a bool or integer tensor, got {tensor.dtype}")
    if tensor.dim() not in dims:
        raise ValueError(f"patterns.{name} takes a tensor of {' or '.join(map(str, dims))} dimensions, got shape {tuple(tensor.shape)}")
    kind = "bool" if tensor.dtype == torch.bool else "int"
    shown = [f"<{kind} {list(tensor.shape)}>", *(f"{key}={value}" for key, value in others.items())]
    return Pattern(expression, (tensor,), f"{name}({', '.join(shown)})")


def sliding_window(left: int, right: int) -> Pattern:
    """Keys from i - left to i + right.

    >>> foveate.patterns.sliding_window(1, 0).to_dense(3).int()
    tensor([[1, 0, 0],
            [1, 1, 0],
            [0, 1, 1]], dtype=torch.int32)
    """
    return _rule("sliding_window", left, right)


def causal() -> Pattern:
    """Keys up to the query's own position.

    >>> foveate.patterns.causal().to_dense(2).int()
    tensor([[1, 0],
            [1, 1]], dtype=torch.int32)
    """
    return _rule("causal")


def strided(stride: int) -> Pattern:
    """Every stride-th key, before and after: i - j is a multiple of the stride.

    >>> foveate.patterns.strided(2).to_dense(3).int()
    tensor([[1, 0, 1],
            [0, 1, 0],
            [1, 0, 1]], dtype=torch.int32)
    """
    return _rule("strided", stride)


def fixed(stride: int, columns: int) -> Pattern:
    """The last `columns` keys of every `stride`, for every query: the summary cells of the Sparse Transformer.

    >>> foveate.patterns.fixed(3, 1).to_dense(1, 6).int()
    tensor([[0, 0, 1, 0, 0, 1]], dtype=torch.int32)
    """
    return _rule("fixed", stride, columns)


def dilated(left: int, right: int, dilation: int) -> Pattern:
    """A window of `left` steps back and `right` steps ahead, of `dilation` positions each.

    >>> foveate.patterns.dilated(2, 0, 2).to_dense(1, 6).int()
    tensor([[0, 1, 0, 1, 0, 1]], dtype=torch.int32)
    """
    return _rule("dilated", left, right, dilation)


def block_diagonal(size: int) -> Pattern:
    """Keys of the query's own block of `size` positions.

    >>> foveate.patterns.block_diagonal(2).to_dense(3).int()
    tensor([[1, 1, 0],
            [1, 1, 0],
            [0, 0, 1]], dtype=torch.int32)
    """
    return _rule("block_diagonal", size)


def block_window(size: int, left: int, right: int) -> Pattern:
    """From `left` positions before the query's own block of `size` positions to `right` positions behind it.

    >>> foveate.patterns.block_window(2, 1, 0).to_dense(5).int()
    tensor([[1, 1, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [0, 1, 1, 1, 0],
            [0, 1, 1, 1, 0],
            [0, 0, 0, 1, 1]], dtype=torch.int32)
    """
    return _rule("block_window", size, left, right)


def staircase(step: int, first: int) -> Pattern:
    """Keys of which each stands for `step` positions: key j is seen from position `step * j + first` on.

    `first = step - 1` shows those that are complete. The queries stand at 0, 1, ...: a call gives `offset=0`, where it has one.

    >>> (foveate.patterns.staircase(2, 1)).to_dense(5, 5).int()
    tensor([[0, 0, 0, 0, 0],
            [1, 0, 0, 0, 0],
            [1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 0, 0, 0]], dtype=torch.int32)
    """
    return _rule("staircase", step, first)


def keys(first: int, last: int) -> Pattern:
    """Keys first <= j < last, for every query.

    >>> foveate.patterns.keys(1, 3).to_dense(1, 4).int()
    tensor([[0, 1, 1, 0]], dtype=torch.int32)
    """
    return _rule("keys", first, last)


def queries(first: int, last: int) -> Pattern:
    """Every key, for queries at positions first <= i < last.

    >>> foveate.patterns.queries(0, 1).to_dense(2).int()
    tensor([[1, 1],
            [0, 0]], dtype=torch.int32)
    """
    return _rule("queries", first, last)


def global_tokens(tokens: int | Sequence[int] | Tensor, *, rows: bool = True, columns: bool = True) -> Pattern:
    """Tokens that see all (rows) and are seen by all (columns): the first few, or those at the given positions.

    >>> foveate.patterns.global_tokens([1]).to_dense(3).int()
    tensor([[0, 1, 0],
            [1, 1, 1],
            [0, 1, 0]], dtype=torch.int32)
    >>> foveate.patterns.global_tokens(1, rows=False).to_dense(2).int()
    tensor([[1, 0],
            [1, 0]], dtype=torch.int32)
    """
    rules = [rule for rule, wanted in (("queries", rows), ("keys", columns)) if wanted]
    if not rules:
        raise ValueError("patterns.global_tokens: rows, columns or both must be True")
    which = "" if rows and columns else ", columns=False" if rows else ", rows=False"
    counted = isinstance(tokens, int) and not isinstance(tokens, bool)
    parts = [f"{rule}(0,{tokens})" if counted else f"{rule}(#0)" for rule in rules]
    expression = parts[0] if len(parts) == 1 else f"or({','.join(parts)})"
    if counted:
        if tokens < 0:  # type: ignore[operator]
            raise ValueError(f"patterns.global_tokens: the number of tokens must not be negative, got {tokens}")
        return Pattern(expression, (), f"global_tokens({tokens}{which})")
    positions = torch.as_tensor(tokens) if len(tokens) else torch.zeros(0, dtype=torch.int64)  # type: ignore[arg-type]
    made = _tabled("global_tokens", expression, positions, dims=[1])
    few = isinstance(tokens, Sequence) and len(tokens) <= 8
    return Pattern(expression, made.tables, f"global_tokens({list(tokens)}{which})" if few else made.text[:-1] + which + ")")  # type: ignore[arg-type]


def heads(first: int, step: int) -> Pattern:
    """Every key, but only in heads first, first + step, first + 2 step, ...: gives each head a pattern of its own.

    >>> near, far = foveate.patterns.sliding_window(1, 1), foveate.patterns.strided(2)
    >>> mixed = (heads(0, 2) & near) | (heads(1, 2) & far)
    >>> mixed.to_dense(3, heads=2).int()
    tensor([[[1, 1, 0],
             [1, 1, 1],
             [0, 1, 1]],
    <BLANKLINE>
            [[1, 0, 1],
             [0, 1, 0],
             [1, 0, 1]]], dtype=torch.int32)
    """
    return _rule("heads", first, step)


def shifted(pattern: Pattern, by: int) -> Pattern:
    """A pattern on positions counted from `by` on: what stands before them, such as global tokens, neither sees nor is seen.

    >>> foveate.patterns.shifted(foveate.patterns.block_diagonal(2), 1).to_dense(4).int()
    tensor([[0, 0, 0, 0],
            [0, 1, 1, 0],
            [0, 1, 1, 0],
            [0, 0, 0, 1]], dtype=torch.int32)
    """
    if isinstance(by, bool) or not isinstance(by, int):
        raise TypeError(f"patterns.shifted: by must be a whole number, got {by!r}")
    return Pattern(f"shifted({pattern.expression},{by})", pattern.tables, f"shifted({pattern.text or pattern.expression}, {by})")


def random_blocks(block: int, table: Tensor | Sequence[Any]) -> Pattern:
    """Each block of queries sees the key blocks that a table names: int [H or 1, query blocks, r]. `draw_blocks` draws one.

    Numbers that name no block, -1 for example, are passed over.

    >>> foveate.patterns.random_blocks(2, [[[1], [0]]]).to_dense(4).int()
    tensor([[0, 0, 1, 1],
            [0, 0, 1, 1],
            [1, 1, 0, 0],
            [1, 1, 0, 0]], dtype=torch.int32)
    """
    _positive("random_blocks", block)
    return _tabled("random_blocks", f"random_blocks({block},#0)", table, dims=[3], block=block)


def draw_blocks(
    query_blocks: int, count: int, *, key_blocks: int | None = None, heads: int = 1, seed: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """A table for `random_blocks`: `count` different key blocks for each query block of each head, drawn uniformly.

    From `generator`, or one made from `seed`, or torch's own.

    >>> table = draw_blocks(8, 3, heads=2, seed=0)
    >>> table.shape
    torch.Size([2, 8, 3])
    >>> torch.equal(table, draw_blocks(8, 3, heads=2, seed=0))
    True
    """
    if seed is not None:
        if generator is not None:
            raise ValueError("patterns.draw_blocks: give seed or generator, not both")
        generator = torch.Generator().manual_seed(seed)
    among = query_blocks if key_blocks is None else key_blocks
    if not 0 <= count <= among:
        raise ValueError(f"patterns.draw_blocks: count must lie in 0..{among}, the number of key blocks, got {count}")
    return torch.rand(heads, query_blocks, among, generator=generator).argsort(-1)[..., :count]


def from_blocks(layout: Tensor | Sequence[Any], block: int) -> Pattern:
    """A layout of blocks, bool or 0 and 1: [query blocks, key blocks], or [H or 1, query blocks, key blocks].

    >>> foveate.patterns.from_blocks([[1, 0], [1, 1]], block=2).to_dense(4).int()
    tensor([[1, 1, 0, 0],
            [1, 1, 0, 0],
            [1, 1, 1, 1],
            [1, 1, 1, 1]], dtype=torch.int32)
    """
    _positive("from_blocks", block)
    tensor = torch.as_tensor(layout)
    made = _tabled("from_blocks", f"blocks({block},#0)", tensor, dims=[2, 3], block=block)
    return made if tensor.dim() == 3 else Pattern(made.expression, (tensor.unsqueeze(0),), made.text)


def from_dense(mask: Tensor | Sequence[Any]) -> Pattern:
    """A mask, True where a query sees a key: bool [N,M], or [H,N,M].

    >>> mask = torch.rand(5, 5) < 0.5
    >>> torch.equal(foveate.patterns.from_dense(mask).to_dense(5), mask)
    True
    """
    return _tabled("from_dense", "dense(#0)", mask, dims=[2, 3])


def _positive(name: str, block: int) -> None:
    if isinstance(block, bool) or not isinstance(block, int):
        raise TypeError(f"patterns.{name}: block must be a whole number, got {block!r}")
    if block <= 0:
        raise ValueError(f"patterns.{name}: block must be positive, got {block}")
