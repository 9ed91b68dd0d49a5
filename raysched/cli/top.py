"""`raysched top`: what each GPU and each tenant has, beside what it uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from rich.text import Text

from raysched.cli.gpu_map import gpu_state, shortened
from raysched.cli.tables import Cell, Column, flow, table
from raysched.cli.words import clean, clock, memory, memory_of, percent
from raysched.client import Json

COLUMNS = [
    Column("GPU, job"),
    Column("has", right=True, named=True),
    Column("busy", right=True, named=True),
    Column("1 min", right=True, named=True, extra=True),
    Column("memory used", right=True),
    Column("user", extra=True),
    Column("remark", wraps=True),
]
HOT = 85
"""Degrees Celsius from which a temperature is coloured: cards begin to slow down there."""


def top_lines(answer: Json, width: int | None) -> list[Text]:
    """A heading a node, and below it a line for each GPU and each who uses it."""
    nodes: list[Json] = answer["nodes"]
    if not any(node["gpus"] for node in nodes):
        return [Text("no GPU has joined yet")]
    uuids = [gpu["uuid"] for node in nodes for gpu in node["gpus"]]
    names = {uuid: uuid for uuid in uuids} if width is None else shortened(uuids)
    rows = [row for node in nodes for row in _node(node, names, heading=len(nodes) > 1)]
    return [*flow(_summary(nodes), width), *table(COLUMNS, rows, width)]


def _summary(nodes: Iterable[Json]) -> list[Cell]:
    """All GPUs in a line: what is granted, and what is used of them."""
    gpus = [gpu for node in nodes for gpu in node["gpus"]]
    granted = sum(gpu["share_used"] for gpu in gpus) // len(gpus)
    measured = [gpu["busy"] for gpu in gpus if gpu["busy"] is not None]
    busy = percent(sum(measured) // len(measured)) if measured else "not measured"
    used = [gpu for gpu in gpus if gpu["memory_used_mib"] is not None]
    parts: list[Cell] = [f"{len(gpus)} GPUs" if len(gpus) > 1 else "1 GPU", f"granted {percent(granted)}"]
    parts.append(f"busy {busy}")
    if used:
        total = memory_of(sum(gpu["memory_used_mib"] for gpu in used), sum(gpu["memory_mib"] for gpu in used))
        parts.append(f"memory {total}")
    return parts


def _node(node: Json, names: Mapping[str, str], heading: bool) -> Iterator[list[Cell]]:
    if heading:
        yield [Text(clean(node["name"]), "bold"), *[""] * (len(COLUMNS) - 2), "" if node["alive"] else "lost"]
    for gpu in node["gpus"]:
        yield from _rows(gpu, names[gpu["uuid"]])


def _rows(gpu: Json, name: str) -> Iterator[list[Cell]]:
    yield _gpu(gpu, name)
    yield from (_tenant(tenant) for tenant in gpu["tenants"])
    yield from (_stranger(stranger) for stranger in gpu["strangers"])


def _gpu(gpu: Json, name: str) -> list[Cell]:
    return [
        Text.assemble(f"{gpu['index']:>2} ", (name, "bold")),
        percent(gpu["share_used"]),
        _part(gpu["busy"]),
        _part(gpu["busy_mean"]),
        _of(gpu["memory_used_mib"], gpu["memory_mib"]),
        "",
        Text(", ").join(_condition(gpu)),
    ]


def _condition(gpu: Json) -> Iterator[Text]:
    yield gpu_state(gpu)
    if gpu["power_w"] is not None:
        yield Text(f"{gpu['power_w']} W")
    if gpu["temperature_c"] is not None:
        yield Text(f"{gpu['temperature_c']} °C", "red" if gpu["temperature_c"] >= HOT else "")


def _tenant(tenant: Json) -> list[Cell]:
    return [
        f"   {clean(tenant['display'])}",
        percent(tenant["share"]),
        _part(tenant["busy"]),
        _part(tenant["busy_mean"]),
        _of(tenant["memory_used_mib"], tenant["memory_mib"]),
        clean(tenant["user"]),
        _excess(tenant["over"]),
    ]


def _excess(over: Json | None) -> Text:
    if over is None:
        return Text()
    end = f", ends at {clock(over['ends'])} unless it uses less" if over["ends"] else ""
    return Text(f"over its memory{end}", "red")


def _stranger(stranger: Json) -> list[Cell]:
    lease = stranger["lease"]
    used = stranger["memory_mib"]
    return [
        f"   pid {stranger['pid']}",
        "",
        "",
        "",
        "?" if used is None else memory(used),
        clean(stranger["user"]),
        Text(
            f"{clean(stranger['name'])}: {'not on this GPU: ' + clean(lease) if lease else 'no lease'}",
            "yellow",
        ),
    ]


def _part(share: int | None) -> Cell:
    return Text("-", "dim") if share is None else percent(share)


def _of(used: int | None, total: int) -> Cell:
    text = f"- of {memory(total)}" if used is None else memory_of(used, total)
    return Text(text, "red" if used is not None and used > total else "")


def watch(look: Callable[[int], list[Text]], every: float) -> None:
    """Show what `look` answers for a width, again and again, on the whole terminal, until Ctrl-C."""
    import time

    from rich.console import Console, Group
    from rich.live import Live

    console = Console(highlight=False)
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(Group(*look(console.width)[: console.height]), refresh=True)
                time.sleep(every)
    except KeyboardInterrupt:
        return
