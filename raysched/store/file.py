"""A journal in a file (SQLite): its connections, its lock, and what its errors mean for the user."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, create_engine

from raysched.errors import StorageError
from raysched.store.mark import Mark
from raysched.store.place import PATIENCE, RESTORE, InUse, Place

_WRITES = "raysched_writes"

_DAMAGED = f"it is damaged; {RESTORE}, or {{afresh}}"
_SENTENCES = {
    "database or disk is full": "the disk of {folder} is full ({free} MiB free); free some space there, and "
    "the ledger goes on: nothing that was acknowledged is lost",
    "disk I/O error": "the disk of {folder} reports an error ({free} MiB free); look at the kernel log, the "
    "disk and the limit on file sizes (ulimit -f)",
    "readonly database": "it or its folder {folder} is read-only; make both writable for this user",
    "not a database": f"it is no journal; {RESTORE}, or {{afresh}}",
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
        self.where = str(self.path)
        self.mark = Mark(self.path)
        self._lock = -1

    @property
    def afresh(self) -> str:
        """How to start with an empty one."""
        return f"move {self.path} and {self.path}.mark away to start with an empty one"

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
            self._undo()
        except OSError as problem:
            raise StorageError(
                f"{self.name} can't be opened: {problem.strerror}; name a file in a folder that is there and "
                "writable for this user (`store` in raysched.yaml)"
            ) from problem
        return self.helper()

    def _undo(self) -> None:
        """Undo a write that was cut off, where the file system has no shared memory for a write-ahead log:
        SQLite then keeps what it writes over in a file beside, and whoever only reads can't put it back."""
        if self._cut_off:
            with closing(sqlite3.connect(self.path)) as connection, suppress(sqlite3.Error):
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()

    @property
    def _cut_off(self) -> bool:
        return Path(f"{self.path}-journal").exists() and not Path(f"{self.path}-wal").exists()

    def helper(self) -> Engine:
        """A commit is on the disk before it is acknowledged, and somebody who writes too is waited for."""
        return self._engine("rw", "journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000")

    def replace(self, fill: Callable[[Connection], None], stamp: str) -> str | None:
        """The old file, and its log if one is left, get another name."""
        there = self.path.exists() and self.path.stat().st_size > 0
        self.writer().dispose()
        new, aside = Path(f"{self.path}.new"), Path(f"{self.path}.before-{stamp}")
        try:
            new.unlink(missing_ok=True)
            write_new(new, fill)
            for end in ("-wal", "-shm"):  # a log must never lie beside a file that it does not belong to
                with suppress(FileNotFoundError):
                    os.rename(f"{self.path}{end}", f"{aside}{end}")
            if there:
                os.link(self.path, aside)
            new.replace(self.path)
            _sync(self.path.parent)
        except OSError as problem:
            raise StorageError(f"{self.name} can't be replaced: {problem.strerror}") from problem
        return str(aside) if there else None

    def driver_errors(self) -> tuple[type[Exception], ...]:
        """Those of SQLite."""
        return (sqlite3.Error,)

    def bytes(self, connection: Connection) -> int:
        """With the log."""
        files = [Path(f"{self.path}{end}") for end in ("", "-wal")]
        return sum(file.stat().st_size for file in files if file.exists())

    def complaints(self, connection: Connection) -> list[str]:
        """What SQLite's own check of the file's structure says."""
        said = connection.exec_driver_sql("PRAGMA integrity_check(5)").scalars().all()
        return [f"SQLite finds the file damaged: {line}" for line in said if line != "ok"]

    def shrink(self) -> None:
        """The file is written anew without its free pages, and the log emptied."""
        try:
            with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as problem:
            raise self.error(problem) from problem

    def advice(self, problem: Exception) -> str:
        """What SQLite's error means, by its words."""
        said = str(getattr(problem, "orig", None) or problem)
        if "readonly database" in said and self._cut_off:
            return "its last write was cut off; the next `raysched up` undoes that"
        for part, sentence in _SENTENCES.items():
            if part in said:
                free = shutil.disk_usage(self.path.parent).free // 2**20
                return sentence.format(folder=self.path.parent, free=free, afresh=self.afresh)
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


def writing(engine: Engine) -> Engine:
    """The same connections, for transactions that are going to write."""
    return engine.execution_options(**{_WRITES: True})


def url_of(path: Path) -> URL:
    """The URL of a journal in a file, whatever characters are in its path."""
    return URL.create("sqlite", database=str(path.absolute()))


def write_new(path: Path, fill: Callable[[Connection], None]) -> None:
    """Make a new file, which `fill` makes a journal in one transaction; it is on the disk when this returns.
    Raises StorageError, and OSError where the file can't be made."""
    place = FilePlace(url_of(path))
    _created(path)
    engine = place.helper()
    try:
        with place.wording(writing(engine).begin) as connection:
            fill(connection)
    finally:
        engine.dispose()
    _sync(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _begin(connection: Connection) -> None:
    """One that is going to write waits for others here, where nothing was read yet that could become old."""
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.connection.cursor().execute("BEGIN IMMEDIATE" if writes else "BEGIN")


def _locked(path: Path) -> int:
    """The descriptor that holds the lock on `path`; the kernel lets go of it when the process dies."""
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + PATIENCE
    while not _try_lock(lock):
        if time.monotonic() > deadline:
            holder = os.pread(lock, 20, 0).decode()
            os.close(lock)
            raise InUse(
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
