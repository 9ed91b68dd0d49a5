"""The file of a journal: where it is, who may have it open, and what its errors mean for the user."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from raysched.errors import ConfigError, StorageError

_PATIENCE = 2.0
"""Seconds to wait for the lock: a ledger that was killed a moment ago may not be gone yet."""

_DAMAGED = "it is damaged; restore a backup of it, or move it away to start with an empty one"
_SENTENCES = {
    "database or disk is full": "the disk of {folder} is full ({free} MiB free); free some space there, and "
    "the ledger goes on: nothing that was acknowledged is lost",
    "disk I/O error": "the disk of {folder} reports an error ({free} MiB free); look at the kernel log, the "
    "disk and the limit on file sizes (ulimit -f)",
    "readonly database": "it or its folder {folder} is read-only; make both writable for this user",
    "not a database": "it is no journal; restore a backup of it, or move it away to start with an empty one",
    "malformed": _DAMAGED,
    "Could not decode": _DAMAGED,
    "unable to open": "it can't be opened; make its folder {folder} writable for this user",
    "locked": "another program holds it; close that program",
}
"""What to do about SQLite's messages, by a part of each (sqlite.org/rescode.html)."""


class JournalFile:
    """A journal's SQLite file, locked for this process until `close`.

    Raises ConfigError for a URL that is no `sqlite:///PATH`, StorageError where the file can't be had.
    """

    def __init__(self, url: str) -> None:
        self.url = _checked(url)
        self.path = Path(self.url.database or "")
        try:
            _created(self.path)
            self._lock = _locked(self.path)
        except OSError as problem:
            raise StorageError(
                f"the journal {self.path} can't be opened: {problem.strerror}; name a file in a folder that "
                "is there and writable for this user (`store` in raysched.yaml)"
            ) from problem

    @contextmanager
    def wording(self, connect: Callable[[], AbstractContextManager[Connection]]) -> Generator[Connection]:
        """A connection whose errors come out as StorageError."""
        try:
            with connect() as connection:
                yield connection
        except (SQLAlchemyError, sqlite3.Error) as problem:
            raise StorageError(f"the journal {self.path} can't be used: {self._advice(problem)}") from problem

    def close(self) -> None:
        """Let another process have the file; closing twice is silent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _advice(self, problem: Exception) -> str:
        said = str(getattr(problem, "orig", None) or problem)
        for part, sentence in _SENTENCES.items():
            if part in said:
                free = shutil.disk_usage(self.path.parent).free // 2**20
                return sentence.format(folder=self.path.parent, free=free)
        return f"SQLite says {said!r}"


def _checked(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    if parsed is None or parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        raise ConfigError(f"store: {url!r} names no journal; write sqlite:///PATH with the path of a file")
    return parsed


def _locked(path: Path) -> int:
    """The descriptor that holds the lock on `path`; the kernel lets go of it when the process dies."""
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + _PATIENCE
    while not _try_lock(lock):
        if time.monotonic() > deadline:
            holder = os.pread(lock, 20, 0).decode()
            os.close(lock)
            raise StorageError(
                f"the journal {path} is used by another ledger (process {holder or 'unknown'}); stop that "
                "one with `raysched down`, or name another file (`store` in raysched.yaml)"
            )
        time.sleep(0.05)
    with suppress(OSError):  # the number is for the sentence above only: a full disk must not matter
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _created(path: Path) -> None:
    """Make the file readable for its owner alone: specs hold what others need not see."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
