"""Sends decorated calls to where they run: straight to an idle lease worker, or to the relay's queue.

Straight calls go to workers that are this process's for the moment. Once none of them is idle, a call goes
to the relay, and with it all workers; they come back when no call waits there. So a worker never has a call
behind another one while a third is idle. The relay tells which workers rest and how many calls it had
received by then: that is only true as long as no further call is on its way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from raysched.actors.calls.claims import Shape
from raysched.actors.calls.parcel import pack_arguments
from raysched.actors.calls.pool import Rest
from raysched.actors.calls.relay import News

IDLE_S = 5.0
"""A lease that no call has used for so long goes back."""

LOOK_S = 0.25
"""Time between two looks at which workers are idle."""

NEWS_S = 4.0
"""The relay is asked for news so often, at least: it knows from that that this process is not stopped."""

GLANCE_S = 0.001
"""A call looks for news from the relay at most so often."""


@dataclass(frozen=True, slots=True)
class Task:
    """A function as it is called: the id under which the relay has it, its name, how many values it returns,
    and how often a call is started again after its worker died (-1: always)."""

    function: str
    name: str
    returns: int
    retries: int


@dataclass(eq=False, slots=True)
class Worker:
    """A lease worker, and how many calls it was sent. `methods` keeps its bound method by task, as making one
    takes longer than a call."""

    job: str
    actor: Any
    methods: dict[Task, Any] = field(default_factory=dict[Task, Any])
    since: float = 0.0
    sent: int = 0

    def call(self, task: Task, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run the task next."""
        method = self.methods.get(task)
        if method is None:
            method = self.methods[task] = self.actor.direct.options(
                name=task.name, num_returns=task.returns, max_task_retries=task.retries
            )
        refs = method.remote(task.function, *args, **kwargs)
        self.sent += 1
        return refs


class Lane:
    """The calls of one shape. Everything happens under its lock, which is never held for long."""

    def __init__(self, id: str, relay: Any) -> None:
        self._id = id
        self._relay = relay
        self._lock = threading.RLock()  # pickling an argument may call something decorated
        self._known: dict[str, Worker] = {}
        self._mine: set[str] = set()
        self._idle: dict[str, Worker] = {}
        self._out: dict[ray.ObjectRef, Worker] = {}
        self._sent = 0
        self._queue: dict[Task, Any] = {}

    def call(self, task: Task, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Send a call; the reference, or references, of what it will return."""
        with self._lock:
            if not self._idle and self._out and self._mine:
                self._harvest()
            if not self._idle or not _may_go_straight(task, args, kwargs):
                return self._send(task, args, kwargs)
            _, worker = self._idle.popitem()  # the last one used, so that others come to be given back
            try:
                refs = worker.call(task, args, kwargs)
            except BaseException:
                if worker.job in self._mine:
                    self._idle[worker.job] = worker
                raise
            self._out[refs if task.returns == 1 else refs[0]] = worker
            return refs

    def _send(self, task: Task, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Have the call wait in the relay."""
        packed = pack_arguments(args, kwargs)
        after = [each for each in (*args, *kwargs.values()) if isinstance(each, ray.ObjectRef)]
        method = self._queue.get(task)
        if method is None:
            method = self._queue[task] = self._relay.call.options(name=task.name, num_returns=task.returns)
        # What the relay gives to a worker now must not get there before a call that was sent earlier.
        ahead = {worker.job: worker.sent for worker in self._out.values()} if self._mine else {}
        self._sent += 1
        self._mine.clear()
        self._idle.clear()
        return method.remote([self._id, task.function, packed, after, task.returns, task.retries, ahead])

    def _harvest(self) -> None:
        """Find which direct calls have ended."""
        refs = list(self._out)
        done, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
        now = time.monotonic()
        for ref in done:
            worker = self._out.pop(ref)
            if worker.job in self._mine:
                worker.since = now
                self._idle[worker.job] = worker

    def hear(self, rest: Rest) -> None:
        """News from the relay."""
        with self._lock:
            for job, actor in rest.new.items():
                self._known[job] = Worker(job, actor)
            for job in rest.gone:
                self._forget(job)
            if rest.received != self._sent:
                return
            busy = {worker.job for worker in self._out.values()}
            now = time.monotonic()
            for job in (set(rest.resting) & self._known.keys()) - self._mine:
                self._mine.add(job)
                if job not in busy:
                    self._known[job].since = now
                    self._idle[job] = self._known[job]

    def _forget(self, job: str) -> None:
        self._known.pop(job, None)
        self._mine.discard(job)
        self._idle.pop(job, None)

    def reap(self) -> None:
        """Give back the workers that have been idle for a while."""
        with self._lock:
            if self._out:
                self._harvest()
            before = time.monotonic() - IDLE_S
            for worker in [each for each in self._idle.values() if each.since < before]:
                self._forget(worker.job)  # news that is on its way must not bring it back
                self._relay.give_back.remote(self._id, worker.job)


def _may_go_straight(task: Task, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Not with a handle, and not what may be tried only once: to a worker whose process died just now, that
    would be its try."""
    return task.retries != 0 and not any(isinstance(each, ActorHandle) for each in (*args, *kwargs.values()))


class Dispatcher:
    """The lanes of a process, and the thread that listens to its relay. `lost_leases` has why, by job."""

    def __init__(self, relay: Any) -> None:
        self._relay = relay
        self._lanes: dict[str, Lane] = {}
        self._functions: set[str] = set()
        self._opening = threading.RLock()
        self._hearing = threading.Lock()
        self._news: Any = relay.news.remote(NEWS_S)
        self._glanced = 0.0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="raysched", daemon=True)
        self.lost = False
        self.lost_leases: dict[str, str] = {}
        self._thread.start()

    def call(self, lane: str, task: Task, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Send a call; never waits."""
        now = time.monotonic()
        if now - self._glanced > GLANCE_S:
            self._glanced = now
            self._hear()
        return self._lanes[lane].call(task, args, kwargs)

    def has(self, lane: str, function: str) -> bool:
        """Whether the relay knows this lane and this function."""
        return function in self._functions and lane in self._lanes

    def define(self, function: str, blob: bytes) -> None:
        """Tell the relay of a function."""
        with self._opening:
            if function not in self._functions:
                self._relay.define.remote(function, blob)
                self._functions.add(function)

    def open(self, lane: str, shape: Shape) -> None:
        """Tell the relay of a shape."""
        with self._opening:
            if lane not in self._lanes:
                self._relay.open_pool.remote(lane, shape)
                self._lanes[lane] = Lane(lane, self._relay)

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join()

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                ray.wait([self._news], timeout=LOOK_S, fetch_local=False)
                self._hear()
                for lane in list(self._lanes.values()):
                    lane.reap()
            except (RayError, RuntimeError):  # the relay died, or Ray was shut down
                self.lost = True
                return

    def _hear(self) -> None:
        """Take news that is here already, unless another thread is at it."""
        if not self._hearing.acquire(blocking=False):
            return
        try:
            there, _ = ray.wait([self._news], timeout=0)
            if there:
                news = cast(News, ray.get(self._news))
                self._news = self._relay.news.remote(NEWS_S)
                self.lost_leases.update(news.lost)
                for lane, rest in news.rests.items():
                    self._lanes[lane].hear(rest)
        except RayError:
            self.lost = True
        finally:
            self._hearing.release()
