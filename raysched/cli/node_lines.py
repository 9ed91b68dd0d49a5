"""What `raysched node` prints for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from raysched.cli.tables import Column, table, wrap
from raysched.cli.words import clean
from raysched.client import Json

LEFT = (Column("who"), Column("why", wraps=True))


def drain_lines(node: str, left: Sequence[Json], width: int | None, plan: bool) -> list[Text]:
    """How far a node is drained, or would be, and a table of who is left."""
    stay = [one for one in left if one["why"]]
    if plan:
        head = f"{node}: {len(left) - len(stay)} would leave, {len(stay)} would stay"
    elif left:
        head = f"{node} is cordoned; {len(stay)} stay, {len(left) - len(stay)} have not ended yet"
    else:
        head = f"{node} is drained: nobody is left"
    rows = [[clean(one["display"]), clean(one["why"]) or ("would leave" if plan else "ends")] for one in left]
    return [*wrap(Text(head), width, "  "), *(table(LEFT, rows, width) if rows else [])]
