"""The ray backend as its actor uses it: holds leases in Ray, and runs commands through the node agents."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import ray

from raysched.backends.base import EngineRefused, HoldAnswer
from raysched.backends.ray import clients, groups
from raysched.backends.ray.agents import Agents
from raysched.backends.ray.exact import Exact, Unavailable
from raysched.backends.ray.holds import Holds
from raysched.backends.ray.outside import Outside
from raysched.backends.ray.records import Records
from raysched.core.node import NodeInfo
from raysched.core.work import Hold, Launch, Run, Seen
from raysched.errors import Unreachable

ANSWER_S = 10.0
"""How long a node agent may take for an answer before the others go on without it."""

PACKAGE_S = 120.0
"""How long a start may take, which brings and unpacks a working directory."""

GRACE_S = 5.0
"""The time between SIGTERM and SIGKILL for what still runs under a lease that ends."""

END_S = 30.0
"""How long an agent may take to end the processes of a lease, the grace included."""

Nodes = Callable[[], Awaitable[dict[str, NodeInfo]]]


class RayBackend:
    """Implements `base.Backend` and `base.Holding`. `packages` holds packed working directories as
    `DIGEST.tar.gz`; `nodes` gives what the ledger knows of the nodes now, by name.

    A node that does not answer delays nobody: `observe` leaves its runs out, and what is to be done there
    raises `errors.Unreachable` ("again later"), never EngineRefused ("no").
    """

    name = "ray"

    def __init__(self, packages: Path, nodes: Nodes) -> None:
        self._packages = packages
        self._nodes = nodes
        self._agents = Agents()
        self._records = Records()
        self._exact = Exact()
        self._holds = Holds(self._records, self._exact)
        self._outside = Outside(self._records, self._exact)
        self._homes: dict[Run, str] = {}
        self._waits: dict[str, asyncio.Task[Any]] = {}

    async def observe(self) -> list[Seen]:
        """All runs of the nodes that answer; one call a node."""
        return [each for seen in (await self._sights()).values() for each in seen]

    async def _sights(self) -> dict[str, list[Seen]]:
        sights = await self._everywhere("runs_observe")
        for node, seen in sights.items():
            self._homes.update((each.run, node) for each in seen)
        return sights

    async def start(self, launch: Launch) -> None:
        """Start a run on its node; silent where it was started before. Raises EngineRefused, Unreachable."""
        node = launch.place.node
        self._homes[launch.run] = node
        if not await self._agents.ask(node, PACKAGE_S, "run_start", launch, None):
            package = await asyncio.to_thread(self._package, launch)
            await self._agents.ask(node, PACKAGE_S, "run_start", launch, package)

    def _package(self, launch: Launch) -> bytes:
        path = self._packages / f"{launch.package}.tar.gz"
        try:
            return path.read_bytes()
        except OSError as error:
            raise EngineRefused(f"The packed working directory can't be read: {error}", final=True) from error

    async def stop(self, run: Run, grace: float) -> None:
        """Begin to end a run. One that was started nowhere never will be, and is then seen as ended."""
        await self._agents.ask(await self._home(run), ANSWER_S, "run_stop", run, grace)

    async def logs(self, run: Run, offset: int, limit: int) -> bytes:
        """At most `limit` bytes of a run's output from `offset`. Raises Unreachable."""
        return await self._agents.ask(await self._home(run), ANSWER_S, "run_logs", run, offset, limit)

    async def forget(self, runs: frozenset[Run]) -> None:
        """Delete what is left of these runs on the nodes that answer, but of one that has not ended."""
        self._homes = {run: node for run, node in self._homes.items() if run not in runs}
        await self._everywhere("runs_forget", runs)

    async def changed(self, timeout: float) -> None:
        """Return when a run may have changed on some node, at the latest after `timeout` seconds."""
        for node in await self._living():
            if node not in self._waits:
                self._waits[node] = asyncio.create_task(self._wait(node, timeout))
        if not self._waits:
            await asyncio.sleep(timeout)
            return
        await asyncio.wait(self._waits.values(), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        self._waits = {node: task for node, task in self._waits.items() if not task.done()}

    async def _wait(self, node: str, timeout: float) -> None:
        try:
            await self._agents.ask(node, timeout + ANSWER_S, "runs_changed", timeout)
        except Unreachable:
            await asyncio.sleep(timeout)

    async def close(self) -> None:
        """Stop waiting for changes; what runs goes on, and what is held stays held."""
        for task in self._waits.values():
            task.cancel()
        self._waits.clear()

    async def hold(self, holds: Sequence[Hold]) -> list[HoldAnswer]:
        """Make each hold that is not there yet, on exactly the GPUs that it names."""
        await self._records.load()
        nodes = await self._living()
        return list(await asyncio.gather(*(self._hold(hold, nodes) for hold in holds)))

    async def _hold(self, hold: Hold, nodes: dict[str, NodeInfo]) -> HoldAnswer:
        try:
            return HoldAnswer(hold.lease, await self._holds.hold(hold, nodes))
        except Unavailable as reason:
            self._outside.doubt(place.node for place in hold.places)
            return HoldAnswer(hold.lease, refused=str(reason))

    async def release(self, hold: Hold) -> None:
        """End what still runs under the lease, and then let go of its hold.

        Raises Unreachable where a node that lives in Ray does not answer, and RayschedError where processes
        do not end: the lease is then still held, and the call may be made again.
        """
        await self._records.load()
        if not hold.resident:
            own = {r.group for r in self._records.of_lease(hold.lease) if r.purpose == "lease"}
            await clients.end(hold.lease, own)
        living = await self._living()
        for place in hold.places:
            if place.node not in living:
                raise Unreachable(
                    f"{place.node} is not in Ray: what runs there of {hold.lease} can't be ended"
                )
        await _all([self._end(place.node, hold.lease) for place in hold.places])
        await self._holds.let_go(hold.lease)

    async def held(self) -> dict[str, bool]:
        """Each lease that is in a placement group, and whether Ray still has all of its groups."""
        await self._records.load()
        there = await groups.whole()
        return {lease: ids <= there for lease, ids in self._records.by_lease().items()}

    async def let_go(self, lease: str) -> None:
        """End what runs under a lease that nobody knows any more, and let go of its hold. Raises Unreachable
        and RayschedError as `release` does."""
        await clients.end(lease, {r.group for r in self._records.of_lease(lease) if r.purpose == "lease"})
        await _all([self._end(node, lease) for node in await self._living()])
        await self._holds.let_go(lease)

    async def _end(self, node: str, lease: str) -> None:
        await self._agents.ask(node, END_S, "end_processes", lease, GRACE_S)

    async def outside(self) -> dict[str, tuple[str, ...]]:
        """For each node the UUIDs of the GPUs that somebody holds in Ray without a lease of ours; what
        changes counts once two calls saw it. To be called every few seconds: it also gives back what is
        kept for reuse and was not used."""
        await self._records.load()
        await self._holds.sweep()
        return await self._outside.look(await self._nodes())

    async def _living(self) -> dict[str, NodeInfo]:
        """The nodes that live in Ray."""
        rows = await asyncio.to_thread(ray.nodes)
        living = {row["NodeID"] for row in rows if row["Alive"]}
        return {name: node for name, node in (await self._nodes()).items() if node.ray_id in living}

    async def _everywhere(self, method: str, *arguments: object) -> dict[str, Any]:
        """The answers of all nodes that give one in time."""
        nodes = sorted(await self._living())
        asked = [self._agents.ask(node, ANSWER_S, method, *arguments) for node in nodes]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, Unreachable):
                raise answer
        pairs = zip(nodes, answers, strict=True)
        return {node: answer for node, answer in pairs if not isinstance(answer, Unreachable)}

    async def _home(self, run: Run) -> str:
        """The node of a run. One that no node knows was never started, and any node can note that."""
        if run in self._homes:
            return self._homes[run]
        nodes = (await self._living()).keys()
        silent = nodes - (await self._sights()).keys()
        if run not in self._homes and (silent or not nodes):
            raise Unreachable(f"No node that answers has the run {run}; silent: {', '.join(silent) or 'all'}")
        return self._homes.get(run) or min(nodes)


async def _all(calls: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Let all finish, whatever happens to one, and then raise the first error."""
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
