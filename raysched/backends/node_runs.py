"""The runs of one machine, as whoever stands there offers them to a backend: the node agent, the vm backend
itself, or the serving end of an SSH connection."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from raysched.backends.exits import Exits
from raysched.backends.nursery import Nursery
from raysched.backends.runs import Keep, Runs
from raysched.core.work import Launch, Run, Seen
from raysched.gpu import limits
from raysched.gpu.processes import end_processes


class NodeRuns:
    """Starts and watches runs. `folder` gets a folder a run, `base_env` are the variables that jobs
    inherit, `packages` holds packed working directories as `DIGEST.tar.gz` where this node has them. In the
    folders `beside` another backend keeps its runs of this machine, where they are there.

    All of it is on disk, and the commands run under runners of their own: one that is made anew goes on.
    """

    def __init__(
        self,
        folder: Path,
        base_env: Mapping[str, str],
        packages: Path,
        beside: Sequence[Path] = (),
        nursery: Nursery | None = None,
    ) -> None:
        self._runs = Runs(folder, base_env, nursery)
        self._beside = beside
        self._packages = packages
        self._exits = Exits()

    async def runs_observe(self) -> list[Seen]:
        """All runs of this node: running, exited, or lost."""
        return await asyncio.to_thread(self._runs.observe)

    def run_seen(self, run: Run) -> Seen | None:
        """What is to be seen of a run now; None if it was not started."""
        return self._runs.look(run)

    async def run_start(self, launch: Launch, package: bytes | None) -> bool:
        """Start a run; silent where it was started before. `package` is its packed working directory; False
        says that nothing was started as it is needed and was not given. Raises EngineRefused."""
        path = self._packages / f"{launch.package}.tar.gz" if launch.package else None
        if path is None or path.exists():
            await asyncio.to_thread(self._runs.start, launch, path)
        elif package is None:
            return False
        else:
            await asyncio.to_thread(self._start_from, launch, package)
        self._exits.wake()
        return True

    def _start_from(self, launch: Launch, package: bytes) -> None:
        with tempfile.NamedTemporaryFile(suffix=".tar.gz") as file:
            file.write(package)
            file.flush()
            self._runs.start(launch, Path(file.name))

    async def run_stop(self, run: Run, grace: float) -> None:
        """Begin to end a run: SIGTERM now, SIGKILL after `grace` seconds. One that was not started never
        will be, and is then seen as ended."""
        if await asyncio.to_thread(self._runs.stop, run, grace):
            self._exits.wake()

    async def run_logs(self, run: Run, offset: int, limit: int) -> bytes:
        """At most `limit` bytes of a run's output from `offset`."""
        return await asyncio.to_thread(self._runs.logs, run, offset, limit)

    async def runs_forget(self, runs: frozenset[Run]) -> None:
        """Delete the files of these runs, but of one that has not ended."""
        await asyncio.to_thread(self._runs.forget, runs)

    async def runs_sweep(self, keep: Keep) -> None:
        """Delete old working directories of runs that ended."""
        await asyncio.to_thread(self._runs.sweep, keep, time.time())

    async def runs_changed(self, timeout: float) -> None:
        """Return when a run has started, was stopped or ended, at the latest after `timeout` seconds."""
        await self._exits.wait(self._runs.runners(), timeout)

    def wake(self) -> None:
        """Let `runs_changed` return: something changed elsewhere. For the thread of the event loop only."""
        self._exits.wake()

    async def end_processes(self, lease_id: str, grace_s: float) -> None:
        """End every process that carries the lease's marker, and return when none is left and none can start
        any more. Raises RayschedError where one does not end."""
        beside = [Runs(folder, {}) for folder in self._beside if folder.is_dir()]
        for runs in (self._runs, *beside):
            await asyncio.to_thread(runs.end, lease_id, grace_s)
        await asyncio.to_thread(end_processes, lease_id, grace_s)
        await asyncio.to_thread(limits.release, lease_id)
