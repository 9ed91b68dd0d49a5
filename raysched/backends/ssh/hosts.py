"""The hosts of the inventory: one link and one watch each, as the ledger names them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from raysched.backends.ssh.remote import Remote
from raysched.core import gpu_views
from raysched.core.commands import Command, HostOut, HostSeen
from raysched.core.host import Host
from raysched.core.measured import Guidance
from raysched.core.work import Partition
from raysched.errors import NotFound, Unreachable
from raysched.gpu import watch
from raysched.tasks import stop

AT_ONCE = 20
"""How many hosts are being connected at a time."""
POLL_S = 30.0
RETRY_S = 1.0

log = logging.getLogger(__name__)


class Ledger(Protocol):
    """What is asked of the ledger."""

    async def tell(self, told: Sequence[Command]) -> None:
        """Return once what follows from the commands is written."""
        ...

    async def host_partitions(
        self, node: str, version: int, timeout: float
    ) -> tuple[int, tuple[Partition, ...]]:
        """How the GPUs of a host have to be cut: as soon as that is not `version`, or after the time."""
        ...

    async def host_sample(self, node: str, usage: gpu_views.Usage, told: Sequence[Command]) -> Guidance:
        """Take what was measured on a host just now, as `watch.Ledger.sample` does."""
        ...

    async def hosts(self, version: int, timeout: float) -> tuple[int, tuple[Host, ...]]:
        """The inventory and its version: as soon as it is not `version`, or after the time."""
        ...


class Seat:
    """The ledger as the watch of a host speaks to it (`watch.Ledger`)."""

    def __init__(self, ledger: Ledger) -> None:
        self.tell = ledger.tell
        self.partitions = ledger.host_partitions
        self.sample = ledger.host_sample


@dataclass(slots=True)
class Entry:
    """A host in use."""

    remote: Remote
    watch: watch.Watch | None = None
    watching: asyncio.Task[None] | None = None


class Hosts:
    """The hosts in use. With a `ledger`, whose system is called `system`, they are its inventory, and each is
    described to it; without one they are what `use` is given. `changed` is called when a run may have
    changed."""

    def __init__(
        self,
        ledger: Ledger | None = None,
        system: str = "alone",
        rules: watch.Rules = watch.USUAL_RULES,
    ) -> None:
        self.changed: Callable[[], None] = lambda: None
        self._ledger = ledger
        self._system = system
        self._rules = rules
        self._entries: dict[str, Entry] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._known = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self._closed = False
        if ledger is None:
            self._known.set()

    async def known(self) -> None:
        """Return once it is known which hosts there are."""
        if self._ledger is not None and self._following is None:
            self._following = asyncio.create_task(self._follow(self._ledger))
        await self._known.wait()

    async def _follow(self, ledger: Ledger) -> None:
        version = -1
        while True:
            try:
                version, hosts = await ledger.hosts(version, POLL_S)
                await self.use(hosts)
                self._known.set()
            except Exception:
                log.exception("the inventory can't be read and is asked for again")
                await asyncio.sleep(RETRY_S)

    async def use(self, hosts: tuple[Host, ...]) -> None:
        """Use exactly these hosts: connect to new ones, hang up on those that are gone or have changed."""
        wanted = {host.name: host for host in hosts}
        for name, entry in list(self._entries.items()):
            if wanted.get(name) != entry.remote.host:
                del self._entries[name]
                await _hang_up(entry)
        for name, host in wanted.items():
            if name not in self._entries:
                self._entries[name] = self._new(host)

    def _news(self) -> None:
        self.changed()

    def _new(self, host: Host) -> Entry:
        entry = Entry(Remote(host, self._system, self._turns, self._news))
        ledger = self._ledger
        if ledger is not None:
            entry.watch = watch.Watch(host.name, entry.remote, Seat(ledger), HostSeen, self._rules)

            async def told(reason: str) -> None:
                await self._told(ledger, entry, reason)

            entry.remote.told = told
        entry.remote.keep()
        return entry

    async def _told(self, ledger: Ledger, entry: Entry, reason: str) -> None:
        """Watch a host that is there; tell the ledger why another is not."""
        await stop(entry.watching)
        entry.watching = None
        if reason:
            await ledger.tell([HostOut(entry.remote.host.name, reason)])
        elif entry.watch is not None:
            entry.watching = asyncio.create_task(entry.watch.run())

    def names(self) -> set[str]:
        """The names of all hosts."""
        return set(self._entries)

    def get(self, name: str) -> Remote | None:
        """The host of that name; None where there is none. Raises Unreachable once they are hung up on: no
        host is taken for this machine then."""
        if self._closed:
            raise Unreachable(f"whether {name} is a host is not known any more")
        entry = self._entries.get(name)
        return entry.remote if entry else None

    def connected(self) -> dict[str, Remote]:
        """The hosts that there is a link to."""
        return {name: entry.remote for name, entry in self._entries.items() if entry.remote.connected}

    async def tried(self) -> None:
        """Return when each host was reached once, or could not be."""
        await asyncio.gather(*(entry.remote.tried() for entry in self._entries.values()))

    async def check(self, name: str, accept_new: bool) -> str:
        """Connect to a host anew; "" where it can be used, else why not. Raises NotFound."""
        remote = self.get(name)
        if remote is None:
            raise NotFound(f"no host {name}: `raysched vm list` shows those that there are")
        probe = Remote(remote.host, self._system, self._turns, lambda: None)
        try:
            await probe.connect(accept_new)
            await probe.describe()
        except Unreachable as error:
            return str(error)
        finally:
            await probe.hang_up()
        remote.hurry()
        return ""

    async def end_processes(self, name: str, lease: str, grace: float) -> None:
        """End all that runs under a lease on a host, not before a GPU that is being cut is done. Raises
        Unreachable, and RayschedError where something does not end."""
        entry = self._entries.get(name)
        if entry is None:
            raise Unreachable(f"{name} is no host of the inventory")
        if entry.watch is not None:
            await entry.watch.until_cut()
        await entry.remote.end_processes(lease, grace)
        if entry.watch is not None:
            await entry.watch.tell_use(lease)

    async def close(self) -> None:
        """Hang up on all, for good; what runs goes on."""
        self._closed = True
        await stop(self._following)
        for entry in self._entries.values():
            await _hang_up(entry)
        self._entries.clear()


async def _hang_up(entry: Entry) -> None:
    await stop(entry.watching)
    await entry.remote.close()
