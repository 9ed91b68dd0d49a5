"""What `raysched vm` prints for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.text import Text

from raysched.cli.tables import Column, table
from raysched.cli.words import clean
from raysched.client import Json

COLUMNS = (
    Column("host"),
    Column("address", named=True),
    Column("state"),
    Column("GPUs", named=True),
    Column("labels", named=True),
    Column("jobs", right=True, named=True),
    Column("why", wraps=True),
)
STYLES = {"ready": "green", "out": "red", "cordoned": "yellow", "leaving": "yellow", "new": "dim"}


def host_lines(hosts: Sequence[Json], width: int | None) -> list[Text]:
    """A line a host."""
    if not hosts:
        return [Text("no host: `raysched vm add HOST` adds one, besides this machine")]
    return table(COLUMNS, [_row(host) for host in hosts], width)


def _row(host: Json) -> list[str | Text]:
    user = f"{host['user']}@" if host["user"] else ""
    port = f":{host['port']}" if host["port"] else ""
    way = f" by {host['jump']}" if host["jump"] else ""
    gpus = ", ".join(f"{count} x {model}" for model, count in Counter(host["gpus"]).items())
    state = Text(host["state"], STYLES[host["state"]])
    why = clean(host["reason"])
    labels = ", ".join(f"{name}={value}" for name, value in host["labels"].items())
    address = f"{user}{host['address']}{port}{way}"
    return [host["name"], address, state, gpus or "-", labels or "-", str(host["jobs"]), why]


def check_lines(checks: Sequence[Json], width: int | None) -> list[Text]:
    """A line a host that was tried."""
    if not checks:
        return host_lines([], width)
    columns = (Column("host"), Column("state"), Column("why", wraps=True))
    rows: list[list[str | Text]] = []
    for check in checks:
        state = Text("ok", "green") if check["ok"] else Text("out", "red")
        rows.append([check["name"], state, clean(check["reason"])])
    return table(columns, rows, width)
