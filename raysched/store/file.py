"""A journal in a file (SQLite): its connections, its lock, and what its errors mean for the user."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, create_engine

from raysched.errors import StorageError
from raysched.store.mark import Mark
from raysched.store.place import PATIENCE, RESTORE, Place

WRITES = "raysched_writes"
"""The option of a connection whose transaction is going to write."""

_DAMAGED = f"it is damaged; {RESTORE}, or move it away to start with an empty one"
_SENTENCES = {
    "database or disk is full": "the disk of {folder} is full ({free} MiB free); free some space there, and "
    "the ledger goes on: nothing that was acknowledged is lost",
    "disk I/O error": "the disk of {folder} reports an error ({free} MiB free); look at the kernel log, the "
    "disk and the limit on file sizes (ulimit -f)",
    "readonly database": "it or its folder {folder} is read-only; make both writable for this user",
    "not a database": f"it is no journal; {RESTORE}, or move it away to start with an empty one",
    "malformed": _DAMAGED,
    "Could not decode": _DAMAGED,
    "unable to open": "it can't be opened; make its folder {folder} writable for this user",
    "locked": "another program holds it; close that program",
}
"""What to do about SQLite's messages, by a part of each (sqlite.org/rescode.html)."""


class FilePlace(Place):
    """A journal in the file that a URL names."""

    def __init__(self, url: URL) -> None:
        self.path = Path(url.database or "")
        self.name = f"the journal {self.path}"
        self.mark = Mark(self.path)
        self._lock = -1

    def reader(self) -> Engine:
        """Each transaction sees one moment, and writes nothing."""
        if not self.path.is_file():
            raise StorageError(f"{self.name} is not there; name another (--store)")
        return self._engine("ro", "query_only=ON", "busy_timeout=5000")

    def writer(self) -> Engine:
        """The file is made where it is not there, and locked for this process."""
        try:
            _created(self.path)
            self._lock = _locked(self.path)
        except OSError as problem:
            raise StorageError(
                f"{self.name} can't be opened: {problem.strerror}; name a file in a folder that is there and "
                "writable for this user (`store` in raysched.yaml)"
            ) from problem
        return self.helper()

    def helper(self) -> Engine:
        """A commit is on the disk before it is acknowledged, and somebody who writes too is waited for."""
        return self._engine("rw", "journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000")

    def advice(self, problem: Exception) -> str:
        """What SQLite's error means, by its words."""
        said = str(getattr(problem, "orig", None) or problem)
        for part, sentence in _SENTENCES.items():
            if part in said:
                free = shutil.disk_usage(self.path.parent).free // 2**20
                return sentence.format(folder=self.path.parent, free=free)
        return f"SQLite says {said!r}"

    def close(self) -> None:
        """Let another process have the file; closing twice is silent."""
        super().close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _engine(self, mode: str, *settings: str) -> Engine:
        def prepare(connection: Any, _record: Any) -> None:
            connection.isolation_level = None  # transactions begin below, not where Python's module guesses
            for setting in settings:
                connection.execute(f"PRAGMA {setting}")

        path = str(self.path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
        url = URL.create("sqlite", database=f"file:{path}", query={"uri": "true", "mode": mode})
        engine = create_engine(url)
        event.listen(engine, "connect", prepare)
        event.listen(engine, "begin", _begin)
        return engine


def _begin(connection: Connection) -> None:
    """One that is going to write waits for others here, where nothing was read yet that could become old."""
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _locked(path: Path) -> int:
    """The descriptor that holds the lock on `path`; the kernel lets go of it when the process dies."""
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + PATIENCE
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
