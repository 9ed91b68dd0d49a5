"""What Slurm says of jobs and nodes, read from the JSON of squeue, sinfo, scontrol and slurmrestd. What
differs between the answers of its versions (22.05 to 26.05) is in this file and nowhere else.

| | 22.05 | from 23.02 on |
|---|---|---|
| a state | "RUNNING", flags beside it | ["RUNNING", "COMPLETING"] |
| a number | 5 | {"set": true, "infinite": false, "number": 5} |
| GRES of a job | gpu:a100:1(IDX:0) | the same, a list with an entry a node |
| GRES of a node | a text | the same; shards in use as (0/4,2/4) |
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_GRES = re.compile(r"(?P<name>\w+)(?::(?P<type>[^:(),]+))?:(?P<count>\d+)(?:\((?P<inside>[^)]*)\))?$")
_OUTSIDE = re.compile(r",(?![^(]*\))")
_INSIDE = re.compile(r",(?![^\[]*\])")
_RANGE = re.compile(r"\[([^\]]*)\]")


@dataclass(frozen=True, slots=True)
class Gres:
    """One kind of generic resource: `indices` are those in use, where Slurm tells them."""

    name: str
    type: str
    count: int
    indices: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """One job, one task of an array, or (`waiting`) all tasks of one that have not started. `id` is what
    scancel takes, `number` what the job itself is told; `gres` has an entry a node. `started` and `ended` are
    seconds since 1970, 0 where it did not; `words` is what Slurm says beside the `reason`; `preempted`:
    Slurm has begun to take it away, perhaps leaving it time."""

    id: str
    name: str
    comment: str
    states: frozenset[str]
    reason: str
    user: str
    nodes: tuple[str, ...] = ()
    gres: tuple[tuple[Gres, ...], ...] = ()
    task: int | None = None
    waiting: frozenset[int] | None = None
    cpus: int = 0
    memory: int = 0
    number: str = ""
    started: int = 0
    ended: int = 0
    words: str = ""
    preempted: bool = False

    @property
    def is_waiting_array(self) -> bool:
        """Whether this stands for several tasks; `waiting` is None where Slurm does not tell which."""
        return self.task is None and "_" in self.id

    @property
    def pending(self) -> bool:
        """Whether it has not started, or waits to be started again."""
        return bool(self.states & {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED"})

    @property
    def over(self) -> bool:
        """Whether it has ended and no process of it is left."""
        return bool(self.states & OVER) and "COMPLETING" not in self.states


OVER = frozenset(
    {
        "COMPLETED",
        "FAILED",
        "CANCELLED",
        "TIMEOUT",
        "PREEMPTED",
        "NODE_FAIL",
        "BOOT_FAIL",
        "DEADLINE",
        "OUT_OF_MEMORY",
        "LAUNCH_FAILED",
        "RECONFIG_FAIL",
        "REVOKED",
    }
)


@dataclass(frozen=True, slots=True)
class Node:
    """One node. `cpus` in cores, `memory` in MiB."""

    name: str
    states: frozenset[str]
    reason: str
    cpus: int
    memory: int
    gres: tuple[Gres, ...]
    used: tuple[Gres, ...]
    partitions: tuple[str, ...]


def errors(answer: Mapping[str, Any]) -> list[str]:
    """What went wrong, a sentence each. 22.05's commands tell of it here alone: without a controller they end
    with code 0 and no jobs at all."""
    return [_sentence(error) for error in answer.get("errors") or ()]


def _sentence(error: Mapping[str, Any]) -> str:
    """What went wrong, and where, if that says more."""
    what, where = str(error.get("error") or ""), str(error.get("description") or "")
    if what in ("", "Unspecified error") or what in where:
        return where or what or "it gave no reason"
    return f"{what} ({where})" if where else what


def jobs(answer: Mapping[str, Any]) -> list[Job]:
    """The jobs of `squeue --json`, or of slurmrestd's /jobs."""
    return [_job(record) for record in answer.get("jobs") or ()]


def _job(record: Mapping[str, Any]) -> Job:
    array, task = number(record.get("array_job_id")) or 0, number(record.get("array_task_id"))
    tasks = str(record.get("array_task_string") or "")
    plain = str(number(record["job_id"]))
    nodes = hostlist(str(record.get("nodes") or ""))
    return Job(
        id=f"{array}_{tasks if task is None else task}" if array and (tasks or task is not None) else plain,
        name=str(record.get("name") or ""),
        comment=_comment(record.get("comment")),
        states=_states(record.get("job_state")),
        reason=str(record.get("state_reason") or "None"),
        user=str(record.get("user_name") or ""),
        preempted=bool(number(record.get("preempt_time"))),
        words=str(record.get("state_description") or "").replace("_", " "),
        nodes=nodes,
        gres=tuple(gres(str(text)) for text in record.get("gres_detail") or ()),
        task=task if array else None,
        waiting=task_numbers(tasks) if array and task is None else None,
        cpus=number(record.get("cpus")) or 0,
        memory=_memory(record, len(nodes)),
        number=plain,
        started=number(record.get("start_time")) or 0,
        ended=number(record.get("end_time")) or 0,
    )


