"""`raysched.remote`: functions and classes that run on a share of a GPU."""

from __future__ import annotations

import functools
import inspect
import uuid
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar, overload

from ray import ObjectRef
from ray.cloudpickle.cloudpickle import dumps
from typing_extensions import Unpack

from raysched.errors import SpecError
from raysched.python.actor_class import RemoteClass
from raysched.python.connection import connect
from raysched.python.dispatch import Task
from raysched.python.options import CallOptions, Settings

R = TypeVar("R")
T = TypeVar("T")


class RemoteFunction(Generic[R]):
    """A function whose calls run in lease workers: `embed.remote(batch)` returns an ObjectRef at once.

    Calls of the same shape (the same options) share leases, whichever function they call.
    """

    def __init__(self, function: Callable[..., R], settings: Settings) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._settings = settings
        self._signature = inspect.signature(function)
        self._name = settings.name or function.__name__
        self._id = uuid.uuid4().hex
        self._task = Task(self._id, self._name, settings.num_returns, settings.max_retries)
        self._lane = settings.key

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        raise TypeError(f"{self._name} runs on a lease: call {self._name}.remote(...)")

    def remote(self, *args: Any, **kwargs: Any) -> ObjectRef[R]:
        """Call the function where a lease for it is, or will be. Never waits for one.

        With `num_returns` above 1 it is a list of references. Raises TypeError where the arguments do not fit
        the function, and Unreachable where raysched is not up.
        """
        self._signature.bind(*args, **kwargs)
        dispatcher = connect().dispatcher
        if not dispatcher.has(self._lane, self._id):
            dispatcher.define(self._id, dumps(self._function))
            dispatcher.open(self._lane, self._settings.shape(self._name))
        return dispatcher.call(self._lane, self._task, args, kwargs)

    def options(self, **options: Unpack[CallOptions]) -> RemoteFunction[R]:
        """The same function with other options. Raises SpecError."""
        return RemoteFunction(self._function, self._settings.changed(options))


class Decorator(Protocol):
    """What `raysched.remote(...)` with options returns."""

    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, target: type[T], /
    ) -> RemoteClass[T]: ...
    @overload
    def __call__(self, target: Callable[..., R], /) -> RemoteFunction[R]: ...


@overload
def remote(  # pyright: ignore[reportOverlappingOverload]
    target: type[T], /
) -> RemoteClass[T]: ...
@overload
def remote(target: Callable[..., R], /) -> RemoteFunction[R]: ...
@overload
def remote(**options: Unpack[CallOptions]) -> Decorator: ...
def remote(*target: Any, **options: Any) -> Any:
    """Run a function's calls, or a class's actors, on leases of GPUs, as `ray.remote` runs them anywhere.

        @raysched.remote(gpu_fraction=0.25, queue="nlp")
        def embed(batch): ...

        refs = [embed.remote(batch) for batch in batches]

    The options are the fields of `resources` in a job file, `queue` and `priority`; without any, it is one
    whole GPU. For functions also `name`, `max_retries` (3: how often a call starts again after its process
    died) and `num_returns`. Raises SpecError where an option is wrong.
    """
    if target:
        return _wrap(target[0], Settings.of({}))
    settings = Settings.of(options)
    return functools.partial(_wrap, settings=settings)


def _wrap(target: Any, settings: Settings) -> Any:
    if inspect.isclass(target):
        return RemoteClass(target, settings)
    if not callable(target):
        raise SpecError(f"raysched.remote decorates functions and classes, and this is {target!r}")
    if inspect.iscoroutinefunction(target):
        raise SpecError(f"{target.__name__} is async: write a plain function, or a class with async methods")
    if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
        raise SpecError(f"{target.__name__} is a generator: return a list, or write a class with that method")
    return RemoteFunction(target, settings)
