"""`raysched gpus`: each GPU, how full it is, and who holds what of it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

from rich.text import Text

from raysched.cli.tables import flow, wrap
from raysched.cli.words import clean, count, duration, memory, memory_of, percent
from raysched.client import Json

BAR = 20
"""Cells of a whole GPU."""
SHORTEST = len("GPU-") + 8
"""Cells of a UUID on a terminal: as many as in the sentences of `queue` and `explain`."""
WIDE = 76
"""Cells that the aligned lines of a GPU need; below, they flow."""

COLOURS = {
    "free": "dim",
    "exclusive": "magenta",
    "shared": "cyan",
    "mig": "blue",
    "outside": "yellow",
    "faulty": "red",
    "gone": "red",
}


def gpu_map(answer: Json, width: int | None) -> list[Text]:
    """The lines of the map. Without a width the UUIDs are whole, else as short as tells them apart."""
    nodes: list[Json] = answer["nodes"]
    if not nodes:
        return [Text("no node has joined yet")]
    uuids = [gpu["uuid"] for node in nodes for gpu in node["gpus"]]
    names = {uuid: uuid for uuid in uuids} if width is None else shortened(uuids)
    lines: list[Text] = []
    for node in nodes:
        lines += flow(_heading(node), width, gap="   ")
        if node["problem"]:
            lines += wrap(Text(f"  {clean(node['problem'])}", "red"), width, "  ")
        for gpu in node["gpus"]:
            lines += _gpu(gpu, names[gpu["uuid"]], width)
    return lines


def shortened(uuids: Sequence[str]) -> dict[str, str]:
    """Each UUID's shortest start that no other one has, at least `GPU-` and eight digits."""
    length = SHORTEST
    while len({uuid[:length] for uuid in uuids}) < len(set(uuids)):
        length += 1
    return {uuid: uuid[:length] for uuid in uuids}


