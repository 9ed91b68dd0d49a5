"""`clusters/NAME.json` in the state folder: a cluster that was asked for, written before anything is made.

Which machines there are is never read from here: the provider finds them by their tags.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from raysched.cluster.record import write_private
from raysched.errors import Conflict, NotFound, StorageError

Json = dict[str, Any]
FOLDER = "clusters"
PAUSE_S = 0.2


@dataclass(frozen=True, slots=True)
class Cluster:
    """`asked` is the file, `config` what Ray's launcher made of it once it did (None before). `host` has the
    fields of the hosts that are the same for all its machines, `setup` the commands that each kind of machine
    runs once. Machines that nobody uses for `idle_s` seconds are ended; None: never. `hosts` are the names
    in the inventory, by machine. With `ray` they are nodes of raysched's Ray as well: but for the hosts that
    are `leaving`, and those that `refused` has, with the reason."""

    name: str
    asked: Json
    config: Json | None = None
    host: Json = field(default_factory=dict[str, Any])
    setup: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    idle_s: float | None = None
    hosts: dict[str, str] = field(default_factory=dict[str, str])
    ray: bool = False
    leaving: list[str] = field(default_factory=list[str])
    refused: dict[str, str] = field(default_factory=dict[str, str])

    def write(self, home: Path) -> Cluster:
        """Keep it in the state folder. Raises StorageError."""
        path = _path(home, self.name)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(path, asdict(self))
        return self

    def without(self, machine: str) -> Cluster:
        """The same without a machine's host."""
        left = {id: host for id, host in self.hosts.items() if id != machine}
        return replace(self, hosts=left, leaving=[host for host in self.leaving if host in left.values()])


def read(home: Path, name: str) -> Cluster:
    """The cluster of that name. Raises NotFound."""
    try:
        return Cluster(**json.loads(_path(home, name).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise NotFound(f"no cluster {name}: `raysched cluster status` shows those that there are") from None
    except (OSError, ValueError, TypeError) as error:
        raise StorageError(f"{_path(home, name)} can't be read: {error}") from None


def names(home: Path) -> list[str]:
    """The clusters that there are."""
    return sorted(path.stem for path in (home / FOLDER).glob("[!.]*.json"))


def delete(home: Path, name: str) -> None:
    """Forget a cluster."""
    _path(home, name).unlink(missing_ok=True)


@contextmanager
def exclusive(home: Path, name: str, patience: float = 0) -> Generator[None]:
    """Keep whoever else changes this cluster out for the length of the block. Raises Conflict where somebody
    is at work, and does not end within `patience` seconds."""
    path = _path(home, name).with_suffix(".lock")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Conflict(f"somebody changes the cluster {name} just now: try again") from None
            time.sleep(PAUSE_S)
        yield


def _path(home: Path, name: str) -> Path:
    return home / FOLDER / f"{name}.json"
