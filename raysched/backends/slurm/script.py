"""What a launch is in Slurm's words: the options of sbatch, and the script."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raysched.backends.slurm.controller import Batch
from raysched.backends.slurm.records import Job
from raysched.core.request import WHOLE
from raysched.core.work import Launch, Order, Run

MINUTE = 60_000
INHERITED = ("SLURM", "CUDA_", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES", "HIP_", "ZE_AFFINITY", "TMPDIR")
"""Beginnings of the names that a command gets as Slurm set them."""

_ELEMENT = re.compile(r"(?P<group>.+)\.(?P<index>\d+)")


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the configuration says for every job of a site; a job's own words go before these."""

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    python: str = "python3"


@dataclass(frozen=True, slots=True)
class Identity:
    """How Slurm jobs of one raysched are named, by which they are known. `tag` tells several raysched of one
    user apart."""

    tag: str

    def single(self, run: Run) -> str:
        """The name of a run's job."""
        return f"rs-{self.tag}-{run}"

    def array(self, group: str, attempt: int) -> str:
        """The name of a job array, whose tasks are elements of `group`."""
        return f"rs-{self.tag}-{group}.@.{attempt}.0"

    def runs(self, job: Job) -> str | None:
        """The run of a job of ours, with `@` for the task's number where it stands for several; None for
        somebody else's. Sites may change a name or a comment, so one of both is enough."""
        start = f"rs-{self.tag}-"
        for text in (job.name, job.comment.partition(" ")[0]):
            if text.startswith(start):
                run = text.removeprefix(start)
                return run if job.task is None else run.replace("@", str(job.task))
        return None


def element(run: Run) -> tuple[str, int] | None:
    """Group and index of a run that is an element of an array."""
    found = _ELEMENT.fullmatch(run.job)
    return (found["group"], int(found["index"])) if found and run.rank == 0 else None


def single(launch: Launch, identity: Identity, defaults: Defaults, folder: str, program: str) -> Batch:
    """The job of one run. `folder` is the run's, `program` the path of batch.py on the nodes."""
    name = identity.single(launch.run)
    options = _options(launch, name, f"{name} {launch.name}", defaults)
    return Batch(options, _script(name, defaults.python, program, shlex.quote(folder)))


def array(
    launches: Sequence[Launch], identity: Identity, defaults: Defaults, root: str, program: str
) -> Batch:
    """One job array of these launches, which are elements of one group and ask for the same."""
    first = launches[0]
    found = element(first.run)
    assert found is not None, f"{first.run} is no element of an array"
    group, attempt = found[0], first.run.attempt
    name = identity.array(group, attempt)
    tasks = ranges(index for launch in launches if (one := element(launch.run)) for index in [one[1]])
    shown = first.name.removesuffix(f"[{found[1]}]")
    options = (*_options(first, name, f"{name} {shown}", defaults), f"--array={tasks}")
    folder = f'{shlex.quote(f"{root}/{group}")}."$SLURM_ARRAY_TASK_ID".{attempt}.0'
    return Batch(options, _script(name, defaults.python, program, folder))


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as sbatch takes them: `0-4,7`."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def _script(name: str, python: str, program: str, folder: str) -> str:
    """`folder` is text for sh already; all that users wrote is in the run folder, and nothing of it here."""
    run = f'{shlex.quote(python)} -I -S -X utf8 {shlex.quote(program)} "$folder"'
    log = 'exec >>"$folder/slurm.log" 2>&1 </dev/null'
    return f"#!/bin/sh\n# raysched: {name}\nfolder={folder}\n{log}\nexec {run}\n"


def _options(launch: Launch, name: str, comment: str, defaults: Defaults) -> tuple[str, ...]:
    order = launch.order
    assert order is not None, f"{launch.run} asks nothing of a site"
    words: Mapping[str, Any] = dict(order.options)
    return (
        f"--job-name={name}",
        f"--comment={comment}",
        "--output=/dev/null",
        "--no-requeue",
        *_resources(order),
        *_limit(order),
        *(
            f"--{word}={value}"
            for word in ("account", "partition", "qos", "reservation", "constraint")
            if (value := words.get(word) or getattr(defaults, word, None))
        ),
        *([f"--signal=B:{words['signal']}"] if words.get("signal") else []),
        *(str(line) for line in words.get("options") or ()),
    )


def _resources(order: Order) -> tuple[str, ...]:
    demand = order.demand
    options = [f"--nodes={demand.nodes}", "--ntasks-per-node=1"]
    if demand.cpus:
        options.append(f"--cpus-per-task={-(-demand.cpus // WHOLE)}")
    if demand.memory:
        options.append(f"--mem={demand.memory}M")
    if demand.kind:
        typed = f"{demand.type}:{demand.count}" if demand.type else str(demand.count)
        options.append(f"--gpus={typed}" if demand.together else f"--gres={demand.kind}:{typed}")
    return tuple(options)


def _limit(order: Order) -> tuple[str, ...]:
    return () if order.limit is None else (f"--time={-(-order.limit // MINUTE)}",)
