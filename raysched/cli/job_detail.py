"""One job in full: its state, its lease, its times; and why it waits."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from rich.text import Text

from raysched.cli.gpu_map import SHORTEST
from raysched.cli.job_list import by_state, job_table, state_text
from raysched.cli.tables import Cell, Column, fields, table, wrap
from raysched.cli.words import clean, count, duration, instant, memory, percent
from raysched.client import Json

PLAN = [
    Column("job"),
    Column("asks for"),
    Column("backend"),
    Column("outcome"),
    Column("isolation"),
    Column("where"),
    Column("why", wraps=True),
]


def jobs_detail(jobs: Sequence[Json], width: int | None) -> list[Text]:
    """The lines of `raysched status JOB`: one job in full, or all elements of an array."""
    return _job_detail(jobs[0], width) if len(jobs) == 1 else _array_detail(jobs, width)


def submitted(jobs: Sequence[Json]) -> list[str]:
    """What `submit` answers: a line a job or array, with the id to come back to it."""
    groups: dict[str, list[Json]] = {}
    for job in jobs:
        groups.setdefault(job["group"], []).append(job)
    return [
        f"submitted {clean(members[0]['name'])} as {group}"
        + (f" ({len(members)} jobs)" if len(members) > 1 else "")
        for group, members in groups.items()
    ]


def _job_detail(job: Json, width: int | None) -> list[Text]:
    heading = Text.assemble((clean(job["display"]), "bold"), "  ", job["id"], "  ", state_text(job["state"]))
    return [
        *wrap(heading, width, "    "),
        *fields([*_about(job), *_times(job), *_lease(job["lease"], width), *_ranks(job)], width),
    ]


def _array_detail(jobs: Sequence[Json], width: int | None) -> list[Text]:
    first = jobs[0]
    heading = Text.assemble((clean(first["name"]), "bold"), "  ", first["group"], "  ", by_state(jobs))
    return [*wrap(heading, width, "    "), *job_table(jobs, width)]


def explanation(answer: Json, width: int | None) -> list[Text]:
    """The lines of `raysched explain`."""
    heading = Text.assemble(
        (clean(answer["display"]), "bold"), "  ", answer["id"], "  ", state_text(answer["state"])
    )
    pairs = [
        ("why", sentence(answer["why"])),
        ("short of", sentence(answer["short_of"])),
        ("nearest fit", sentence(answer["nearest"])),
        ("smallest change", sentence(answer["change"])),
        ("get in", clean(answer["enter"] or "")),
    ]
    return [*wrap(heading, width, "    "), *fields(pairs, width)]


def plan_lines(plans: Sequence[Json], width: int | None, with_env: bool) -> list[Text]:
    """The lines of `raysched plan`."""
    lines = table(PLAN, [_plan_row(plan, width) for plan in plans], width)
    if with_env:
        for plan in filter(lambda plan: plan["env"], plans):
            lines += [Text(), Text(f"environment of {clean(plan['display'])}", "bold")]
            for name, value in plan["env"].items():
                lines += wrap(Text(f"  {name}={clean(value)}"), width, "    ")
    return lines


def script_lines(plans: Sequence[Json]) -> list[Text]:
    """What would be sent to sites, byte for byte but for characters that would change a terminal."""
    sent = [plan for plan in plans if plan["script"]]
    if not sent:
        return [Text(), Text("nothing would be sent to a site")]
    lines: list[Text] = []
    for plan in sent:
        heading = Text(f"what would be sent to {plan['backend']} for {clean(plan['display'])}", "bold")
        lines += [Text(), heading, *(Text(_indented(line)) for line in plan["script"].splitlines())]
    return lines


def _indented(line: str) -> str:
    return line[: len(line) - len(line.lstrip())] + clean(line)


def place(answer: Json, width: int | None) -> str:
    """What one node gives: `node-a: GPU 0 GPU-3f2a8c1d A100-80GB, 25 %, 19.9 GiB; 4 CPUs`. On a terminal a
    GPU's UUID is short, as everywhere."""
    length = None if width is None else SHORTEST
    gpus = [
        f"GPU {gpu['index']} {gpu['uuid'][:length]} {gpu['model']}, {_part(gpu)}, {memory(gpu['memory_mib'])}"
        for gpu in answer["gpus"]
    ]
    host = [count(answer["cpus"], "CPU")] if answer["cpus"] else []
    host += [f"{memory(answer['memory_mib'])} host memory"] if answer["memory_mib"] else []
    return f"{clean(answer['node'])}: {'; '.join([*gpus, *host]) or 'no GPU'}"


def _part(gpu: Json) -> str:
    """The share that a lease has of a GPU, or its MIG instance there."""
    return percent(gpu["share"]) if gpu["profile"] is None else f"MIG {gpu['profile']} at {gpu['start']}"


def sentence(value: Any) -> str:
    """An answer's text, or its parts side by side."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{name} {sentence(part)}" for name, part in value.items())
    if isinstance(value, list):
        return "; ".join(map(sentence, value))
    return clean(value)


def _about(job: Json) -> Iterable[tuple[str, Cell]]:
    yield "reason", clean(job["reason"])
    yield "warning", Text(clean(job["warning"]), "yellow")
    yield "exit code", "" if job["exit_code"] is None else str(job["exit_code"])
    yield "asks for", clean(job["asks"])
    yield "command", _command(job["spec"].get("entrypoint"))
    yield "backend", job["backend"]
    yield "queue", f"{job['queue']}, priority {job['priority']}"
    yield "user", clean(job["user"])
    yield "attempt", str(job["attempt"] or "")


def _times(job: Json) -> Iterable[tuple[str, Cell]]:
    yield "submitted", instant(job["submitted"])
    yield "started", instant(job["started"])
    yield "ended", instant(job["ended"])
    yield ("waits" if job["state"] == "waiting" else "waited"), duration(job["wait_s"], parts=2)
    yield ("ran" if job["ended"] else "runs for"), duration(job["run_s"], parts=2) if job["started"] else ""


def _lease(lease: Json | None, width: int | None) -> Iterable[tuple[str, Cell]]:
    if lease is None:
        return
    yield "lease", f"{lease['id']}, {lease['state']}"
    yield "sharing", lease["sharing"]
    yield "isolation", _held(lease)
    for given in lease["places"]:
        yield "on", place(given, width)


def _held(granted: Json) -> str:
    """Whether a lease or a plan is hard or soft, and what holds the tenant, where that is known."""
    words = (granted["isolation"], granted["mechanism"].replace("_", " ") if granted["mechanism"] else "")
    return ", by ".join(filter(None, words))


def _ranks(job: Json) -> Iterable[tuple[str, Cell]]:
    """The ranks of a job on several nodes: `rank 1  running on node-b`."""
    if len(job["ranks"]) < 2:
        return
    for rank in job["ranks"]:
        code = "" if rank["exit_code"] is None else f", exit code {rank['exit_code']}"
        state = state_text("failed" if rank["state"] == "lost" else rank["state"])
        state.plain = rank["state"]
        yield f"rank {rank['rank']}", Text.assemble(state, f" on {clean(rank['node'])}{code}")


def _command(entrypoint: Any) -> str:
    if entrypoint is None:
        return ""
    return clean(entrypoint if isinstance(entrypoint, str) else shlex.join(entrypoint))


def _plan_row(plan: Json, width: int | None) -> list[Cell]:
    return [
        Text(clean(plan["display"]), "bold"),
        clean(plan["asks"]),
        plan["backend"],
        plan["outcome"],
        _held(plan),
        "; ".join(place(given, width) for given in plan["places"]),
        clean(plan["why"]),
    ]
