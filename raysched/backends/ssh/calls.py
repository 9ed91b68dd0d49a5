"""The calls that a host answers, with the types of their arguments and answers: one table for both ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, get_type_hints

from raysched.backends.ssh import frames
from raysched.core.mig import Cut
from raysched.core.node import NodeInfo
from raysched.core.work import Launch, Partition, Run, Seen
from raysched.gpu.driver import Sample
from raysched.gpu.processes import Process

CUT = Cut | None
"""The type of what a driver would not cut."""


class Calls(Protocol):
    """What `serve.py` does on the host, and `link.py` asks of it."""

    async def open(self, system: str, node: str, simulate: str | None) -> None:
        """Be the host that the ledger of `system` calls `node`. The first call."""
        ...

    async def describe(self) -> NodeInfo:
        """The host as it is now."""
        ...

    async def sample(self) -> Sample:
        """Who uses its GPUs now."""
        ...

    async def partition(self, change: Partition) -> None:
        """Cut a GPU. Raises PartitionRefused."""
        ...

    async def end_strays(self, processes: tuple[Process, ...], kill: bool) -> None:
        """Send SIGTERM to exactly these processes, or with `kill` SIGKILL."""
        ...

    async def observe(self) -> list[Seen]:
        """All runs of the system here."""
        ...

    async def start(self, launch: Launch) -> tuple[Seen, ...] | None:
        """Start a run; what is then seen of it. None: its package is needed first, and nothing was started.
        Raises EngineRefused."""
        ...

    async def put_package(self, digest: str, offset: int, data: bytes, last: bool) -> None:
        """A part of a packed working directory, in order; `last` checks and keeps it."""
        ...

    async def stop(self, run: Run, grace: float) -> None:
        """Begin to end a run."""
        ...

    async def logs(self, run: Run, offset: int, limit: int) -> bytes:
        """A part of a run's output."""
        ...

    async def forget(self, runs: tuple[Run, ...]) -> None:
        """Delete what is left of runs."""
        ...

    async def end_processes(self, lease: str, grace: float) -> None:
        """End all that runs under a lease, and return when nothing is left."""
        ...


@dataclass(frozen=True, slots=True)
class Signature:
    """The types of a call, by the names of its arguments."""

    arguments: Mapping[str, Any]
    answer: Any

    def encode_arguments(self, values: tuple[Any, ...]) -> dict[str, Any]:
        """The arguments, in order, as JSON can hold them."""
        pairs = zip(self.arguments.items(), values, strict=True)
        return {name: frames.encode(hint, value) for (name, hint), value in pairs}

    def decode_arguments(self, data: dict[str, Any]) -> dict[str, Any]:
        """The arguments by name."""
        return {name: frames.decode(hint, data[name]) for name, hint in self.arguments.items()}


@cache
def signature(call: str) -> Signature:
    """The types of the call of that name. Raises KeyError for none of `Calls`."""
    hints = get_type_hints(vars(Calls)[call])
    answer = hints.pop("return")
    return Signature(hints, answer)
