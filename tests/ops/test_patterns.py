"""Patterns against plain loops over i, j and h: every rule, the algebra, and the tables of blocks that patterns lower to."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st
from torch import Tensor

import foveate
from foveate import patterns
from foveate.patterns import Pattern

Sees = Callable[[int, int, int], bool]
"""Whether query i sees key j in head h; i is the query's position among the keys."""


@dataclass(frozen=True)
class Known:
    """A pattern and what it means."""

    pattern: Pattern
    sees: Sees
    heads: int | None = None

    def __and__(self, other: "Known") -> "Known":
        return Known(self.pattern & other.pattern, lambda i, j, h: self.sees(i, j, h) and other.sees(i, j, h), self.heads or other.heads)

    def __or__(self, other: "Known") -> "Known":
        return Known(self.pattern | other.pattern, lambda i, j, h: self.sees(i, j, h) or other.sees(i, j, h), self.heads or other.heads)

    def __invert__(self) -> "Known":
        return Known(~self.pattern, lambda i, j, h: not self.sees(i, j, h), self.heads)

    def dense(self, n: int, m: int) -> Tensor:
        """Entry by entry."""
        each = [[[self.sees(i + m - n, j, h) for j in range(m)] for i in range(n)] for h in range(self.heads or 1)]
        seen = torch.tensor(each, dtype=torch.bool).view(self.heads or 1, n, m)
        return seen if self.heads else seen[0]


def window(left: int, right: int) -> Known:
    return Known(patterns.sliding_window(left, right), lambda i, j, h: i - left <= j <= i + right)


def dilated(left: int, right: int, dilation: int) -> Known:
    steps = {step * dilation for step in range(-left, right + 1)}
    return Known(patterns.dilated(left, right, dilation), lambda i, j, h: j - i in steps)


def block_window(size: int, left: int, right: int) -> Known:
    return Known(patterns.block_window(size, left, right), lambda i, j, h: i // size * size - left <= j < (i // size + 1) * size + right)


def tokens(positions: list[int], rows: bool, columns: bool) -> Known:
    pattern = patterns.global_tokens(positions, rows=rows, columns=columns)
    return Known(pattern, lambda i, j, h: (rows and i in positions) or (columns and j in positions))


def blocks(layout: Tensor, block: int) -> Known:
    def sees(i: int, j: int, h: int) -> bool:
        row, column = i // block, j // block
        inside = 0 <= row < layout.shape[1] and 0 <= column < layout.shape[2]
        return inside and bool(layout[h % layout.shape[0], row, column])

    return Known(patterns.from_blocks(layout, block), sees, None if layout.shape[0] == 1 else layout.shape[0])


def random_blocks(table: Tensor, block: int) -> Known:
    def sees(i: int, j: int, h: int) -> bool:
        row = i // block
        return 0 <= row < table.shape[1] and j // block in table[h % table.shape[0], row].tolist()

    return Known(patterns.random_blocks(block, table), sees, None if table.shape[0] == 1 else table.shape[0])


def dense(mask: Tensor) -> Known:
    wide = mask if mask.dim() == 3 else mask[None]
    shift = wide.shape[2] - wide.shape[1]

    def sees(i: int, j: int, h: int) -> bool:
        return 0 <= i - shift < wide.shape[1] and j < wide.shape[2] and bool(wide[h % wide.shape[0], i - shift, j])

    return Known(patterns.from_dense(mask), sees, wide.shape[0] if mask.dim() == 3 and wide.shape[0] > 1 else None)


def drawn(*shape: int, density: float = 0.3) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) < density


def shifted(known: Known, by: int) -> Known:
    return Known(patterns.shifted(known.pattern, by), lambda i, j, h: i >= by and j >= by and known.sees(i - by, j - by, h), known.heads)


