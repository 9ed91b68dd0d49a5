"""The contract of a backend: something that launches work and can say what of it is there.

Every call may be made again at any time: starting what runs, stopping what is gone and deleting what was
deleted are silent. The run's id (`work.Run`) is the identity everywhere; an engine's own ids are hints.
`raysched.testing.conformance` tests all of this on any backend.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from raysched.core.commands import Command
from raysched.core.lease import Group
from raysched.core.work import Hold, Launch, Run, Seen

Names = Callable[[], Awaitable[Mapping[str, Sequence[str]]]]
"""Tells the names that the ledger's nodes and hosts have, and by which backends each is."""


class EngineRefused(Exception):
    """The engine said no. `final` says that it would say no every time, so that the job fails with the
    reason; otherwise the lease is given back and the job waits again."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.final = final


class Backend(Protocol):
    """Launches runs. One instance lives in one backend actor, whose loop is its only caller."""

    name: str

    async def observe(self) -> list[Seen]:
        """All of raysched's runs there, in one look: running, ended, or lost."""
        ...

    async def start(self, launch: Launch) -> None:
        """Start a run whose folder does not exist yet. Raises EngineRefused where the engine says no."""
        ...

    async def stop(self, run: Run, grace: float) -> None:
        """Begin to end the whole process tree: SIGTERM now, SIGKILL after `grace` seconds."""
        ...

    async def logs(self, run: Run, offset: int, limit: int) -> bytes:
        """At most `limit` bytes of the run's output from `offset`; empty at the end of what there is."""
        ...

    async def forget(self, runs: frozenset[Run]) -> None:
        """Delete what is left of these runs, but of one that has not ended."""
        ...

    async def changed(self, timeout: float) -> None:
        """Return when a run may have changed, at the latest after `timeout` seconds."""
        ...

    async def close(self) -> None:
        """Let go of connections; what runs goes on."""
        ...


@dataclass(frozen=True, slots=True)
class HoldAnswer:
    """A hold that is in place (`groups`, one a place), or why it can't be had."""

    lease: str
    groups: tuple[Group, ...] = ()
    refused: str | None = None


@runtime_checkable
class Mirroring(Protocol):
    """What a backend does whose site chooses the GPUs itself."""

    async def mirror(self) -> Sequence[Command]:
        """The site as it is: its nodes, what others use of them, where our leases were put. All of it each
        time; the ledger writes down what is new. Raises an error where the site does not answer."""
        ...


@runtime_checkable
class Scripted(Protocol):
    """What a backend does that hands work to another scheduler."""

    async def scripts(self, launches: Sequence[Launch]) -> dict[Run, str]:
        """What would be sent, were these started together, by the first run of each thing that is sent: text
        for people to read. Nothing is sent or prepared."""
        ...


@runtime_checkable
class Cordoning(Protocol):
    """What a backend does whose nodes another scheduler starts work on."""

    async def cordon(self, node: str, on: bool, reason: str) -> None:
        """Have the site start nothing new on a node of its own, for the `reason`, or use it again; silent
        where that is so. Raises EngineRefused where the site does not let this user."""
        ...


@runtime_checkable
class Spread(Protocol):
    """A backend of several machines that has to be told on which of them a run is."""

    def locate(self, homes: Mapping[Run, str]) -> None:
        """The nodes of runs that are wanted, or wanted no more."""
        ...


@runtime_checkable
class Releasing(Protocol):
    """What sees to it that nothing of a lease is left before its capacity is free again."""

    async def release(self, hold: Hold) -> None:
        """End what still runs under the lease on the nodes that the hold names, let go of all that is held
        for it, and return when both are gone. Raises an error where one of these nodes does not answer."""
        ...


@runtime_checkable
class Holding(Releasing, Protocol):
    """What only Ray can do: keep leases in placement groups, whichever backend launches their work."""

    async def hold(self, holds: Sequence[Hold]) -> list[HoldAnswer]:
        """Make each hold that is not there yet, on exactly the GPUs that it names."""
        ...

    async def held(self) -> dict[str, bool]:
        """Each lease for which anything is held, and whether all of it still is."""
        ...

    async def let_go(self, lease: str) -> None:
        """End what runs under a lease that nobody knows any more, and let go of what is held for it."""
        ...

    async def outside(self) -> dict[str, tuple[str, ...]]:
        """For each node the UUIDs of the GPUs that somebody holds in Ray without a lease of ours."""
        ...
