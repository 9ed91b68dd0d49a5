"""The front of a decorated class: an actor that is there at once, and makes the real one with its lease.

Calls that come before the lease queue up in the front, in order. Later ones go to the real actor; the
front, which Ray regards as the real actor's owner, is then only what `ray.kill` can end it by.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, cast

import ray
from ray.exceptions import RayTaskError

from raysched.actors.calls.claims import Shape
from raysched.actors.calls.placing import place_options
from raysched.actors.names import NAMESPACE
from raysched.core.work import Owned


@dataclass(frozen=True, slots=True)
class Plan:
    """The actor that a front is to make: its class, what it asks for, and the constructor's arguments."""

    cls: type
    shape: Shape
    args: list[Any]
    kwargs: dict[str, Any]


class _Front:
    def __init__(self, plan: Plan, relay: Any) -> None:
        self._plan = plan
        self._relay = relay
        self._actor: Any = None
        self._strong: list[Any] = []

    def __repr__(self) -> str:
        return f"Front({self._plan.shape.name})"

    def _make(self, owned: Owned, me: Any) -> None:
        """Make the real actor in its lease. Two handles of it: one that keeps it alive until somebody else
        does, and one, found by its name, that does not."""
        name = f"{self._plan.shape.name} ({owned.lease})"
        options = place_options(owned, 0) | {"name": name, "namespace": NAMESPACE}
        maker: Any = ray.remote(self._plan.cls)
        self._strong = [maker.options(**options).remote(*self._plan.args, **self._plan.kwargs)]
        self._actor = ray.get_actor(name, namespace=NAMESPACE)
        self._relay.housed.remote([me], [self._actor])

    def _hand_over(self) -> list[Any]:
        """The handle that keeps the actor alive, in a list, as Ray counts it there."""
        strong, self._strong = self._strong, []
        return strong


class Front(_Front):
    """For classes with plain methods: itself such a class, as only these keep the order of their calls. The
    first call may come from a process that was given the handle, before the `start` of the one that made it.
    """

    def __init__(self, plan: Plan, relay: Any) -> None:
        super().__init__(plan, relay)
        self._refusal: RayTaskError | None = None

    def start(self) -> list[Any]:
        """Wait for the lease, make the actor, and return its handle."""
        self._begin()
        return self._hand_over()

    def call(self, started: list[Any], method: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Call a method of the real actor. `started` is what `start` returned, and keeps it alive."""
        self._begin()
        return ray.get(getattr(self._actor, method).remote(*args, **kwargs))

    def stream(
        self, started: list[Any], method: str, args: list[Any], kwargs: dict[str, Any]
    ) -> Iterator[Any]:
        """The same for a method that is a generator."""
        self._begin()
        for ref in getattr(self._actor, method).remote(*args, **kwargs):
            yield ray.get(ref)

    def mark(self) -> None:
        """Ends when the calls before it have ended."""

    def _begin(self) -> None:
        if self._refusal is not None:
            raise self._refusal
        if self._actor is None:
            me = ray.get_runtime_context().current_actor
            try:
                owned = cast(Owned, ray.get(self._relay.house.remote(self._plan.shape, [me])))
            except RayTaskError as error:
                self._refusal = error
                raise
            self._make(owned, me)


class AsyncFront(_Front):
    """For classes with async methods, whose calls run beside each other."""

    def __init__(self, plan: Plan, relay: Any) -> None:
        super().__init__(plan, relay)
        self._beginning: asyncio.Future[None] | None = None

    async def start(self) -> list[Any]:
        """See Front.start."""
        await self._begin()
        return self._hand_over()

    async def call(self, started: list[Any], method: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """See Front.call."""
        await self._begin()
        return await getattr(self._actor, method).remote(*args, **kwargs)

    async def stream(
        self, started: list[Any], method: str, args: list[Any], kwargs: dict[str, Any]
    ) -> AsyncIterator[Any]:
        """See Front.stream."""
        await self._begin()
        async for ref in getattr(self._actor, method).remote(*args, **kwargs):
            yield await ref

    async def mark(self) -> None:
        """Ends at once: these calls have no order."""

    async def _begin(self) -> None:
        if self._beginning is None:
            self._beginning = asyncio.ensure_future(self._house())
        await asyncio.shield(self._beginning)

    async def _house(self) -> None:
        me = ray.get_runtime_context().current_actor
        self._make(await self._relay.house.remote(self._plan.shape, [me]), me)
