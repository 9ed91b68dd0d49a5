"""Processes on GPUs that have no right to be there, and their end, where the policy wants it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from raysched.core.measured import Policy
from raysched.gpu.meter import Seen
from raysched.gpu.processes import Process

Kind = Literal["orphan", "without_lease"]

STUBBORN_MS = 10_000
"""Between SIGTERM and SIGKILL."""
SPARED = "nvidia-"
"""How the names of NVIDIA's own services begin, such as the MPS server, that hold memory for others."""


@dataclass(frozen=True, slots=True)
class Stray:
    """A process that has no right to the GPU: its lease is over, or it never had one."""

    kind: Kind
    process: Process
    gpu: str
    lease: str | None


@dataclass(frozen=True, slots=True)
class Due:
    """Those that are `new`, those to `ask` to end, and those that did not heed that, to `kill`."""

    new: tuple[Stray, ...] = ()
    ask: tuple[Stray, ...] = ()
    kill: tuple[Stray, ...] = ()


@dataclass(slots=True)
class Strays:
    """Remembers since when (uptime in ms) each of them is there."""

    policy: Policy
    _since: dict[Process, int] = field(default_factory=dict[Process, int])
    _asked: set[Process] = field(default_factory=set[Process])

    def look(self, seen: Iterable[Seen], orphans: frozenset[str], now: int) -> Due:
        """What is to be done about them now."""
        there = {stray.process: stray for each in seen if (stray := _stray(each, orphans)) is not None}
        new = [stray for process, stray in there.items() if process not in self._since]
        self._since = {process: self._since.get(process, now) for process in there}
        self._asked &= there.keys()
        due = [stray for stray in there.values() if self._is_due(stray, self._age(stray, now))]
        late = [each for each in due if self._age(each, now) >= self.policy.grace + STUBBORN_MS]
        asked = [stray for stray in due if stray.process not in self._asked]
        self._asked |= {stray.process for stray in asked}
        return Due(tuple(new), tuple(asked), tuple(late))

    def _age(self, stray: Stray, now: int) -> int:
        return now - self._since[stray.process]

    def _is_due(self, stray: Stray, age: int) -> bool:
        action = self.policy.orphans if stray.kind == "orphan" else self.policy.without_lease
        return action == "end" and age >= self.policy.grace


def _stray(seen: Seen, orphans: frozenset[str]) -> Stray | None:
    """What a process is that belongs to no lease of ours. One that only draws, a service of NVIDIA's, and one
    of a lease that is not known here, perhaps another ledger's, is none."""
    if seen.user is None:
        return None
    process, lease = seen.user.process, seen.user.lease
    if lease in orphans:
        return Stray("orphan", process, seen.gpu, lease)
    if lease is not None or seen.use.graphics or process.name.startswith(SPARED):
        return None
    return Stray("without_lease", process, seen.gpu, None)
