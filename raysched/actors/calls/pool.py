"""The pool of one shape: its waiting calls, and the lease workers that take them.

A worker is *resting* when nothing of the pool runs on it; it is then the calling process's, which sends it
calls directly (see `raysched/dispatch.py`). As soon as a call arrives here, all workers are the pool's
again, until no call waits.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ray
from ray.exceptions import ActorDiedError, RayError, WorkerCrashedError

from raysched.actors.calls.calls import Call, Given, Outcome, When
from raysched.actors.calls.claims import Claims, Shape, apart
from raysched.actors.calls.lease_worker import LeaseWorker
from raysched.actors.calls.parcel import Failure, Parcel
from raysched.actors.calls.placing import worker_options
from raysched.actors.calls.signals import fail, settle, until
from raysched.core.work import Owned
from raysched.errors import LeaseLost

RAMP = 4
"""At least so many leases may be asked for at once; beyond that as many as there are already."""

BATCH_S = 0.2
"""The work in seconds that a worker is given at once, where many calls wait."""
BATCH_CALLS = 64

RENEWAL = 0.3
"""How much each call counts in the usual length of calls."""

PATIENCE_S = 0.05
PATIENCE = 3
"""A call that runs so much longer than usual keeps no others waiting behind it."""

LITTLE_S = 0.002
"""Calls that wait and are less work than this are left to the workers that are busy, which soon come for
more: waking another one costs more than it brings. For no longer than this time, though."""

PARK_S = 0.02
"""How long a worker without work waits here for the next call before it rests."""

TRIM_S = 0.25
"""Requests that no waiting call needs are taken back after this time."""

OVERTAKEN_S = 0.02
OVERTAKEN = 100
"""The time after which a worker is asked again that a direct call has not reached yet, and how often: one may
be held up for long, by an argument that is still being made."""

REST_S = 0.2
"""The time before what failed is tried again: a worker whose process died, or a request."""

FAREWELL_S = 10.0
"""The longest time that a call which the calling process sent itself may take to end, with the reason, on a
lost lease."""
TOLD_S = 1.0
"""How long what a worker has told may take to leave its process before that is killed: Ray sends it later."""

BIRTHS = 3
"""After so many workers in a row that could not start, waiting calls fail with the reason."""


@dataclass(eq=False, slots=True)
class Waiting:
    """A call until it is done. `left` counts the times that it may still be started after a worker died
    under it (None: for ever). `alone`: it may have been what killed a worker, so nothing else is given with
    it."""

    call: Call
    done: asyncio.Future[list[Any]]
    left: int | None
    alone: bool


@dataclass(eq=False, slots=True)
class Worker:
    """A lease worker. `held` are the calls that it was given, by number; `fate` will tell why its lease was
    lost, if it is. `ahead`: so many direct calls have to have begun before it takes others; `counts`: whether
    it knows how many have. `proven`: its process runs."""

    job: str
    actor: Any
    held: dict[int, Waiting] = field(default_factory=dict[int, Waiting], kw_only=True)
    fate: asyncio.Future[str]
    attended: asyncio.Future[bool] | None = None
    ahead: int = 0
    counts: bool = True
    serving: bool = False
    parked: bool = False
    proven: bool = False
    announced: bool = False


class Rest(NamedTuple):
    """Which workers rest, at a moment when `received` calls had come. `new` has the actor handles of
    workers not told of before, by job; `gone` are the jobs of those that are no more."""

    received: int
    resting: list[str]
    new: dict[str, Any]
    gone: list[str]


class Pool:
    """All methods run in the relay's event loop. `changed` is called whenever `rest` would tell news."""

    def __init__(
        self, id: str, shape: Shape, claims: Claims, relay: Any, changed: Callable[[], None]
    ) -> None:
        self._id = id
        self._shape = shape
        self._claims = claims
        self._relay = relay
        self._changed = changed
        self._waiting: deque[Waiting] = deque()
        self._workers: dict[str, Worker] = {}
        self._requests: set[str] = set()
        self._asking = 0
        self._trimmer: asyncio.Task[None] | None = None
        self._parked: list[asyncio.Future[None]] = []
        self._later: asyncio.TimerHandle | None = None
        self._gone: list[str] = []
        self._numbers = itertools.count()
        self._mean = 0.0
        self._held = 0
        self._received = 0
        self._stillborn = 0

    # ------------------------------------------------------------ the caller's side

    async def run(
        self, function: str, arguments: list[Any] | Parcel, returns: int, retries: int
    ) -> list[Any]:
        """The packed values of a call. Raises Failure with the function's exception, WorkerCrashedError where
        its worker died too often, and LeaseLost, Refused or Unreachable where no lease can be had."""
        self._received += 1
        call = Call(next(self._numbers), function, arguments, returns)
        done: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        waiting = Waiting(call, done, None if retries < 0 else retries, alone=retries == 0)
        self._waiting.append(waiting)
        self._serve()
        self._ask()
        try:
            return await done
        except asyncio.CancelledError:
            self._interrupt(call.number)
            raise

    def expect(self, ahead: dict[str, int]) -> None:
        """The calling process has sent so many direct calls in all to workers, by job."""
        for job, count in ahead.items():
            worker = self._workers.get(job)
            if worker is not None and worker.counts:
                worker.ahead = count

    def rest(self) -> Rest:
        """What the calling process may use now."""
        started = [worker for worker in self._workers.values() if worker.proven]
        resting = [worker for worker in started if not worker.held and not worker.parked]
        new = [worker for worker in self._workers.values() if not worker.announced]
        for worker in new:
            worker.announced = True
        gone, self._gone = self._gone, []
        return Rest(self._received, [w.job for w in resting], {w.job: w.actor for w in new}, gone)

    def give_back(self, job: str) -> None:
        """The calling process has not used a worker for a while: end it, unless it has work again."""
        worker = self._workers.get(job)
        if worker is None:
            return
        if worker.held or self._waiting:
            worker.announced = False  # the calling process has forgotten it
            return
        self._drop(worker)
        apart(self._claims.release(job))

    # ------------------------------------------------------------ the worker's side

    async def pull(self, job: str, outcomes: list[Outcome], when: When) -> Given:
        """Take outcomes from a worker and give it calls; none ends its session."""
        worker = self._workers.get(job)
        if worker is None:
            return self._given([])
        worker.proven = True
        self._stillborn = 0
        self._settle(worker, outcomes)
        if when == "ahead":
            return self._given(self._take(worker) if self._many else [])
        settle(worker.attended, False)
        if when == "last":
            return self._given([])
        if not self._waiting and self._held:
            await self._park(worker)
        calls = self._take(worker)
        if not calls:
            self._changed()
        return self._given(calls)

    def _given(self, calls: list[Call]) -> Given:
        return Given(calls, max(PATIENCE_S, PATIENCE * self._mean), self._many)

    @property
    def _many(self) -> bool:
        """Whether enough calls wait for a busy worker to have some in store."""
        return len(self._waiting) >= 2 * len(self._workers)

    async def attend(self, job: str, number: int) -> bool:
        """A call runs long: returns once it has ended, or true as soon as it is cancelled."""
        worker = self._workers.get(job)
        if worker is None or number not in worker.held:
            return False
        if worker.held[number].done.cancelled():
            return True
        worker.attended = asyncio.get_running_loop().create_future()
        return await worker.attended

    async def fate(self, job: str) -> str:
        """Why a worker's lease was lost, once it is."""
        worker = self._workers.get(job)
        return "it went back" if worker is None else await asyncio.shield(worker.fate)

    def take_back(self, job: str, outcomes: list[Outcome], rest: list[int]) -> None:
        """A call runs too long: take the outcomes of those before it and the calls behind it."""
        worker = self._workers.get(job)
        if worker is None:
            return
        self._settle(worker, outcomes)
        back = [worker.held.pop(number) for number in rest if number in worker.held]
        self._held -= len(back)
        self._waiting.extendleft(reversed(back))
        self._serve()
        self._ask()

    def _settle(self, worker: Worker, outcomes: list[Outcome]) -> None:
        done = [(worker.held.pop(o.number), o) for o in outcomes if o.number in worker.held]
        self._held -= len(done)
        if done and not self._waiting and not self._held:
            self._unpark()
            self._changed()  # before the results, so that the next call already finds the worker at rest
        for waiting, outcome in done:
            self._mean += RENEWAL * (outcome.seconds - self._mean)
            if outcome.failure is None:
                settle(waiting.done, outcome.values)
            else:
                fail(waiting.done, Failure(*outcome.failure))

    def _take(self, worker: Worker) -> list[Call]:
        given: list[Call] = []
        if any(waiting.alone for waiting in worker.held.values()):
            return given
        mean = max(self._mean, 1e-6)
        share = len(self._waiting) // (2 * max(1, len(self._workers)))
        most = max(1, min(BATCH_CALLS, max(share, int(LITTLE_S / mean)), int(BATCH_S / mean)))
        while self._waiting and len(given) < most:
            if self._waiting[0].alone and worker.held:
                break
            waiting = self._waiting.popleft()
            if waiting.done.done():
                continue
            worker.held[waiting.call.number] = waiting
            self._held += 1
            given.append(waiting.call)
            if waiting.alone:
                break
        return given

    async def _park(self, worker: Worker) -> None:
        """Wait a moment for a call."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parked.append(place)
        worker.parked = True
        await until(place, PARK_S)
        worker.parked = False
        if place in self._parked:
            self._parked.remove(place)

    def _unpark(self) -> None:
        """Send all that wait for a call to rest."""
        while self._parked:
            settle(self._parked.pop(), None)

    def _interrupt(self, number: int) -> None:
        """A call was cancelled: nobody waits for it any more; if it runs long, its worker is told."""
        for worker in self._workers.values():
            if number in worker.held:
                settle(worker.attended, True)

    # ------------------------------------------------------------ workers

    def _serve(self) -> None:
        """See that somebody takes the calls that wait."""
        if not self._held or self._mean * len(self._waiting) >= LITTLE_S:
            self._serve_now()
        elif self._later is None:
            self._later = asyncio.get_running_loop().call_later(LITTLE_S, self._serve_later)

    def _serve_later(self) -> None:
        self._later = None
        self._serve_now()

    def _serve_now(self) -> None:
        """Wake workers that wait here for calls, the latest first, so that those not needed come to rest. If
        they are too few, all that rest have to look: some may first have a direct call to end."""
        left = len(self._waiting)
        while left and self._parked:
            settle(self._parked.pop(), None)
            left -= 1
        for worker in self._workers.values() if left else ():
            if not worker.serving:
                worker.serving = True
                apart(self._drain(worker))

    async def _drain(self, worker: Worker) -> None:
        overtaken = 0
        while worker.job in self._workers and (self._waiting or not worker.proven):
            try:
                if not await worker.actor.drain.remote(worker.ahead):
                    overtaken += 1
                    if overtaken == OVERTAKEN:
                        worker.ahead, worker.counts = 0, False
                    await asyncio.sleep(OVERTAKEN_S)
            except ActorDiedError as error:
                self._bury(worker, error)
            except RayError:
                worker.ahead, worker.counts = 0, False  # its new process has not had those calls
                self._recover(worker)
                await asyncio.sleep(REST_S)
        worker.serving = False

    def _recover(self, worker: Worker) -> None:
        """The worker's process died: its calls wait again, each alone, as one of them may be the culprit."""
        lost = list(worker.held.values())
        worker.held.clear()
        self._held -= len(lost)
        for waiting in reversed(lost):
            if waiting.done.done():
                continue
            if waiting.left == 0:
                fail(waiting.done, WorkerCrashedError())
                continue
            waiting.left = None if waiting.left is None else waiting.left - 1
            waiting.alone = True
            self._waiting.appendleft(waiting)
        settle(worker.attended, False)
        self._serve()

    def _bury(self, worker: Worker, error: Exception) -> None:
        """The worker is dead for good."""
        if worker.job not in self._workers:
            return
        self._drop(worker)
        apart(self._claims.release(worker.job))
        if not worker.proven:
            self._stillborn += 1
            if self._stillborn >= BIRTHS:
                self._fail(LeaseLost(f"no worker could be started in the leases granted: {error}"))
        self._ask()

    def _drop(self, worker: Worker, lost: str = "") -> None:
        """End a worker. Why its lease was `lost` is told to whoever waits for a call that it runs; those that
        wait here may be started again elsewhere."""
        del self._workers[worker.job]
        self._gone.append(worker.job)
        if lost and not worker.held:
            settle(worker.fate, lost)
            apart(self._kill_soon(worker))
        else:
            ray.kill(worker.actor, no_restart=True)
        self._recover(worker)
        self._changed()

    async def _kill_soon(self, worker: Worker) -> None:
        """Once the calls that it was sent before this have ended and told how, or the time is over."""
        told = asyncio.wrap_future(worker.actor.farewell.remote().future())
        await asyncio.wait([told], timeout=FAREWELL_S)
        if told.done() and told.exception() is None:  # else it has died, which does as well
            await asyncio.sleep(TOLD_S)
        ray.kill(worker.actor, no_restart=True)

    def _fail(self, error: Exception) -> None:
        """No lease can be had: every waiting call gets the reason."""
        while self._waiting:
            fail(self._waiting.popleft().done, error)

    # ------------------------------------------------------------ leases

    def _ask(self) -> None:
        """Ask for as many leases as calls wait, but not all at once."""
        pending = len(self._requests) + self._asking
        starting = sum(not worker.proven for worker in self._workers.values())
        wanted = min(len(self._waiting) - starting, max(RAMP, len(self._workers))) - pending
        if wanted > 0:
            self._asking += wanted
            apart(self._request(wanted))
        if self._trimmer is None and self._requests:
            self._trimmer = apart(self._trim())

    async def _request(self, count: int) -> None:
        try:
            jobs = await self._claims.ask(self._shape, count, self._hear)
        except Exception as error:
            if not self._workers:
                self._fail(error)
            await asyncio.sleep(REST_S)
        else:
            self._requests.update(jobs)
        self._asking -= count
        self._ask()

    async def _trim(self) -> None:
        """Take back requests that no call has needed for a while."""
        surplus = 0
        while self._requests:
            await asyncio.sleep(TRIM_S)
            before, surplus = surplus, len(self._requests) - len(self._waiting)
            for job in list(self._requests)[: max(0, min(before, surplus))]:
                self._requests.discard(job)
                apart(self._claims.release(job))
        self._trimmer = None

    def _hear(self, owned: Owned) -> None:
        """What became of a lease."""
        if owned.state == "bound" and owned.job not in self._workers:
            self._requests.discard(owned.job)
            self._hire(owned)
        elif owned.state == "ended":
            self._requests.discard(owned.job)
            self._end(owned)

    def _hire(self, owned: Owned) -> None:
        options = worker_options(owned)
        actor = (
            ray.remote(LeaseWorker)
            .options(**options)
            .remote(self._shape.name, self._id, owned.job, self._relay)
        )
        fate: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._workers[owned.job] = worker = Worker(owned.job, actor, fate, serving=True)
        apart(self._drain(worker))
        self._ask()

    def _end(self, owned: Owned) -> None:
        """A lease, or what was asked for, ended without the calling process wanting it. One that is stopped
        gets no other: it would only be held for nobody."""
        worker = self._workers.get(owned.job)
        if worker is not None:
            self._drop(worker, owned.reason)
        nothing_left = worker is None and not (self._workers or self._requests or self._asking)
        if nothing_left or not self._claims.present:
            self._fail(LeaseLost(f"no lease for {self._shape.name}: {owned.reason}"))
        elif worker is not None:
            self._ask()