def _comment(value: Any) -> str:
    """From 23.02 on a job has several, ours among them."""
    return (
        str(value.get("job") or value.get("user") or "") if isinstance(value, Mapping) else str(value or "")
    )


def _memory(record: Mapping[str, Any], nodes: int) -> int:
    """MiB on each node."""
    if (each := number(record.get("memory_per_node"))) is not None and each:
        return each
    cpus = number(record.get("cpus")) or 0
    return (number(record.get("memory_per_cpu")) or 0) * cpus // max(1, nodes)


def nodes(answer: Mapping[str, Any]) -> list[Node]:
    """The nodes of `sinfo --json` (22.05), `scontrol show nodes --json` (later), or slurmrestd's /nodes."""
    return [_node(record) for record in answer.get("nodes") or ()]


def _node(record: Mapping[str, Any]) -> Node:
    flags = _states(record.get("state_flags"))
    return Node(
        name=str(record["name"]),
        states=_states(record.get("state")) | flags,
        reason=str(record.get("reason") or ""),
        cpus=number(record.get("cpus")) or 0,
        memory=number(record.get("real_memory")) or 0,
        gres=gres(str(record.get("gres") or "")),
        used=gres(str(record.get("gres_used") or "")),
        partitions=tuple(str(name) for name in record.get("partitions") or ()),
    )


def number(value: Any) -> int | None:
    """A number in either form; None where none is set."""
    if isinstance(value, Mapping):
        return int(value["number"]) if value.get("set") and not value.get("infinite") else None
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _states(value: Any) -> frozenset[str]:
    texts: Sequence[Any] = [value] if isinstance(value, str) else value or ()
    return frozenset(part.strip("*~#!%$@^-").upper() for text in texts for part in str(text).split("+"))


def gres(text: str) -> tuple[Gres, ...]:
    """The kinds in a text such as `gpu:a100:2(S:0-1),shard:a100:8` or `gpu:a100:1(IDX:0)`."""
    found = (_GRES.match(part.strip()) for part in _OUTSIDE.split(text))
    return tuple(
        Gres(one["name"], one["type"] or "", int(one["count"]), _indices(one["inside"] or ""))
        for one in found
        if one
    )


def _indices(inside: str) -> tuple[int, ...]:
    """Those in use: `IDX:0-1,3`, or of shards `0/4,2/4`, where each index says how much of it is, and (from
    26.05 on) `-/4` that it is a whole GPU's."""
    if inside.startswith("IDX:"):
        return tuple(_numbers(inside.removeprefix("IDX:")))
    if "/" in inside:
        uses = [part.partition("/")[0] for part in inside.split(",")]
        return tuple(index for index, used in enumerate(uses) if used.strip(" -0"))
    return ()


def _numbers(text: str) -> Iterator[int]:
    """The numbers of `0-1,3`; what is no number is passed over."""
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit():
            yield from range(int(first), int(last if last.isdigit() else first) + 1)


def task_numbers(text: str) -> frozenset[int] | None:
    """The numbers in `[5,7-10%3]` or `0-999`; None where Slurm cut the text short."""
    inner = text.strip("[]").partition("%")[0]
    if "..." in inner:
        return None
    found: set[int] = set()
    for part in inner.split(","):
        numbers, _, step = part.partition(":")
        values = sorted(_numbers(numbers))
        found.update(values[:: int(step)] if step.isdigit() else values)
    return frozenset(found)


def hostlist(text: str) -> tuple[str, ...]:
    """The names in a node list: `n1,gpu-[01-03,7]-ib`."""
    return tuple(name for part in _INSIDE.split(text) if part for name in _hosts(part))


def _hosts(part: str) -> Iterator[str]:
    found = _RANGE.search(part)
    if found is None:
        yield part
        return
    for item in found[1].split(","):
        first, _, last = item.partition("-")
        for value in range(int(first), int(last or first) + 1):
            yield from _hosts(f"{part[: found.start()]}{value:0{len(first)}d}{part[found.end() :]}")
