"""What a site can be asked, whichever way it is reached: by commands here, over SSH, or by slurmrestd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from raysched.backends.slurm.records import Job, Node


class Unanswered(Exception):
    """Nobody answered, so that nobody knows whether what was asked was done."""


class Refused(Exception):
    """Slurm said no; `final`: it would say no every time."""

    def __init__(self, reason: str, *, final: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.final = final


@dataclass(frozen=True, slots=True)
class Batch:
    """A script to submit. `options` are sbatch's, each `--name=value` or `--name`."""

    options: tuple[str, ...]
    script: str


@dataclass(frozen=True, slots=True)
class Target:
    """A job to end, by Slurm's id of a moment ago and by the name that it had then: a controller that lost
    jobs gives their ids to others."""

    id: str
    name: str

    @property
    def is_task(self) -> bool:
        """Whether it is one task of an array."""
        return "_" in self.id


class Controller(Protocol):
    """Slurm's controller. Every method may raise Unanswered. `signals`: whether `cancel` can signal a script;
    where it can't, the script looks for itself whether it is to end."""

    signals: bool

    async def submit(self, batch: Batch) -> None:
        """Hand a job, or an array, to Slurm. Raises Refused."""
        ...

    async def shown(self, batch: Batch) -> str:
        """What `submit` sends, for people to read. Raises Refused."""
        ...

    async def jobs(self) -> list[Job]:
        """All jobs that Slurm remembers, at least those of this user."""
        ...

    async def nodes(self) -> list[Node]:
        """All nodes."""
        ...

    async def drain(self, node: str, reason: str | None) -> None:
        """Start nothing new on a node, for the `reason`, or (None) use it again. Raises Refused."""
        ...

    async def cancel(self, targets: Sequence[Target], signal: str | None = None) -> None:
        """End jobs, or send a signal to the script of each; silent for those that are gone, or whose id is
        another job's now."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
