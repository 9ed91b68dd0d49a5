"""The relay: an actor beside each calling process, for its decorated calls and all its leases.

Its name is the owner of those leases at the ledger. Ray ends it with the process, and the ledger, which
watches it, then takes everything back.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import ray
from ray.exceptions import ActorDiedError, RayError
from ray.util.placement_group import placement_group_table

from raysched.actors.calls.arrivals import Arrivals
from raysched.actors.calls.calls import Given, Outcome
from raysched.actors.calls.claims import Claims, Shape, apart
from raysched.actors.calls.parcel import sealed
from raysched.actors.calls.placing import group_of, place_options, sharing
from raysched.actors.calls.pool import Pool, Rest
from raysched.actors.calls.signals import fail, settle, until
from raysched.backends.ray.residents import Resident
from raysched.core.work import Owned
from raysched.errors import LeaseLost, RayschedError

LOOK_S = 1.0
"""Time between two looks at whether an actor, or a placement group that the caller may remove, is there."""


class News(NamedTuple):
    """What a calling process is told: which workers rest, by pool, and why leases were lost, by job."""

    rests: dict[str, Rest]
    lost: dict[str, str]


class Relay:
    """An async actor; `owner` is its own name."""

    async def __init__(self, owner: str, user: str) -> None:
        self._owner = owner
        self._self = ray.get_runtime_context().current_actor
        self._claims = Claims(owner, user)
        self._functions: dict[str, asyncio.Future[bytes]] = {}
        self._pools: dict[str, asyncio.Future[Pool]] = {}
        self._arrivals = Arrivals()
        self._fronts: dict[Any, Any] = {}
        self._held: dict[str, str] = {}
        self._untold: dict[str, str] = {}
        self._keepers: dict[str, list[Any]] = {}
        self._changed: set[str] = set()
        self._news: asyncio.Future[None] = _future()

    def __repr__(self) -> str:
        return f"Relay({self._owner})"

    async def forever(self) -> None:
        """Never returns: whoever waits for it learns of the relay's death."""
        await asyncio.Event().wait()

    # ------------------------------------------------------------ decorated calls

    async def define(self, function: str, blob: bytes) -> None:
        """Keep a pickled function. May arrive after a call of it."""
        settle(self._functions.setdefault(function, _future()), blob)

    async def function(self, function: str) -> bytes:
        """A pickled function."""
        return await self._functions.setdefault(function, _future())

    async def open_pool(self, pool: str, shape: Shape) -> None:
        """Make the pool of a shape. May arrive after a call in it."""
        made = Pool(pool, shape, self._claims, self._self, lambda: self._tell(pool))
        settle(self._pools.setdefault(pool, _future()), made)

    async def call(self, order: list[Any]) -> Any:
        """Run a call when a worker is free and its arguments are there; returns its value, or as many values
        as it is to return. `order` lists the pool, the function, the packed arguments, those that are
        references, the number of returns and of retries, and how many calls the caller has sent to workers
        itself (`Pool.expect`): Ray handles one list faster than seven arguments."""
        pool, function, arguments, after, returns, retries, ahead = order
        found = await self._pool(pool)
        found.expect(ahead)
        if after:
            await self._arrivals.of(after)
        values = await found.run(function, arguments, returns, retries)
        return sealed(values[0]) if returns == 1 else tuple(map(sealed, values))

    async def pull(self, order: list[Any]) -> Given:
        """See Pool.pull; `order` lists the pool and its arguments."""
        pool, job, outcomes, when = order
        return await (await self._pool(pool)).pull(job, outcomes, when)

    async def attend(self, pool: str, job: str, number: int) -> bool:
        """See Pool.attend."""
        return await (await self._pool(pool)).attend(job, number)

    async def fate(self, pool: str, job: str) -> str:
        """See Pool.fate."""
        return await (await self._pool(pool)).fate(job)

    async def take_back(self, pool: str, job: str, outcomes: list[Outcome], rest: list[int]) -> None:
        """See Pool.take_back."""
        (await self._pool(pool)).take_back(job, outcomes, rest)

    async def give_back(self, pool: str, job: str) -> None:
        """See Pool.give_back."""
        (await self._pool(pool)).give_back(job)

    async def news(self, seconds: float) -> News:
        """What is new: at once if something is, or nothing at the end of the time. That somebody asks is how
        the relay knows that the calling process is not stopped."""
        self._claims.heard()
        if not self._changed and not self._untold:
            await until(self._news, seconds)
            self._news = _future()
        changed, self._changed = self._changed, set()
        untold, self._untold = self._untold, {}
        return News({pool: self._pools[pool].result().rest() for pool in changed}, untold)

    def _tell(self, pool: str) -> None:
        self._changed.add(pool)
        settle(self._news, None)

    def _lose(self, owned: Owned) -> None:
        """A lease was taken away that the caller holds, if it is one of those."""
        if owned.job in self._held:
            self._held[owned.job] = self._untold[owned.job] = owned.reason
            self._end_keepers(owned.job)
            settle(self._news, None)

    async def _pool(self, pool: str) -> Pool:
        return await self._pools.setdefault(pool, _future())

    # ------------------------------------------------------------ leases

    async def obtain(self, shape: Shape, seconds: float | None, keep: bool) -> Owned:
        """A lease, once it is granted and held. `keep` puts actors on parts of GPUs, to hold them whatever
        runs there. Raises TimeoutError after `seconds`, and Refused, LeaseLost, SpecError, Unreachable."""
        bound: asyncio.Future[Owned] = _future()
        job = await self._request(shape, bound)
        try:
            owned = await asyncio.wait_for(bound, seconds)
            self._held[job] = ""
            if keep:
                await self._keep(shape, owned)
            return owned
        except asyncio.TimeoutError:
            why = await self._claims.explain(job)
            apart(self._claims.release(job))
            raise TimeoutError(f"no lease within {seconds:g} s: {why}") from None
        except BaseException:
            apart(self._claims.release(job))
            raise

    async def release(self, job: str) -> str:
        """Give a lease back; why it was lost before, or nothing if it was not."""
        self._end_keepers(job)
        lost = self._held.pop(job, "")
        await self._claims.release(job)
        return lost

    def _end_keepers(self, job: str) -> None:
        for keeper in self._keepers.pop(job, []):
            ray.kill(keeper)

    async def adopt(self, front: list[Any]) -> None:
        """Keep a front alive as long as its actor, whether or not the caller still has a handle."""
        self._fronts[front[0]] = front[0]

    async def house(self, shape: Shape, front: list[Any]) -> Owned:
        """A lease for the actor behind a front, given back when the front dies. Raises like `obtain`."""
        bound: asyncio.Future[Owned] = _future()
        try:
            job = await self._request(shape, bound)
            apart(self._release_after(front[0], job))
            return await bound
        except RayschedError:
            self._fronts.pop(front[0], None)  # it is there to tell why, as long as somebody asks
            raise

    async def housed(self, front: list[Any], actor: list[Any]) -> None:
        """The front has made its actor: end the front with it."""
        apart(self._end_with(actor[0], front[0]))

    async def watch_group(self, job: str, group: str) -> None:
        """Give a lease back once its placement group was removed by whoever has it."""
        apart(self._release_with_group(job, group))

    async def _request(self, shape: Shape, bound: asyncio.Future[Owned]) -> str:
        """Ask for one lease and return its job. A caller that is cancelled leaves nothing behind."""

        def hear(owned: Owned) -> None:
            if owned.state == "bound":
                settle(bound, owned)
            elif owned.state == "ended":
                fail(bound, LeaseLost(f"no lease for {shape.name}: {owned.reason}"))
                self._lose(owned)

        asked = asyncio.ensure_future(self._claims.ask(shape, 1, hear))
        try:
            (job,) = await asyncio.shield(asked)
        except asyncio.CancelledError:
            apart(self._release_when_asked(asked))
            raise
        return job

    async def _release_when_asked(self, asked: asyncio.Future[list[str]]) -> None:
        for job in await asked:
            await self._claims.release(job)

    async def _keep(self, shape: Shape, owned: Owned) -> None:
        """Have an actor on each place with parts of GPUs, to keep the share."""
        if sharing(owned) == "exclusive":
            return
        options = [place_options(owned, place) for place in range(len(owned.groups))]
        keepers: list[Any] = [
            ray.remote(Resident).options(**each, max_restarts=-1).remote(shape.name) for each in options
        ]
        self._keepers[owned.job] = keepers
        await asyncio.gather(*(keeper.here.remote() for keeper in keepers))

    async def _release_after(self, actor: Any, job: str) -> None:
        await _death(actor)
        self._fronts.pop(actor, None)
        await self._claims.release(job)

    async def _end_with(self, actor: Any, front: Any) -> None:
        await _death(actor)
        front.__ray_terminate__.remote()  # behind the calls that it has, which learn why the actor died

    async def _release_with_group(self, job: str, group: str) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            table: Any = await asyncio.to_thread(placement_group_table, group_of(group))
            if table.get("state") in (None, "REMOVED"):
                await self._claims.release(job)
                return


async def _death(actor: Any) -> None:
    """Return when an actor is dead, which shows in a call that it takes in its turn."""
    while True:
        try:
            await actor.__ray_ready__.remote()
        except ActorDiedError:
            return
        except RayError:
            pass
        await asyncio.sleep(LOOK_S)


def _future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()
