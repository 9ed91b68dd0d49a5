"""Where a journal is: what differs between a file (SQLite) and a server (PostgreSQL), and nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager

from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from raysched.errors import ConfigError, StorageError
from raysched.store.mark import Mark

PATIENCE = 2.0
"""Seconds to wait for the lock: a ledger that was killed a moment ago may not be gone yet."""

RESTORE = "restore a backup of it (`raysched store restore`)"
"""What to do about damage."""


class InUse(StorageError):
    """Another process has the lock."""

    @property
    def code(self) -> str:
        """That of a StorageError."""
        return "storage_error"


class Lost(StorageError):
    """There is no connection to the server, or no longer; it may come back."""

    @property
    def code(self) -> str:
        """That of a StorageError."""
        return "storage_error"


class Place(ABC):
    """Where one journal is: `where` is the path of the file, or the URL without its password. `mark` says how
    far the journal was acknowledged, where that can be kept apart from it."""

    where: str
    mark: Mark | None = None

    @property
    def name(self) -> str:
        """How sentences call the journal."""
        return f"the journal {self.where}"

    @property
    @abstractmethod
    def afresh(self) -> str:
        """How to start with an empty one."""

    @abstractmethod
    def reader(self) -> Engine:
        """Connections that change nothing, and that no lock keeps out. Raises StorageError."""

    @abstractmethod
    def writer(self) -> Engine:
        """Connections that write, and that have the lock: one process at a time. The journal is made where it
        is not there. Raises StorageError where it can't be had."""

    @abstractmethod
    def helper(self) -> Engine:
        """Connections that write without the lock: snapshots and packs, which change no fact."""

    def is_lost(self, problem: Exception) -> bool:
        """Whether an error of the database says that there is no connection."""
        return False

    @abstractmethod
    def advice(self, problem: Exception) -> str:
        """What an error of the database means for the user, and what to do."""

    @abstractmethod
    def replace(self, fill: Callable[[Connection], None], stamp: str) -> str | None:
        """Keep the journal aside, under a name with `stamp`, and put another in its place, which `fill` makes
        in one transaction. Where the old one now is; None where there was none. Raises StorageError."""

    @abstractmethod
    def driver_errors(self) -> tuple[type[Exception], ...]:
        """What the database's driver raises."""

    @abstractmethod
    def bytes(self, connection: Connection) -> int:
        """What the journal takes on the disk."""

    @abstractmethod
    def complaints(self, connection: Connection) -> list[str]:
        """What the database itself finds wrong, a sentence each."""

    @abstractmethod
    def shrink(self) -> None:
        """Give room back that the journal no longer needs. Nobody else may use it."""

    def close(self) -> None:
        """Let another process have the lock; closing twice is silent."""
        if self.mark is not None:
            self.mark.close()

    @contextmanager
    def wording(self, connect: Callable[[], AbstractContextManager[Connection]]) -> Generator[Connection]:
        """A connection whose errors come out as StorageError."""
        try:
            with connect() as connection:
                yield connection
        except (SQLAlchemyError, *self.driver_errors()) as problem:
            raise self.error(problem) from problem

    def error(self, problem: Exception) -> StorageError:
        """An error of the database in one sentence."""
        kind = Lost if self.is_lost(problem) else StorageError
        return kind(f"{self.name} can't be used: {self.advice(problem)}")


def place_of(url: str | URL) -> Place:
    """The place that a URL names. Raises ConfigError for one that names none."""
    from raysched.store.file import FilePlace
    from raysched.store.server import ServerPlace

    parsed = _parsed(url)
    if parsed is not None and parsed.get_backend_name() == "sqlite" and parsed.database not in _NO_FILE:
        return FilePlace(parsed)
    if parsed is not None and parsed.get_backend_name() == "postgresql" and parsed.database:
        return ServerPlace(parsed)
    raise ConfigError(
        f"store: {_shown(parsed, url)!r} names no journal; write sqlite:///PATH with the path of a file, or "
        "postgresql://USER@HOST/DATABASE"
    )


_NO_FILE = (None, "", ":memory:")


def _parsed(url: str | URL) -> URL | None:
    try:
        parsed = make_url(url)
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        parsed.get_backend_name()
    except (ArgumentError, ValueError):
        return None
    return parsed


def _shown(parsed: URL | None, url: str | URL) -> str:
    """The URL without its password."""
    return str(url) if parsed is None else parsed.render_as_string(hide_password=True)
