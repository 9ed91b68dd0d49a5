"""Values on their way through the relay, which must not open them.

A relay has neither the GPU nor, perhaps, the time to load the libraries that a caller's values need. So
the ends pickle and unpickle, and the relay hands on bytes; only references to objects and actors stay
visible to Ray, which counts them. Scalars travel as they are: Ray handles them fastest.
"""

from __future__ import annotations

import io
import pickle
import traceback
from collections.abc import Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.cloudpickle.cloudpickle import Pickler as CloudPickler
from ray.exceptions import RayTaskError

SCALARS = frozenset({type(None), bool, int, float, str, bytes})
INT_MAX = 1 << 63
"""Whole numbers beyond it are pickled: they are too large for Ray's fast way."""


class Parcel:
    """A pickled value: its bytes, its large buffers, and the references in it."""

    __slots__ = ("buffers", "links", "payload")

    def __init__(self, payload: bytes, buffers: list[Any], links: list[Any]) -> None:
        self.payload = payload
        self.buffers = buffers
        self.links = links

    @classmethod
    def of(cls, value: object) -> Parcel:
        """Pack a value. Raises what pickling it raises."""
        stream, buffers, links = io.BytesIO(), list[pickle.PickleBuffer](), list[Any]()
        _Packer(stream, buffers, links).dump(value)
        return cls(stream.getvalue(), buffers, links)

    def open(self) -> Any:
        """The value. Raises what unpickling it raises."""
        return _Opener(io.BytesIO(self.payload), self.buffers, self.links).load()

    def __reduce__(self) -> tuple[Any, ...]:
        # Buffers arrive as views, which pickle takes only in this wrapping.
        return Parcel, (self.payload, [pickle.PickleBuffer(each) for each in self.buffers], self.links)


class _Packer(CloudPickler):  # pyright: ignore[reportUntypedBaseClass]
    """Sets references aside, so that they travel where Ray sees them."""

    def __init__(self, stream: io.BytesIO, buffers: list[pickle.PickleBuffer], links: list[Any]) -> None:
        super().__init__(stream, protocol=5, buffer_callback=buffers.append)
        self._links = links

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, (ray.ObjectRef, ActorHandle)):
            return None
        self._links.append(obj)
        return len(self._links) - 1


class _Opener(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, buffers: list[Any], links: list[Any]) -> None:
        super().__init__(stream, buffers=buffers)
        self._links = links

    def persistent_load(self, pid: int) -> Any:
        return self._links[pid]


def pack_arguments(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any] | Parcel:
    """The arguments of a call, to be opened by `unpack_arguments`. Raises what pickling them raises."""
    if all(map(is_scalar, args)) and all(map(is_scalar, kwargs.values())):
        return [list(args), kwargs]
    return Parcel.of((args, kwargs))


def unpack_arguments(packed: list[Any] | Parcel) -> tuple[Sequence[Any], dict[str, Any]]:
    """What `pack_arguments` was given."""
    args, kwargs = packed.open() if isinstance(packed, Parcel) else packed
    return args, kwargs


def is_scalar(value: Any) -> bool:
    """Whether a value travels as it is."""
    kind = type(value)
    return kind in SCALARS and (kind is not int or -INT_MAX <= value < INT_MAX)


def open_parcel(parcel: Parcel) -> Any:
    """The value of a parcel: what pickle calls for a Sealed or a Failure."""
    return parcel.open()


class Sealed:
    """A parcel that opens itself: who unpickles it has the value."""

    __slots__ = ("parcel",)

    def __init__(self, parcel: Parcel) -> None:
        self.parcel = parcel

    def __reduce__(self) -> tuple[Any, ...]:
        return open_parcel, (self.parcel,)


def pack_value(value: object) -> Any:
    """A value for the relay: a scalar as it is, else a parcel. Raises what pickling it raises."""
    return value if is_scalar(value) else Parcel.of(value)


def sealed(packed: Any) -> Any:
    """What the relay returns for a packed value."""
    return Sealed(packed) if isinstance(packed, Parcel) else packed


class Failure(Exception):
    """An exception in a parcel: raised in the relay, it is the original one where Ray unpickles it."""

    def __init__(self, parcel: Parcel, text: str) -> None:
        super().__init__(text)
        self.parcel = parcel

    def __reduce__(self) -> tuple[Any, ...]:
        return open_parcel, (self.parcel,)


def pack_error(error: BaseException) -> tuple[Parcel, str]:
    """An exception for the relay, and its traceback; one that can't be pickled becomes a RuntimeError."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    cause = error.cause if isinstance(error, RayTaskError) else error
    try:
        parcel = Parcel.of(cause)
        parcel.open()
    except Exception:
        parcel = Parcel.of(RuntimeError(f"{type(error).__name__}, which can't be pickled: {error}"))
    return parcel, f"\n{text}"
