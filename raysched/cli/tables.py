"""Tables that stand at any width: aligned where they fit, else a block of lines a row. Nothing is cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

GAP = "  "
WRAPS_FROM = 24
"""Cells below which a column of sentences is no longer wrapped beside the others."""

_wrapping = Console(width=80, color_system=None)


@dataclass(frozen=True, slots=True)
class Column:
    """`named` puts the title before the value where a row becomes a block. A table without the room for all
    its columns does without `extra` ones; its last column may be one that `wraps`."""

    title: str
    right: bool = False
    named: bool = False
    extra: bool = False
    wraps: bool = False


Cell = str | Text


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int | None) -> list[Text]:
    """The lines of a table with a heading, at most `width` cells wide; None means any width."""
    cells = [[_text(cell) for cell in row] for row in rows]
    heading = [Text(column.title, "dim") for column in columns]
    widths = [max(row[i].cell_len for row in [heading, *cells]) for i in range(len(columns))]
    shown = list(range(len(columns)))
    dropped = [i for i in shown if columns[i].extra]
    while (room := _room(columns[-1], [widths[i] for i in shown], width)) is None:
        if not dropped:
            return [line for row in cells for line in _block(columns, row, width)]
        shown.remove(dropped.pop())
    sizes = [widths[i] for i in shown[:-1]] + [room]
    kept = [columns[i] for i in shown]
    return [line for row in [heading, *cells] for line in _row(kept, [row[i] for i in shown], sizes)]


def _room(last: Column, widths: Sequence[int], width: int | None) -> int | None:
    """The cells for the last column, or None where they do not suffice."""
    if width is None:
        return widths[-1]
    room = width - sum(widths[:-1]) - len(GAP) * (len(widths) - 1)
    least = min(widths[-1], WRAPS_FROM) if last.wraps else widths[-1]
    return min(room, widths[-1]) if room >= least else None


def flow(parts: Iterable[Cell], width: int | None, indent: str = "    ", gap: str = GAP) -> list[Text]:
    """The parts side by side; what does not fit goes to further, indented lines, broken between parts."""
    lines = [Text()]
    for part in map(_text, parts):
        if not lines[-1].plain.strip():
            lines[-1].append(part)
        elif width is None or lines[-1].cell_len + len(gap) + part.cell_len <= width:
            lines[-1].append(gap).append(part)
        else:
            lines.append(Text(indent).append(part))
    return [piece for line in lines for piece in wrap(line, width, indent)]


def fields(pairs: Iterable[tuple[str, Cell]], width: int | None, indent: str = "  ") -> list[Text]:
    """`name   value` lines with the names aligned and long values wrapped under themselves; pairs with an
    empty value are left out."""
    kept = [(name, value) for name, cell in pairs if (value := _text(cell)).plain]
    size = max((len(name) for name, _ in kept), default=0)
    lines: list[Text] = []
    for name, value in kept:
        start = Text(f"{indent}{name.ljust(size)}{GAP}", "dim")
        lines += wrap(Text.assemble(start, value), width, " " * start.cell_len)
    return lines


def wrap(line: Text, width: int | None, indent: str) -> list[Text]:
    """The line, broken at spaces so that it fits, what follows the first break being indented."""
    if width is None or line.cell_len <= width:
        return [line]
    first, *_ = _folded(line, width)
    rest = line[len(first.plain) :]
    rest = rest[len(rest.plain) - len(rest.plain.lstrip()) :]
    return [first, *(Text(indent).append(piece) for piece in _folded(rest, width - len(indent)))]


def _folded(text: Text, width: int) -> list[Text]:
    lines = list(text.wrap(_wrapping, max(width, 1), overflow="fold")) or [Text()]
    for line in lines:
        line.rstrip()
    return lines


def _row(columns: Sequence[Column], row: Sequence[Text], sizes: Sequence[int]) -> list[Text]:
    line = Text()
    for column, cell, size in zip(columns[:-1], row[:-1], sizes[:-1], strict=True):
        padding = " " * (size - cell.cell_len)
        line.append(Text.assemble(padding, cell, GAP) if column.right else Text.assemble(cell, padding, GAP))
    indent = " " * line.cell_len
    first, *more = _folded(row[-1], sizes[-1])
    line.append(first).rstrip()
    return [line, *(Text(indent).append(piece) for piece in more)]


def _block(columns: Sequence[Column], row: Sequence[Text], width: int | None) -> list[Text]:
    parts = [
        Text.assemble((f"{column.title} ", "dim"), cell) if column.named else cell
        for column, cell in zip(columns, row, strict=True)
        if cell.plain
    ]
    return flow(parts, width)


def _text(cell: Cell) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)
