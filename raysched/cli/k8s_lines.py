"""What `raysched k8s` prints for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from raysched.cli.tables import Column, table, wrap
from raysched.cli.words import clean, resources
from raysched.client import Json

OFFERS = (
    Column("each has", right=True, named=True),
    Column("GPU"),
    Column("as", named=True),
    Column("shared by", named=True),
    Column("held by", named=True),
)
REQUESTS = (Column("a request for"), Column("becomes", wraps=True))
MOST = 4
"""Names of nodes that are shown of a group."""


def sharing_lines(answer: Json, width: int | None) -> list[Text]:
    """A table a group of nodes, and one of requests."""
    lines: list[Text] = []
    for group in answer["groups"]:
        lines += [
            Text(_nodes(group["nodes"], group["lost"]), "bold"),
            *_offers(group["offers"], width),
            Text(),
        ]
    rows = [[row["asks"], _becomes(row)] for row in answer["requests"]]
    return [*lines, *table(REQUESTS, rows, width)]


def _nodes(names: Sequence[str], lost: Sequence[str]) -> str:
    there = f"{len(names)} node{'s' * (len(names) != 1)}: {_named(names)}" if names else "no node"
    return f"{there}; lost: {_named(lost)}" if lost else there


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return f"{', '.join(names[:MOST])}{more}"


def _offers(offers: Sequence[Json], width: int | None) -> Iterator[Text]:
    if not offers:
        yield Text("no GPU", "dim")
        return
    yield from table(OFFERS, [_offer(one) for one in offers], width)


def _offer(one: Json) -> list[str | Text]:
    shares = one["shares"] or "-"
    if one["parts"]:
        shares = f"{shares}, {one['parts']} parts"
    held = Text("nothing", "yellow") if one["held_by"] is None else Text(HOLDS.get(one["held_by"], ""))
    return [str(one["count"]), clean(one["model"]), one["resource"], shares, held]


HOLDS = {
    "exclusive": "whole",
    "mig": "MIG",
    "mps": "MPS",
    "hami": "HAMi",
    "nvfractions": "NvFractions",
}


def _becomes(row: Json) -> Text:
    if row["refused"] is None:
        return Text(clean(row["pod"]))
    return Text.assemble(("refused: ", "red"), clean(row["refused"]))


def resharing_lines(nodes: Sequence[Json], width: int | None) -> list[Text]:
    """The lines of `raysched k8s sharing set`: what is done at each node, or would be."""
    return [piece for node in nodes for line in _resharing(node) for piece in wrap(line, width, "    ")]


def _resharing(node: Json) -> Iterator[Text]:
    name, done = clean(node["node"]), node["state"] == "done"
    if done:
        yield Text(f"{name}: {node['to']}, {resources(node['offers'])}")
        return
    yield Text(f"{name}: would be {node['to']}", "bold")
    yield Text(f"  {resources(node['offers'])} -> {resources(node['wanted'])}")
    yield from (Text(f"  write {clean(change)}") for change in node["changes"])
    for one in node["left"]:
        why = f", which stays: {clean(one['why'])}" if one["why"] else ""
        yield Text(f"  in use by {clean(one['display'])}{why}", "yellow")
