"""What `raysched cluster` prints for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from raysched.cli.tables import Column, table
from raysched.cli.vm_lines import STYLES
from raysched.cli.words import clean
from raysched.client import Json

COLUMNS = (
    Column("cluster"),
    Column("host"),
    Column("type", named=True),
    Column("address", named=True),
    Column("backends", named=True),
    Column("state"),
    Column("jobs", right=True, named=True),
    Column("why", wraps=True),
)


def cluster_lines(clusters: Sequence[Json], width: int | None) -> list[Text]:
    """A line a machine."""
    if not clusters:
        return [Text("no cluster: `raysched cluster up FILE` makes one")]
    return table(COLUMNS, [row for cluster in clusters for row in _rows(cluster)], width)


def _rows(cluster: Json) -> list[list[str | Text]]:
    rows: list[list[str | Text]] = [
        [
            cluster["name"],
            each["host"],
            each["type"],
            each["address"] or "-",
            ", ".join(each["backends"]) or "-",
            Text(each["state"], STYLES.get(each["state"], "dim")),
            str(each["jobs"]),
            clean(each["reason"]),
        ]
        for each in cluster["machines"]
    ]
    return rows or [[cluster["name"], "-", "-", "-", "-", Text("no machine", "dim"), "0", ""]]
