"""Tables at any width."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from raysched.cli.tables import Column, fields, flow, table, wrap

COLUMNS = [
    Column("id"),
    Column("n", right=True, named=True),
    Column("user", extra=True),
    Column("why", wraps=True),
]
WORDS = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=60)
SENTENCES = st.lists(WORDS, max_size=12).map(" ".join)
IDS = st.text("0123456789abcdef.", min_size=4, max_size=14)
ROWS = st.lists(st.tuples(IDS, WORDS, WORDS, SENTENCES), min_size=1, max_size=5)


def _plain(lines: list[Text]) -> list[str]:
    return [line.plain for line in lines]


@given(ROWS, st.integers(20, 200))
def test_no_line_is_wider_than_the_terminal(rows: list[tuple[str, str, str, str]], width: int) -> None:
    """Case ui-01."""
    assert all(line.cell_len <= width for line in table(COLUMNS, rows, width))


@given(ROWS, st.integers(20, 200))
def test_an_id_is_never_cut(rows: list[tuple[str, str, str, str]], width: int) -> None:
    """Case ui-01."""
    lines = _plain(table(COLUMNS, rows, width))
    assert all(any(line.startswith(row[0]) for line in lines) for row in rows)


@given(ROWS)
def test_without_a_width_each_row_is_one_line_with_everything_in_full(
    rows: list[tuple[str, str, str, str]],
) -> None:
    """Case ui-01."""
    _, *lines = _plain(table(COLUMNS, rows, None))
    assert len(lines) == len(rows)
    assert all(cell in line for line, row in zip(lines, rows, strict=True) for cell in row)


def test_the_last_column_wraps_under_itself() -> None:
    lines = _plain(
        table([Column("id"), Column("why", wraps=True)], [["a1", "one two three four five six"]], 30)
    )
    assert lines == ["id  why", "a1  one two three four five", "    six"]


def test_extra_columns_go_first() -> None:
    lines = _plain(table(COLUMNS, [["a1b2", "3", "somebody", "a reason of thirty characters"]], 40))
    assert lines[0] == "id    n  why"


def test_a_row_that_does_not_fit_becomes_a_block() -> None:
    columns = [Column("job"), Column("waits", named=True), Column("why", wraps=True)]
    lines = _plain(table(columns, [["a-long-name-of-a-job", "3m", "because of something"]], 34))
    assert lines == ["a-long-name-of-a-job  waits 3m", "    because of something"]


def test_what_flows_breaks_between_parts() -> None:
    assert _plain(flow(["one two", "three"], 12)) == ["one two", "    three"]


def test_fields_are_aligned_and_empty_ones_left_out() -> None:
    assert _plain(fields([("why", "x"), ("nothing", ""), ("smallest", "y")], None)) == [
        "  why       x",
        "  smallest  y",
    ]


@given(SENTENCES, st.integers(12, 60))
def test_wrapping_loses_no_word(sentence: str, width: int) -> None:
    joined = "".join(_plain(wrap(Text(sentence), width, "  ")))
    assert joined.replace(" ", "") == sentence.replace(" ", "")