HEADS = 2
RULES: list[Known] = [
    *(window(left, right) for left, right in ((0, 0), (5, 0), (3, 9), (-2, 6), (40, -20), (1000, 1000))),
    Known(patterns.causal(), lambda i, j, h: j <= i),
    *(Known(patterns.strided(s), lambda i, j, h, s=s: (i - j) % s == 0) for s in (1, 2, 7, 16, 37)),
    *(Known(patterns.fixed(s, c), lambda i, j, h, s=s, c=c: j % s >= s - c) for s, c in ((1, 1), (4, 1), (20, 3), (33, 33), (8, 0))),
    *(dilated(*numbers) for numbers in ((2, 2, 1), (3, 1, 2), (4, 0, 19), (-1, 3, 5), (1, 1, 40))),
    *(Known(patterns.block_diagonal(s), lambda i, j, h, s=s: i // s == j // s) for s in (1, 5, 16, 50)),
    *(block_window(*numbers) for numbers in ((5, 0, 0), (6, 11, 0), (4, 3, 9), (3, 7, -3), (7, -2, 2), (16, 20, 20), (50, 1, 0))),
    Known(patterns.keys(3, 11), lambda i, j, h: 3 <= j < 11),
    Known(patterns.queries(-5, 4), lambda i, j, h: -5 <= i < 4),
    Known(patterns.global_tokens(3), lambda i, j, h: (i < 3 and i >= 0) or j < 3),
    tokens([0, 17, 18, 40], rows=True, columns=True),
    tokens([5], rows=True, columns=False),
    tokens([5, 5, 2], rows=False, columns=True),
    tokens([], rows=True, columns=True),
    Known(patterns.heads(1, 2), lambda i, j, h: h % 2 == 1, HEADS),
    blocks(drawn(1, 4, 5), 9),
    blocks(drawn(HEADS, 9, 9).long(), 5),
    random_blocks(torch.tensor([[[1, -1], [0, 9], [2, 2]]]), 12),
    random_blocks(patterns.draw_blocks(7, 2, heads=HEADS, seed=0), 6),
    dense(drawn(30, 41)),
    dense(drawn(HEADS, 41, 37)),
    dense(torch.zeros(0, 0, dtype=torch.bool)),
]
RULES += [
    Known(patterns.staircase(step, first), lambda i, j, h, s=step, f=first: s * j + f <= i)
    for step, first in ((1, 0), (3, 2), (4, 0), (16, 15), (7, -9))
]
RULES += [shifted(RULES[at], by) for at, by in ((1, 3), (-1, 2), (-4, 5), (-6, 1))]
RULES += [shifted(Known(patterns.block_diagonal(6), lambda i, j, h: i // 6 == j // 6), by) for by in (0, 3, 16, 60)]
SIZES = [(1, 1), (13, 13), (41, 41), (7, 41), (41, 7), (1, 30), (0, 5), (5, 0)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: repr(rule.pattern))
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_a_rule_shows_what_its_loop_shows(rule: Known, n: int, m: int) -> None:
    assert torch.equal(rule.pattern.to_dense(n, m, heads=rule.heads), rule.dense(n, m))


def lowered(pattern: Pattern, n: int, m: int, block: int, heads: int | None) -> tuple[Tensor, Tensor]:
    """Which blocks [H or 1, query blocks, key blocks] are named, and which of them are full."""
    start, key_block, full = torch.ops.foveate.pattern_lower(pattern.expression, list(pattern.tables), n, m, block, heads)
    rows, columns = -(-n // block), -(-m // block)
    named, whole = torch.zeros(2, len(start) - 1, columns, dtype=torch.bool)
    for row, (first, last) in enumerate(itertools.pairwise(start.tolist())):
        listed = key_block[first:last]
        assert torch.equal(listed, listed.unique()), "ascending, none twice"
        named[row, listed] = True
        whole[row, listed] = full[first:last]
    count = (len(start) - 1) // rows if rows else heads or 1
    return named.view(count, rows, columns), whole.view(count, rows, columns)


def assert_lowers_to(pattern: Pattern, want: Tensor, block: int, heads: int | None, exactly: bool = False) -> None:
    """Every seen pair lies in a named block, and full blocks are full; the last blocks may be short."""
    n, m = want.shape[-2:]
    named, whole = lowered(pattern, n, m, block, heads)
    cells = want if want.dim() == 3 else want[None]

    def over_blocks(x: Tensor) -> Tensor:  # [H,n,m] -> [H,rows,columns,block*block]
        rows, columns = -(-n // block), -(-m // block)
        padded = torch.nn.functional.pad(x, (0, columns * block - m, 0, rows * block - n))
        return padded.view(len(cells), rows, block, columns, block).transpose(2, 3).flatten(3)

    some, hidden = over_blocks(cells).any(-1), over_blocks(~cells).any(-1)
    assert not (some & ~named).any(), "a seen pair lies in a block that is not named"
    assert not (whole & hidden).any(), "a full block hides a pair"
    if exactly:
        assert torch.equal(named, some.expand_as(named)) and torch.equal(whole, (some & ~hidden).expand_as(whole))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: repr(rule.pattern))
@pytest.mark.parametrize("block", [4, 16])
def test_a_rule_lowers_to_the_blocks_it_touches(rule: Known, block: int) -> None:
    for n, m in SIZES:
        for known in (rule, ~rule):
            assert_lowers_to(known.pattern, rule.dense(n, m) if known is rule else ~rule.dense(n, m), block, rule.heads)


@pytest.mark.parametrize(
    "pattern",
    [
        patterns.sliding_window(9, 3),
        patterns.causal(),
        patterns.causal() & patterns.sliding_window(21, 0),
        patterns.block_diagonal(16) | patterns.keys(0, 8) | patterns.keys(8, 16),
        patterns.global_tokens(3) | patterns.block_diagonal(20),
        patterns.global_tokens(8) | patterns.shifted(patterns.block_window(16, 1, 1), 8),
        patterns.strided(24) & patterns.causal(),
        patterns.from_dense(drawn(48, 48, density=0.02)),
        patterns.from_blocks(drawn(1, 6, 6), 8),
    ],
    ids=repr,
)
def test_common_patterns_name_no_block_in_vain(pattern: Pattern) -> None:
    assert_lowers_to(pattern, pattern.to_dense(48), 8, None, exactly=True)


def expressions() -> st.SearchStrategy[Known]:
    return st.recursive(
        st.sampled_from(RULES),
        lambda inner: st.one_of(
            st.tuples(inner, inner).map(lambda pair: pair[0] & pair[1]),
            st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1]),
            inner.map(lambda x: ~x),
        ),
        max_leaves=6,
    )


@settings(max_examples=150, deadline=None, print_blob=True)
@given(expressions(), st.sampled_from(SIZES), st.sampled_from([3, 8]))
def test_the_algebra_is_that_of_sets(known: Known, sizes: tuple[int, int], block: int) -> None:
    note(f"{known.pattern.expression} for {sizes}")
    want = known.dense(*sizes)
    assert torch.equal(known.pattern.to_dense(*sizes, heads=known.heads), want)
    assert_lowers_to(known.pattern, want, block, known.heads)


@pytest.mark.parametrize("n", [1, 12, 43])
def test_the_papers_sets_of_the_sparse_transformer(n: int) -> None:
    stride, cells = 7, 2
    position = range(n)

    def of(sets: Iterable[set[int]]) -> Tensor:
        return torch.tensor([[j in seen for j in position] for seen in sets]).view(n, n)

    strided_1 = of({j for j in position if max(0, i - stride) <= j <= i} for i in position)
    strided_2 = of({j for j in position if j <= i and (i - j) % stride == 0} for i in position)
    fixed_1 = of({j for j in position if j <= i and j // stride == i // stride} for i in position)
    fixed_2 = of({j for j in position if j <= i and j % stride >= stride - cells} for i in position)
    assert torch.equal(patterns.sliding_window(stride, 0).to_dense(n), strided_1)
    assert torch.equal((patterns.strided(stride) & patterns.causal()).to_dense(n), strided_2)
    assert torch.equal((patterns.block_diagonal(stride) & patterns.causal()).to_dense(n), fixed_1)
    assert torch.equal((patterns.fixed(stride, cells) & patterns.causal()).to_dense(n), fixed_2)


def test_a_long_sequence_lowers_to_few_blocks() -> None:
    n, block = 1 << 20, 64
    pattern = (patterns.sliding_window(128, 128) | patterns.global_tokens(4)) & ~patterns.keys(1, 2)
    start, _, full = torch.ops.foveate.pattern_lower(pattern.expression, [], n, n, block, None)
    named = (start[1:] - start[:-1])[1:]  # the first row sees everything
    assert named.max() == 6 and named.min() == 4
    assert full.sum() > 0


def test_a_table_that_changed_lowers_anew() -> None:
    mask = torch.zeros(40, 40, dtype=torch.bool)
    pattern = patterns.from_dense(mask)
    assert not lowered(pattern, 40, 40, 8, None)[0].any()
    mask[3, 20] = True
    assert lowered(pattern, 40, 40, 8, None)[0].sum() == 1


ERRORS = [
    ("sliding_window(1", "',' or '\\)' expected at character 16"),
    ("sliding_window(1)", r"must be written sliding_window\(left,right\)"),
    ("window(1,2)", "there is no rule 'window'"),
    ("causal())", "something follows the end"),
    ("and()", "joins rules, one or more"),
    ("not(causal(),causal())", "takes one rule"),
    ("strided(0)", "stride must be positive"),
    ("fixed(4,5)", r"columns must lie in 0\.\.stride"),
    ("dilated(1,1,0)", "dilation must be positive"),
    ("sliding_window(-3,2)", "left \\+ right must not be negative"),
    ("block_window(3,-2,-2)", "left \\+ size \\+ right must not be negative"),
    ("block_window(3)", r"must be written block_window\(size,left,right\)"),
    ("block_diagonal(9999999999)", "whole number up to 2\\^31"),
    ("blocks(0,#0)", "block must be positive"),
    ("shifted(causal())", r"must be written shifted\(rule,by\)"),
    ("", "a rule expected"),
    ("not(" * 300 + "causal()" + ")" * 300, "nested too deeply"),
]


@pytest.mark.parametrize(("expression", "message"), ERRORS, ids=[expression[:20] for expression, _ in ERRORS])
def test_a_wrong_expression_is_refused(expression: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pattern(expression)


def test_wrong_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="names table #1 of 1"):
        torch.ops.foveate.pattern_to_dense("dense(#1)", [torch.ones(3, 3, dtype=torch.bool)], 3, 3)
    with pytest.raises(TypeError, match="bool or integer"):
        patterns.from_dense(torch.ones(3, 3))
    with pytest.raises(ValueError, match="3 dimensions"):
        patterns.random_blocks(4, torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="number of heads must be given"):
        patterns.heads(0, 2).to_dense(3)
    with pytest.raises(ValueError, match="of 2 heads, got 3"):
        patterns.from_dense(drawn(2, 3, 3)).to_dense(3, heads=3)
    with pytest.raises(ValueError, match="of 2 and of 3 heads"):
        (patterns.from_dense(drawn(2, 3, 3)) | patterns.from_dense(drawn(3, 3, 3))).to_dense(3)
    with pytest.raises(TypeError, match=r"whole numbers, got 1\.5"):
        patterns.strided(1.5)  # type: ignore[arg-type]


def test_patterns_are_values() -> None:
    one, other = patterns.sliding_window(1, 0) | patterns.causal(), patterns.sliding_window(1, 0) | patterns.causal()
    assert one == other and hash(one) == hash(other) and one != patterns.causal() and one != 3
    assert patterns.from_dense(drawn(3, 3)) == patterns.from_dense(drawn(3, 3)) != patterns.from_dense(~drawn(3, 3))
    with pytest.raises(TypeError, match="join patterns with & and"):
        bool(one and other)
    with pytest.raises(TypeError, match="unsupported operand"):
        one | 3  # type: ignore[operator]


def test_text_reads_as_python() -> None:
    a, b, c = patterns.causal(), patterns.strided(3), patterns.keys(0, 2)
    for pattern in ((a | b) & c, a | b | c, ~(a & b), ~a & ~b, (a & b) | ~(b | c)):
        assert eval(repr(pattern), vars(patterns)) == pattern
    assert repr(patterns.from_dense(drawn(3, 4)) | a) == "from_dense(<bool [3, 4]>) | causal()"
    assert repr(patterns.global_tokens([0, 5], columns=False)) == "global_tokens([0, 5], columns=False)"


def test_pictures(tmp_path: Path) -> None:
    from PIL import Image

    picture = patterns.causal().plot(tmp_path / "causal.png", n=3)
    assert picture == "█▄\n▀▀▀"
    image = Image.open(tmp_path / "causal.png")
    assert image.size == (3, 3) and image.getpixel((2, 0)) == 255 and image.getpixel((0, 2)) == 0
    assert patterns.heads(1, 2).plot(n=2, head=1, heads=2) == "██" and patterns.heads(1, 2).plot(n=2, heads=2) == ""


def test_draws_are_distinct_and_reproducible() -> None:
    table = patterns.draw_blocks(20, 5, heads=3, key_blocks=9, seed=4)
    assert all(len(set(row)) == 5 and max(row) < 9 for row in table.flatten(0, 1).tolist())
    generator = torch.Generator().manual_seed(4)
    assert torch.equal(table, patterns.draw_blocks(20, 5, heads=3, key_blocks=9, generator=generator))
    with pytest.raises(ValueError, match=r"count must lie in 0\.\.9"):
        patterns.draw_blocks(20, 10, key_blocks=9)


def test_module_lists_what_it_offers() -> None:
    assert all(hasattr(patterns, name) for name in patterns.__all__)
    assert foveate.patterns is patterns
