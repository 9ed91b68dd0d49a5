"""The state folder, as `up` and `down` share it."""

from __future__ import annotations

import fcntl
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from raysched.backends.runner import words
from raysched.cluster import own_ray, record, system
from raysched.cluster.record import Record
from raysched.errors import Conflict, StorageError


def prepare(folder: Path) -> Path:
    """Make the folder if it is not there; only its owner may look into it. Raises StorageError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"the state folder {folder} can't be made: {_reason(error)}") from None
    return folder.absolute()


@contextmanager
def exclusive(home: Path) -> Generator[None]:
    """Keep another `up` or `down` out for the length of the block. Raises Conflict where one is at work."""
    try:
        file = (home / "up.lock").open("w")
    except OSError as error:
        raise StorageError(f"the state folder {home} can't be written to: {_reason(error)}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict("another `raysched up` or `raysched down` is at work here: wait for it") from None
        yield


def ray_alive(found: Record) -> bool:
    """Whether the Ray of a system runs: the very one that `up` started, or whichever is at its address."""
    return (found.own is None or own_ray.alive(found.own)) and system.reachable(found.ray)


def clear(home: Path, found: Record) -> None:
    """End what is left of a system's own Ray, and forget the system."""
    if found.own is not None:
        own_ray.stop(found.own)
        if not system.reachable(found.ray):  # where it is, another Ray took that port first
            own_ray.forget_address(found.ray)
    record.delete(home)


def _reason(error: OSError) -> str:
    return f"{words(error)}; set RAYSCHED_HOME to another"
