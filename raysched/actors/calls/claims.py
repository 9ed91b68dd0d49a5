"""What one calling process claims from the ledger: leases that it asked for, holds, or gives back."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import pickle
import secrets
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from raysched.actors import names
from raysched.core.work import Ask, Owned
from raysched.errors import NotFound, RayschedError, Unreachable

POLL_S = 5.0
"""How long the ledger is asked to wait for news. It hears so often that the owner lives."""

PRESENT_S = 12.0
"""A calling process that was heard of in this time is there."""

RETRY_S = 0.5
RETRY_MOST_S = 5.0
"""The time before the ledger is asked again: at first, and at most."""

RELEASE_S = 5.0
"""The longest that who gives a lease back waits for the ledger to know."""

AGAIN_S = 30.0
"""How long a ledger that is gone for good may take to be there again, by another `raysched up`."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a lease is asked with: checked keyword arguments, the queue, and the name that people see."""

    name: str
    queue: str
    resources: dict[str, Any]


class Claims:
    """The account of the owner `owner`, a relay's name, at the ledger. Listeners hear of each change."""

    def __init__(self, owner: str, user: str) -> None:
        self._owner = owner
        self._user = user
        self._heard_at = time.monotonic()
        self._told_at = -1.0
        self._listeners: dict[str, Callable[[Owned], None]] = {}
        self._heard: dict[str, Owned] = {}
        self._ledger: Any = None
        self._follower: asyncio.Task[None] | None = None
        self._asking = 0
        self._releasing: dict[str, asyncio.Task[None]] = {}

    async def ask(self, shape: Shape, count: int, listener: Callable[[Owned], None]) -> list[str]:
        """Ask for `count` leases and return the ids of their jobs; `listener` hears what becomes of them.
        Raises Refused for what no node could give, SpecError, Unreachable."""
        key = secrets.token_hex(16)
        ask = Ask(key, self._user, self._owner, shape.name, shape.queue, shape.resources, count)
        self._asking += 1
        try:
            answer: list[Owned] = pickle.loads(await self._call("request_leases", pickle.dumps(ask)))
            self._listeners.update((each.job, listener) for each in answer)
        finally:
            self._asking -= 1
        asyncio.get_running_loop().call_soon(self._repeat, answer)  # once the caller knows its jobs
        return [each.job for each in answer]

    def _repeat(self, answer: list[Owned]) -> None:
        """Tell of jobs what the ledger answered, or said of them before the answer came."""
        for each in answer:
            if each.job in self._listeners:
                self._tell(self._listeners[each.job], self._heard.get(each.job, each))

    def heard(self) -> None:
        """The calling process has just been heard of."""
        self._heard_at = time.monotonic()

    @property
    def present(self) -> bool:
        """Whether the calling process was heard of lately: it is not stopped."""
        return time.monotonic() - self._heard_at < PRESENT_S

    async def release(self, job: str) -> None:
        """Give a lease back, or what was asked for; silent if it has ended. Where the ledger does not answer
        or can't write, it is told again, as often as that takes; nobody is kept waiting for that."""
        self._listeners.pop(job, None)
        if job not in self._releasing:
            self._releasing[job] = apart(self._give_back(job))
        await asyncio.wait({self._releasing[job]}, timeout=RELEASE_S)

    async def _give_back(self, job: str) -> None:
        pause = RETRY_S
        while not await self._gave_back(job):
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_MOST_S)
        del self._releasing[job]

    async def _gave_back(self, job: str) -> bool:
        """Tell the ledger, and whether it knows now."""
        try:
            await self._call("release", job)
        except NotFound:
            return True
        except (RayschedError, RayError) as error:
            log.info("lease of job %s could not be given back yet: %s", job, error)
            return False
        return True

    async def explain(self, job: str) -> str:
        """Why a request still waits."""
        return (await self._call("view", "explain", job=job))["why"]

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        ledger = self._connected()
        try:
            return await getattr(ledger, method).remote(*args, **kwargs)
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, RayschedError) else error from None
        except RayError as error:
            self._ledger = None
            raise Unreachable(f"the ledger does not answer: {error}") from None

    def _connected(self) -> Any:
        if self._ledger is None:
            self._ledger = find_ledger()
        if self._follower is None or self._follower.done():
            self._follower = apart(self._follow(self._ledger))
        return self._ledger

    async def _follow(self, ledger: Any) -> None:
        """Hear of changes, and let the ledger hear of the calling process."""
        version = -1
        while True:
            try:
                heard, self._told_at = self._heard_at > self._told_at, time.monotonic()
                version, owned = await ledger.owned.remote(self._owner, version, POLL_S, heard)
                self._hear(pickle.loads(owned))
            except ActorDiedError:
                self._ledger = None
                try:
                    ledger = await self._found_again()
                except Unreachable:
                    self._lose_all()
                    return
            except RayError:
                await asyncio.sleep(RETRY_S)

    async def _found_again(self) -> Any:
        """The ledger that takes the place of one that is gone. Raises Unreachable."""
        end = time.monotonic() + AGAIN_S
        while True:
            try:
                self._ledger = find_ledger()
                return self._ledger
            except Unreachable:
                if time.monotonic() > end:
                    raise
            await asyncio.sleep(RETRY_S)

    def _hear(self, owned: list[Owned]) -> None:
        before, self._heard = self._heard, {each.job: each for each in owned}
        for each in owned:
            listener = self._listeners.get(each.job)
            if listener is not None and before.get(each.job) != each:
                self._tell(listener, each)
            elif listener is None and each.state != "ended" and not self._asking:
                apart(self.release(each.job))  # the answer to the request for it was lost

    def _lose_all(self) -> None:
        for job, listener in list(self._listeners.items()):
            self._tell(listener, Owned(job, "ended", "raysched went down"))

    def _tell(self, listener: Callable[[Owned], None], owned: Owned) -> None:
        if owned.state == "ended":
            self._listeners.pop(owned.job, None)
        listener(owned)


def find_ledger() -> Any:
    """The ledger of this Ray cluster. Raises Unreachable where raysched is not up."""
    try:
        return ray.get_actor(names.LEDGER, namespace=names.NAMESPACE)
    except ValueError:
        raise Unreachable("raysched is not up on this Ray cluster: run `raysched up`") from None


_tasks: set[asyncio.Task[None]] = set()


def apart(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Run `work` as a task that does not count as part of the call in which it is started: Ray would cancel
    it with that call."""
    task = contextvars.Context().run(asyncio.ensure_future, work)
    _tasks.add(task)  # the loop itself keeps only weak references
    task.add_done_callback(_done)
    return task


def _done(task: asyncio.Task[None]) -> None:
    _tasks.discard(task)
    if not task.cancelled() and task.exception() is not None:
        log.error("a task of the relay failed", exc_info=task.exception())
