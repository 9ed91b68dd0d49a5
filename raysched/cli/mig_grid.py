"""`raysched mig`: the memory slices of each GPU as a row of cells, and the steps to another cut."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from raysched.cli.gpu_map import shortened
from raysched.cli.tables import wrap
from raysched.cli.words import clean, memory
from raysched.client import Json

CELL = 9
"""Characters of a memory slice."""
COLOURS = {"held": "cyan", "free": "green", "foreign": "yellow"}


def mig_lines(answer: Json, width: int | None) -> list[Text]:
    """The lines of `raysched mig`."""
    gpus = [(node, gpu) for node in answer["nodes"] for gpu in node["gpus"]]
    if not gpus:
        return [Text("no GPU here can be cut by MIG")]
    uuids = [gpu["uuid"] for _, gpu in gpus]
    names = {uuid: uuid for uuid in uuids} if width is None else shortened(uuids)
    return [line for node, gpu in gpus for line in _gpu(node, gpu, names[gpu["uuid"]], width)]


def _gpu(node: Json, gpu: Json, name: str, width: int | None) -> list[Text]:
    mig = gpu["mig"]
    mode = "MIG mode on" if mig["enabled"] else "MIG mode off"
    where = f"{clean(node['name'])}/{gpu['index']}"
    heading = Text.assemble((where, "bold"), f"  {name}  {gpu['model']}  ", (mode, "dim"))
    return [
        *wrap(heading, width, "    "),
        *(_grid(mig, width) if mig["enabled"] else []),
        *_instances(mig, width),
        *_rest(gpu, width),
    ]


def _grid(mig: Json, width: int | None) -> list[Text]:
    """The slices from left to right, each instance as wide as it is large."""
    cell = max(3, min(CELL, ((width or 100) - 4) // max(1, mig["cells"])))
    row, at = Text("    "), 0
    for instance in mig["instances"]:
        row.append(".".center(cell) * (instance["start"] - at), "dim")
        size = instance["size"] or 1
        row.append(_box(instance["profile"], size * cell), COLOURS[instance["state"]])
        at = instance["start"] + size
    row.append(".".center(cell) * (mig["cells"] - at), "dim")
    numbers = Text("    " + "".join(str(number).center(cell) for number in range(mig["cells"])), "dim")
    return [numbers, row]


def _box(name: str, size: int) -> str:
    """`[ 3g.40gb ]`, as wide as the instance; its name cut short where it does not fit."""
    return f"[{name[: size - 2].center(size - 2)}]"


def _instances(mig: Json, width: int | None) -> list[Text]:
    lines: list[Text] = []
    for instance in mig["instances"]:
        words = {"free": "free", "foreign": "used without a lease"}
        who = clean(instance["display"]) if instance["display"] else words.get(instance["state"], "held")
        made = "" if instance["uuid"] else ", to be made"
        uuid = f"  {instance['uuid']}" if width is None and instance["uuid"] else ""
        lines += wrap(Text(f"    {_part(instance)}  {who}{made}{uuid}"), width, "        ")
    return lines


def _part(instance: Json) -> str:
    """`3g.40gb at 4-7, 39.3 GiB`."""
    start, size = instance["start"], instance["size"] or 1
    cells = str(start) if size == 1 else f"{start}-{start + size - 1}"
    return f"{instance['profile']} at {cells}, {memory(instance['memory_mib'])}"


def _rest(gpu: Json, width: int | None) -> list[Text]:
    """What there is room for, or why for nothing; and what the driver refused."""
    mig = gpu["mig"]
    fits = [f"{number} x {name}" for name, number in mig["fits"].items() if number]
    if fits:
        line = f"    room for {' or '.join(fits)}"
    elif gpu["mode"] not in ("free", "mig"):
        line = f"    no room: it is {gpu['mode']}"
    elif not mig["enabled"] and not mig["switchable"]:
        line = "    its MIG mode can't be switched by raysched here: only root may"
    else:
        line = "    no room for another instance"
    refused = [Text(f"    refused by the driver: {clean(reason)}", "yellow") for reason in mig["refusals"]]
    return [piece for each in (Text(line, "dim"), *refused) for piece in wrap(each, width, "      ")]


def step_lines(answer: Json, width: int | None, plan: bool) -> list[Text]:
    """The lines of `raysched mig set`: what is done, or would be."""
    name = f"{clean(answer['node'])}/{answer['index']} {answer['gpu']} ({answer['model']})"
    steps = [
        *_steps("destroy", answer["destroy"]),
        *([f"turn the MIG mode {answer['mode']}"] if answer["mode"] else []),
        *_steps("create", answer["create"]),
    ]
    if not steps:
        return wrap(Text(f"{name} is cut so already"), width, "    ")
    lines = [f"{name}: would" if plan else f"{name}: done"]
    lines += [f"  {step}" for step in [*steps, *_steps("keep", answer["keep"])]]
    return [piece for line in lines for piece in wrap(Text(line), width, "    ")]


def _steps(verb: str, instances: Sequence[Json]) -> list[str]:
    return [f"{verb} {_part(instance)}" for instance in instances]
