"""The front of a decorated class: an actor that is there at once, and makes the real one with its lease.

Calls that come before the lease queue up in the front, in order. Later ones go to the real actor; the
front, which Ray regards as the real actor's owner, is then only what `ray.kill` can end it by.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import ray

from raysched.actors.calls.claims import Shape
from raysched.actors.calls.placing import place_options
from raysched.actors.names import NAMESPACE
from raysched.core.work import Owned


class _Front:
    def __init__(self, name: str, relay: Any) -> None:
        self._name = name
        self._relay = relay

    def __repr__(self) -> str:
        return f"Front({self._name})"


class Front(_Front):
    """For classes with plain methods: itself such a class, as only these keep the order of their calls."""

    def start(self, cls: type, shape: Shape, args: list[Any], kwargs: dict[str, Any]) -> list[Any]:
        """Wait for the lease and make the actor. Its handle comes in a list, as Ray counts it there."""
        me = ray.get_runtime_context().current_actor
        owned = cast(Owned, ray.get(self._relay.house.remote(shape, [me])))
        strong, actor = make(cls, place_options(owned, 0), f"{shape.name} ({owned.lease})", args, kwargs)
        self._relay.housed.remote([me], [actor])
        return [strong]

    def call(self, started: list[Any], method: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Call a method of the real actor. `started` is the result of `start`, which keeps it alive."""
        return ray.get(getattr(self._real(started), method).remote(*args, **kwargs))

    def stream(
        self, started: list[Any], method: str, args: list[Any], kwargs: dict[str, Any]
    ) -> Iterator[Any]:
        """The same for a method that is a generator."""
        for ref in getattr(self._real(started), method).remote(*args, **kwargs):
            yield ray.get(ref)

    def mark(self) -> None:
        """Ends when the calls before it have ended."""

    def _real(self, started: list[Any]) -> Any:
        return ray.get(started[0])[0]


class AsyncFront(_Front):
    """For classes with async methods, whose calls run beside each other."""

    async def start(self, cls: type, shape: Shape, args: list[Any], kwargs: dict[str, Any]) -> list[Any]:
        """See Front.start."""
        me = ray.get_runtime_context().current_actor
        owned = await self._relay.house.remote(shape, [me])
        strong, actor = make(cls, place_options(owned, 0), f"{shape.name} ({owned.lease})", args, kwargs)
        self._relay.housed.remote([me], [actor])
        return [strong]

    async def call(self, started: list[Any], method: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """See Front.call."""
        actor = (await started[0])[0]
        return await getattr(actor, method).remote(*args, **kwargs)

    async def mark(self) -> None:
        """Ends at once: these calls have no order."""

    async def stream(
        self, started: list[Any], method: str, args: list[Any], kwargs: dict[str, Any]
    ) -> AsyncIterator[Any]:
        """See Front.stream."""
        actor = (await started[0])[0]
        async for ref in getattr(actor, method).remote(*args, **kwargs):
            yield await ref


def make(
    cls: type, options: dict[str, Any], name: str, args: list[Any], kwargs: dict[str, Any]
) -> tuple[Any, Any]:
    """The real actor: a handle that keeps it alive, and one, found by its name, that does not."""
    actor = ray.remote(cls).options(name=name, namespace=NAMESPACE, **options).remote(*args, **kwargs)
    return actor, ray.get_actor(name, namespace=NAMESPACE)
