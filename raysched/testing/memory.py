"""A backend without processes: runs exist on paper and end when the test says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from raysched.backends.base import EngineRefused
from raysched.core.work import Launch, Run, Seen

TERMINATED = 143
"""The exit code of a command that SIGTERM ended: 128 + 15."""


def wall_clock() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class VirtualRun:
    """One run on paper. `launch` is None for one that was stopped before it was started."""

    seen: Seen
    launch: Launch | None = None
    output: bytearray = field(default_factory=bytearray)


class MemoryBackend:
    """A backend whose runs go on until `finish`, `lose` or `stop`.

    `runs` is the engine: another backend with the same one sees the same runs, as after a restart. `clock`
    gives milliseconds since 1970.
    """

    def __init__(
        self,
        name: str = "memory",
        runs: dict[Run, VirtualRun] | None = None,
        clock: Callable[[], int] = wall_clock,
    ) -> None:
        self.name = name
        self.runs = runs if runs is not None else {}
        self.refusal: EngineRefused | None = None
        self._clock = clock
        self._changed = asyncio.Event()

    # ------------------------------------------------------------ what a test does

    def write(self, run: Run, output: bytes) -> None:
        """Let the run write something. Raises KeyError where there is no such run."""
        self.runs[run].output += output

    def finish(self, run: Run, code: int = 0) -> None:
        """Let the run end. Raises KeyError where there is no such run."""
        self._end(run, state="exited", code=code)

    def lose(self, run: Run, reason: str = "the machine was restarted") -> None:
        """Let the run be lost, its result unknown. Raises KeyError where there is no such run."""
        self._end(run, state="lost", reason=reason)

    def refuse(self, reason: str | None, *, final: bool = False) -> None:
        """Answer every start with this refusal from now on; None: start again."""
        self.refusal = EngineRefused(reason, final=final) if reason is not None else None

    # ------------------------------------------------------------ the contract

    async def observe(self) -> list[Seen]:
        """All runs."""
        return [virtual.seen for virtual in self.runs.values()]

    async def start(self, launch: Launch) -> None:
        """Start a run. Raises EngineRefused after `refuse`."""
        if launch.run in self.runs:
            return
        if self.refusal is not None:
            raise self.refusal
        self.runs[launch.run] = VirtualRun(Seen(launch.run, "running", self._clock()), launch)
        self._changed.set()

    async def stop(self, run: Run, grace: float) -> None:
        """End a run at once: no virtual run needs its grace."""
        if run not in self.runs:
            self.runs[run] = VirtualRun(Seen(run, "running"))
        self._end(run, state="exited", code=TERMINATED, reason="stopped")

    async def logs(self, run: Run, offset: int, limit: int) -> bytes:
        """What `write` wrote."""
        virtual = self.runs.get(run)
        return bytes(virtual.output[offset : offset + limit]) if virtual else b""

    async def forget(self, runs: frozenset[Run]) -> None:
        """Drop these runs, but one that has not ended."""
        for run, virtual in list(self.runs.items()):
            if run in runs and virtual.seen.state != "running":
                del self.runs[run]

    async def changed(self, timeout: float) -> None:
        """Return after the next change, at the latest after `timeout` seconds."""
        try:
            await asyncio.wait_for(self._changed.wait(), timeout)
        except asyncio.TimeoutError:
            return
        self._changed.clear()

    async def close(self) -> None:
        """Nothing to let go of."""

    def _end(self, run: Run, **change: object) -> None:
        """Ending what has ended is silent."""
        virtual = self.runs[run]
        if virtual.seen.state == "running":
            virtual.seen = replace(virtual.seen, ended=self._clock(), **change)
            self._changed.set()