def bar(share: int) -> Text:
    """How much of a GPU's compute is held."""
    full, empty = ("█", "░") if _can_print("█░") else ("#", ".")
    filled = min(BAR, -(-share * BAR // 10_000))
    return Text.assemble((full * filled, "cyan"), (empty * (BAR - filled), "dim"))


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _heading(node: Json) -> list[Text]:
    models = Counter(gpu["model"] for gpu in node["gpus"])
    cpus, host = node["cpus"], node["memory_mib"]
    parts = [
        Text(clean(node["name"]), "bold"),
        Text("" if node["alive"] else "lost", "red"),
        Text("lent" if node["lease"] else "", "cyan"),
        Text("cordoned" if node["cordoned"] else "", "yellow"),
        Text(clean(node["closed"]), "yellow"),
        Text(", ".join(f"{number} x {model}" for model, number in models.items()) or "no GPUs"),
        Text("simulated" if node["simulated"] else "", "yellow"),
        Text(_driver(node)),
        Text(", ".join(node["backends"])),
        Text(f"{cpus['used']:g} of {count(cpus['total'], 'CPU')}"),
        Text(memory_of(host["used"], host["total"])),
    ]
    return [part for part in parts if part.plain]


def _driver(node: Json) -> str:
    if not node["driver"]:
        return ""
    return f"driver {node['driver']}" + (f" (CUDA {node['cuda']})" if node["cuda"] else "")


def _gpu(gpu: Json, name: str, width: int | None) -> list[Text]:
    mode = _mode(gpu)
    held = memory_of(gpu["memory_held_mib"], gpu["memory_mib"])
    label = Text.assemble(f"{gpu['index']:>2}  ", (name, "bold"))
    state = Text(mode.ljust(len("exclusive")), COLOURS[mode])
    share = Text(percent(gpu["share_used"]).rjust(len("99.9 %")))
    parts = [label, state, bar(gpu["share_used"]), share, Text(held.rjust(len("100.0 of 100.0 GiB")))]
    if width is None or width >= WIDE:
        lines = [Text("  ").join(parts)]
    else:
        lines = flow([label, mode, share.plain.strip(), parts[2], held], width)
    return [*lines, *_rows(_held(gpu, width), width), *_cutting(gpu, width), *_others(gpu, width)]


def _mode(gpu: Json) -> str:
    """The word for what a GPU is used for now."""
    if gpu["fault"]:
        return "faulty"
    if not gpu["present"]:
        return "gone"
    return "outside" if gpu["outside"] else gpu["mode"]


def gpu_state(gpu: Json) -> Text:
    """That word in its colour."""
    mode = _mode(gpu)
    return Text(mode, COLOURS[mode])


def _held(gpu: Json, width: int | None) -> list[list[str]]:
    """A row a tenant; of a GPU that is cut, a row an instance, free ones too, in a pipe with its UUID."""
    if gpu["mode"] != "mig" and not _instances(gpu):
        return [_tenant(tenant) for tenant in gpu["tenants"]]
    tenants = {tenant["job"]: tenant for tenant in gpu["tenants"]}
    rows = [(there, _instance(there, tenants.get(there["job"]))) for there in _instances(gpu)]
    return [[*row, there["uuid"] or ""] if width is None else row for there, row in rows]


def _instances(gpu: Json) -> list[Json]:
    return gpu["mig"]["instances"] if gpu["mig"] else []


def _instance(instance: Json, tenant: Json | None) -> list[str]:
    """The memory slices that an instance has, its profile, and who has it."""
    start, size = instance["start"], instance["size"] or 1
    cells = str(start) if size == 1 else f"{start}-{start + size - 1}"
    place = [cells.rjust(len("10-11")), instance["profile"]]
    if tenant is None:
        words = {"free": "free", "foreign": "used without a lease"}
        return [*place, words[instance["state"]], "", "", "", memory(instance["memory_mib"])]
    _, name, *rest = _tenant({**tenant, "memory_mib": instance["memory_mib"]})
    return [*place, name if instance["uuid"] else f"{name}, to be made", *rest]


def _cutting(gpu: Json, width: int | None) -> list[Text]:
    """What could still be had of a GPU that is cut."""
    if gpu["mig"] is None or not gpu["mig"]["enabled"]:
        return []
    fits = [f"{number} x {name}" for name, number in gpu["mig"]["fits"].items() if number]
    line = f"      room for {' or '.join(fits)}" if fits else "      no room for another instance"
    return wrap(Text(line, "dim"), width, "        ")


def _rows(rows: Sequence[Sequence[str]], width: int | None) -> list[Text]:
    if not rows:
        return []
    sizes = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    aligned = [
        Text("      " + "  ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)).rstrip())
        for row in rows
    ]
    if width is None or max(line.cell_len for line in aligned) <= width:
        return aligned
    return [line for row in rows for line in flow(["    " + row[0].strip(), *row[1:]], width, indent=" " * 8)]


def _tenant(tenant: Json) -> list[str]:
    used, held = tenant["memory_used_mib"], tenant["memory_mib"]
    return [
        percent(tenant["share"]).rjust(len("99.9 %")),
        clean(tenant["display"]),
        clean(tenant["user"]),
        tenant["backend"],
        duration(tenant["for_s"]),
        memory(held) if used is None else f"{memory_of(used, held)} used",
    ]


def _others(gpu: Json, width: int | None) -> list[Text]:
    lines: list[Text] = []
    if gpu["fault"]:
        lines.append(Text(f"      not used: {clean(gpu['fault'])}", "red"))
    if not gpu["present"]:
        lines.append(Text("      its node no longer reports it", "red"))
    if gpu["sharing"] == "time_slice":
        turns = count(gpu["replicas"], "turn")
        lines.append(Text(f"      time-sliced: {len(gpu['tenants'])} of {turns} taken", "dim"))
    if gpu["sharing"] == "mps":
        lines.append(Text("      under MPS", "dim"))
    if gpu["outside"]:
        lines.append(Text("      held in Ray by somebody who did not ask raysched", "yellow"))
    if gpu["foreign_mib"]:
        lines.append(Text(f"      {memory(gpu['foreign_mib'])} used by processes without a lease", "yellow"))
    return [piece for line in lines for piece in wrap(line, width, "      ")]
