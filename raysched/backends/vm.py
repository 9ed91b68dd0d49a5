"""The `vm` backend: runs on this machine and on the hosts of the inventory, without any engine in between."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from raysched.backends.base import EngineRefused
from raysched.backends.node_runs import NodeRuns
from raysched.backends.nursery import of_this_python
from raysched.backends.ssh.hosts import Hosts
from raysched.backends.ssh.remote import Remote
from raysched.core.work import Hold, Launch, Run, Seen
from raysched.errors import Unreachable

LOOK_S = 2.0
"""How long a look at a host may take before the others are seen without it."""
GRACE_S = 5.0
"""The time between SIGTERM and SIGKILL for what still runs under a lease that ends."""


class VMBackend:
    """Runs commands on this machine, in a folder a run in `folder`, and on `hosts`. `base_env` are the
    variables that jobs of this machine inherit; those of a host inherit its own. `packages` holds packed
    working directories as `DIGEST.tar.gz`.

    A host that does not answer delays nobody: `observe` leaves its runs out, and what is to be done there
    raises Unreachable ("again later"), never EngineRefused ("no").
    """

    name = "vm"

    def __init__(
        self, folder: Path, base_env: Mapping[str, str], packages: Path, hosts: Hosts | None = None
    ) -> None:
        self._nursery = of_this_python()
        self._here = NodeRuns(folder, base_env, packages, nursery=self._nursery)
        self._packages = packages
        self.hosts = hosts or Hosts()
        self.hosts.changed = self._here.wake
        self._homes: dict[Run, str] = {}
        self._looks: dict[str, asyncio.Task[list[Seen]]] = {}

    # ------------------------------------------------------------ looking

    async def observe(self) -> list[Seen]:
        """All runs of this machine and of the hosts that answer."""
        await self.hosts.known()
        for name, remote in self.hosts.connected().items():
            if name not in self._looks:
                self._looks[name] = asyncio.create_task(remote.observe())
        seen = await self._here.runs_observe()
        if self._looks:
            await asyncio.wait(self._looks.values(), timeout=LOOK_S)
        for name, look in [(name, look) for name, look in self._looks.items() if look.done()]:
            del self._looks[name]
            if look.exception() is None:
                self._homes.update((each.run, name) for each in look.result())
                seen += look.result()
        return seen

    def locate(self, homes: Mapping[Run, str]) -> None:
        """The nodes of runs that are wanted, or wanted no more."""
        self._homes.update(homes)

    async def changed(self, timeout: float) -> None:
        """Return when a run may have changed, at the latest after `timeout` seconds."""
        await self._here.runs_changed(timeout)

    # ------------------------------------------------------------ doing

    async def start(self, launch: Launch) -> None:
        """Start a run; silent where it was started before. Raises Unreachable, and EngineRefused: final where
        its package can't be used, not final where the disk is full or no process can be started."""
        await self.hosts.known()
        name = launch.host or launch.place.node
        self._homes[launch.run] = name
        remote = self.hosts.get(name)
        if remote is not None:
            await remote.start(launch, self._packages)
        elif launch.host:
            raise Unreachable(f"{name} is no host that is used now")
        elif not await self._here.run_start(launch, None):
            raise EngineRefused(f"the packed working directory {launch.package} is not there", final=True)

    async def stop(self, run: Run, grace: float) -> None:
        """Begin to end a run. One that was not started never will be, and is then seen as ended."""
        remote = await self._home(run)
        await (self._here.run_stop(run, grace) if remote is None else remote.stop(run, grace))

    async def logs(self, run: Run, offset: int, limit: int) -> bytes:
        """At most `limit` bytes of a run's output from `offset`. Raises Unreachable."""
        remote = await self._home(run)
        if remote is None:
            return await self._here.run_logs(run, offset, limit)
        return await remote.logs(run, offset, limit)

    async def forget(self, runs: frozenset[Run]) -> None:
        """Delete what is left of these runs where somebody answers, but of one that has not ended."""
        calls = [self._here.runs_forget(runs)]
        for name, remote in self.hosts.connected().items():
            if own := frozenset(run for run in runs if self._homes.get(run) == name):
                calls.append(remote.forget(own))
        await _all(calls)
        self._homes = {run: node for run, node in self._homes.items() if run not in runs}

    async def release(self, hold: Hold) -> None:
        """End what still runs under a lease on hosts. Raises Unreachable where one does not answer, and
        RayschedError where something does not end."""
        await self.hosts.known()
        names = hold.hosts or [place.node for place in hold.places]
        await _all([self.hosts.end_processes(name, hold.lease, GRACE_S) for name in names])

    async def close(self) -> None:
        """Hang up; what runs goes on, and all that is known of it is on disk."""
        for look in self._looks.values():
            look.cancel()
        await self.hosts.close()
        await asyncio.to_thread(self._nursery.close)

    async def _home(self, run: Run) -> Remote | None:
        """The host of a run; None for this machine, also for a run that nobody knows."""
        await self.hosts.known()
        if run in self._homes:
            return self.hosts.get(self._homes[run])
        await self.observe()
        if run in self._homes:
            return self.hosts.get(self._homes[run])
        silent = sorted(self.hosts.names() - self.hosts.connected().keys())
        if silent and run not in {seen.run for seen in await self._here.runs_observe()}:
            raise Unreachable(f"no machine that answers has the run {run}; silent: {', '.join(silent)}")
        return None


async def _all(calls: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Let all finish, whatever happens to one, and then raise the first error."""
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
