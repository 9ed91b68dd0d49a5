"""Jobs as a table: of all, of an array, and of those that wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.text import Text

from raysched.cli.tables import Cell, Column, flow, table
from raysched.cli.words import clean, count, duration, instant
from raysched.client import Json

ENDED = frozenset({"succeeded", "failed", "cancelled"})
ENDED_SHOWN = 10
"""How many ended jobs a terminal shows."""

COLOURS = {
    "waiting": "yellow",
    "starting": "cyan",
    "running": "green",
    "stopping": "yellow",
    "succeeded": "dim",
    "failed": "red",
    "cancelled": "dim",
}
JOBS = [
    Column("id"),
    Column("job"),
    Column("state"),
    Column("for", right=True),
    Column("asks for"),
    Column("backend", extra=True),
    Column("user", extra=True),
    Column("where, or why", wraps=True),
]
WAITING = [
    Column("#", right=True),
    Column("job"),
    Column("id"),
    Column("asks for"),
    Column("waits", right=True, named=True),
    Column("why", wraps=True),
]


def state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(state, COLOURS.get(state, ""))


def by_state(jobs: Iterable[Json]) -> str:
    """`3 running, 5 waiting`, in the order of a job's life."""
    counts = Counter(job["state"] for job in jobs)
    return ", ".join(f"{counts[state]} {state}" for state in COLOURS if counts[state])


def system_summary(status: Json, address: str, jobs: Sequence[Json], width: int | None) -> list[Text]:
    """The first lines of `raysched status`."""
    parts: list[Cell] = [
        Text(f"raysched {status['version']}", "bold"),
        f"at {address}",
        f"up since {instant(status['since'])}",
    ]
    totals: list[Cell] = [
        f"{count(status['nodes'], 'node')}, {count(status['gpus']['total'], 'GPU')}",
        by_state(jobs) or "no jobs",
    ]
    return [*flow(parts, width), *flow(totals, width)]


def job_table(jobs: Sequence[Json], width: int | None) -> list[Text]:
    """One job a line."""
    return table(JOBS, [_row(job) for job in jobs], width)


def overview(jobs: Sequence[Json], width: int | None) -> list[Text]:
    """All jobs in a pipe; on a terminal an array is one line, and only the last ended ones are shown."""
    if not jobs:
        return []
    if width is None:
        return job_table(jobs, None)
    groups = [list(members) for _, members in groupby(jobs, key=lambda job: job["group"])]
    ended = [group for group in groups if all(job["state"] in ENDED for job in group)]
    hidden = {group[0]["group"] for group in ended[:-ENDED_SHOWN]}
    shown = [group for group in groups if group[0]["group"] not in hidden]
    lines = table(JOBS, [_row(g[0]) if len(g) == 1 else _array_row(g) for g in shown], width)
    if hidden:
        older = f"{len(hidden)} more that ended earlier: raysched status --all"
        lines += flow([Text(older, "dim")], width)
    return lines


def queue_table(waiting: Sequence[Json], width: int | None) -> list[Text]:
    """What waits, and why."""
    if not waiting:
        return [Text("nothing waits")]
    rows: list[list[Cell]] = [
        [
            str(entry["position"] or "-"),
            Text(clean(entry["display"]), "bold"),
            entry["id"],
            clean(entry["asks"]),
            duration(entry["waits_s"]),
            clean(entry["why"]),
        ]
        for entry in waiting
    ]
    return table(WAITING, rows, width)


def where(places: Sequence[Json]) -> str:
    """`node-a GPU 0, 1; node-b GPU 0`."""
    words: list[str] = []
    for place in places:
        indices = ", ".join(str(gpu["index"]) for gpu in place["gpus"])
        words.append(clean(place["node"]) + (f" GPU {indices}" if indices else ""))
    return "; ".join(words)


def how_long(job: Json) -> str:
    """How long the job has waited, or runs, or ran."""
    begun = job["state"] != "waiting" and job["started"]
    return duration(job["run_s"] if begun else job["wait_s"])


def _row(job: Json) -> list[Cell]:
    return [
        job["id"],
        Text(clean(job["display"]), "bold"),
        state_text(job["state"]),
        how_long(job),
        clean(job["asks"]),
        job["backend"],
        clean(job["user"]),
        _remark(job),
    ]


def _remark(job: Json) -> str:
    if job["lease"] and job["lease"]["state"] != "released" and job["state"] not in ENDED:
        return where(job["lease"]["places"]) or clean(job["reason"])
    return clean(job["reason"])


def _array_row(group: Sequence[Json]) -> list[Cell]:
    first = group[0]
    states = {job["state"] for job in group}
    state = state_text(first["state"]) if len(states) == 1 else Text("mixed")
    name = Text(f"{clean(first['name'])} ({count(len(group), 'job')})", "bold")
    longest = max(group, key=lambda job: job["run_s"] or 0)
    return [
        first["group"],
        name,
        state,
        how_long(longest),
        clean(first["asks"]),
        first["backend"],
        clean(first["user"]),
        by_state(group),
    ]
