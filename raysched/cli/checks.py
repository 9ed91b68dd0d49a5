"""What `raysched doctor` found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from raysched.cli.tables import wrap

if TYPE_CHECKING:
    from raysched.cluster import Check


def check_lines(checks: Sequence[Check], width: int | None) -> list[Text]:
    """A line a check, and under a bad one what to do."""
    size = max((len(check.name) for check in checks), default=0)
    lines: list[Text] = []
    for check in checks:
        mark = ("ok  ", "green") if check.ok else ("bad ", "bold red")
        start = f"{check.name.ljust(size)}  "
        lines += wrap(Text.assemble(mark, start, check.detail), width, " " * (len(start) + 4))
        if not check.ok and check.hint:
            lines += wrap(Text(f"    -> {check.hint}"), width, " " * 7)
    return lines
