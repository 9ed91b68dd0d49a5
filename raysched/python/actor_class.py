"""Decorated classes: actors that get their lease when there is one, and a handle that is there at once."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from typing_extensions import Unpack

from raysched.actors.calls.front import AsyncFront, Front, Plan
from raysched.errors import SpecError
from raysched.python.connection import connect
from raysched.python.options import CallOptions, Settings

T = TypeVar("T")

LOOK_S = 0.001
"""A handle looks at most so often whether its actor is there."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method as Ray calls it: how many values it returns (`ray.method`), or whether it yields them."""

    returns: int
    yields: bool


class RemoteClass(Generic[T]):
    """A class whose actors run in leases: `Model.remote(...)` returns a handle at once."""

    def __init__(self, cls: type[T], settings: Settings) -> None:
        if settings != Settings(settings.asked, settings.name):
            raise SpecError("max_retries and num_returns are for functions; methods have ray.method")
        self._cls = cls
        self._settings = settings
        self._methods = {
            name: Method(getattr(method, "__ray_num_returns__", 1), _yields(method))
            for name, method in inspect.getmembers(cls, inspect.isroutine)
            if name != "__init__" and inspect.isfunction(method)
        }
        self.__name__ = cls.__name__
        self.__doc__ = cls.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> T:
        name = self._cls.__name__
        raise TypeError(f"{name} runs on a lease: make an actor with {name}.remote(...)")

    def remote(self, *args: Any, **kwargs: Any) -> Actor:
        """A handle of a new actor. Never waits for its lease; the actor's methods run in the order in which
        they are called. The actor ends, and its lease with it, when no handle is left, by `ray.kill`, or
        with the program. Raises TypeError where the arguments do not fit, and Unreachable."""
        inspect.signature(self._cls).bind(*args, **kwargs)
        relay = connect().relay
        shape = self._settings.shape(self._cls.__name__)
        kind = AsyncFront if any(map(_is_async, vars(self._cls).values())) else Front
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        plan = Plan(self._cls, shape, list(args), kwargs)
        front: Any = ray.remote(kind).options(num_cpus=0, label_selector=here).remote(plan, relay)
        relay.adopt.remote([front])
        started = front.start.remote()
        return Actor(self._cls.__name__, self._methods, front, started)

    def options(self, **options: Unpack[CallOptions]) -> RemoteClass[T]:
        """The same class with other options. Raises SpecError."""
        return RemoteClass(self._cls, self._settings.changed(options))


class Actor(ActorHandle):
    """The handle of a decorated class's actor. Calls go to its front until the actor is there, then to the
    actor. To Ray it is a handle of the front, so that `ray.kill` ends both.
    """

    def __init__(self, name: str, methods: dict[str, Method], front: Any, started: Any) -> None:
        # ActorHandle's own constructor would count this handle a second time.
        fields = {
            "_name": name,
            "_methods": methods,
            "_front": front,
            "_started": started,
            "_actor": None,
            "_looked": 0.0,
            "_lock": threading.RLock(),
        }
        self.__dict__.update(fields)

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_methods", {}):
            return ActorMethod(self, name)
        raise AttributeError(f"{self.__dict__.get('_name', 'the actor')} has no method {name}")

    @property
    def _ray_actor_id(self) -> Any:
        return self._front._ray_actor_id

    def __del__(self) -> None:
        """ActorHandle's own would count this handle down; the front's does that."""

    def __repr__(self) -> str:
        return f"Actor({self._name}, {self._front._ray_actor_id.hex()})"

    def __hash__(self) -> int:
        return hash(self._front)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Actor) and self._front == other._front

    def __reduce__(self) -> tuple[Any, ...]:
        return _handle, (self._name, self._methods, self._front, [self._started])

    def _serialization_helper(self) -> Any:
        """What Ray sends where the handle itself is an argument, which can only be one of an actor: so this
        waits until there is one. Within another value the handle travels as it is."""
        return ray.get(self._started)[0]._serialization_helper()

    def _call(self, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
        """Send a call to where the next one has to go."""
        with self._lock:
            actor = self._there()
            if actor is not None:
                method = getattr(actor, name)
                return (method.options(**options) if options else method).remote(*args, **kwargs)
            return self._call_front(name, args, kwargs, options)

    def _call_front(self, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
        method = self._methods[name]
        front = self._front.stream if method.yields else self._front.call
        usual = {} if method.yields else {"num_returns": method.returns}
        call = front.options(**{"name": f"{self._name}.{name}", **usual, **options})
        return call.remote([self._started], name, list(args), kwargs)

    def _there(self) -> Any:
        """The actor, once calls may go to it."""
        now = time.monotonic()
        if self._actor is None and now - self._looked > LOOK_S:
            self.__dict__["_looked"] = now
            if ray.wait([self._started], timeout=0)[0]:
                with suppress(RayError):  # no lease could be had: the front says so, call by call
                    self._change_over(ray.get(self._started)[0])
        return self._actor

    def _change_over(self, actor: Any) -> None:
        """Send all further calls to the actor. Ray sends what this process asks of an actor in order, so a
        call whose argument comes from the end of the front's queue keeps the further ones behind it."""
        actor.__ray_call__.remote(_nothing, self._front.mark.remote())
        self.__dict__["_actor"] = actor


@dataclass(frozen=True, slots=True)
class ActorMethod:
    """A method of a decorated class's actor."""

    actor: Actor
    name: str

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method; the reference of what it will return."""
        return self.actor._call(self.name, args, kwargs, {})

    def options(self, **options: Any) -> _WithOptions:
        """The method with options of Ray for this call, such as `num_returns`."""
        return _WithOptions(self, options)


@dataclass(frozen=True, slots=True)
class _WithOptions:
    method: ActorMethod
    chosen: dict[str, Any]

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        return self.method.actor._call(self.method.name, args, kwargs, self.chosen)


def kill(actor: Any) -> None:
    """End an actor of a decorated class at once, like `ray.kill`. Its lease is free when every process that
    it started is gone."""
    ray.kill(actor)


def _handle(name: str, methods: dict[str, Method], front: Any, started: list[Any]) -> Actor:
    return Actor(name, methods, front, started[0])


def _nothing(actor: Any, mark: None) -> None:
    """What the call that keeps the order does."""


def _is_async(method: Any) -> bool:
    return inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)


def _yields(method: Callable[..., Any]) -> bool:
    return inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(method)
