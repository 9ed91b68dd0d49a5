"""`up.json`: what `up` started, for the next `up` and for `down`, also after a crash."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raysched.backends.runner import words
from raysched.errors import StorageError

NAME = "up.json"


@dataclass(frozen=True, slots=True)
class OwnRay:
    """The Ray that `up` started: its first process, by id and start in clock ticks since `boot`, which leads
    a session. All its processes are in that session, or have `mark` in their environment as RAYSCHED_UP."""

    pid: int
    ticks: int
    boot: str
    mark: str


@dataclass(frozen=True, slots=True)
class Record:
    """A running system. `ray` is Ray's HOST:PORT and `dashboard` its page (null if unknown), `gateway` our
    URL, `own` null where Ray was there before. `at` is when it was started, in ms since 1970. `ready` is
    false until all of it was seen to work, and for ever where `up` was killed before that."""

    gateway: str
    folder: str
    ray: str
    dashboard: str | None
    simulate: str | None
    own: OwnRay | None
    at: int
    ready: bool = False

    def write(self, home: Path) -> None:
        """Keep it in the state folder. Raises StorageError."""
        write_private(home / NAME, asdict(self))


def read(home: Path) -> Record | None:
    """The record in the state folder; None where there is none, or none that can be understood."""
    try:
        content = json.loads((home / NAME).read_text(encoding="utf-8"))
        own = content.pop("own")
        return Record(**content, own=OwnRay(**own) if own else None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def delete(home: Path) -> None:
    """Forget what was started."""
    (home / NAME).unlink(missing_ok=True)


def write_private(path: Path, content: dict[str, Any]) -> None:
    """Write JSON that only the owner may read: whole, or not at all. Raises StorageError."""
    aside = None
    try:
        descriptor, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        if aside is not None:
            Path(aside).unlink(missing_ok=True)
        raise StorageError(f"{path} can't be written: {words(error)}") from None
