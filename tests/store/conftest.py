"""A journal for each test, in a file and on a real PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from postgres import Postgres
from stores import WRITER, FileStore, ServerStore, Store

from raysched.store.journal import Journal


@pytest.fixture(scope="session")
def shared_postgres() -> Iterator[Postgres]:
    """A server that tests share: each has a database of its own."""
    server = Postgres()
    yield server
    server.close()


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """A server of the test's own, which it may break."""
    server = Postgres()
    yield server
    server.close()


@pytest.fixture
def file(tmp_path: Path) -> FileStore:
    """A journal in a file."""
    return FileStore(tmp_path / "journal.sqlite")


@pytest.fixture(params=["file", "postgres"])
def store(request: pytest.FixtureRequest) -> Store:
    """A journal, wherever journals can be."""
    if request.param == "file":
        return request.getfixturevalue("file")
    server: Postgres = request.getfixturevalue("shared_postgres")
    return ServerStore(server, server.database())


@pytest.fixture
def start() -> Iterator[Callable[[Store], Journal]]:
    """Opens a journal as a restarted ledger would: the one before is closed."""
    opened: list[Journal] = []

    def restart(store: Store) -> Journal:
        for journal in opened:
            journal.close()
        opened.append(Journal(store.url))
        return opened[-1]

    yield restart
    for journal in opened:
        journal.close()


@pytest.fixture
def writer() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`writer(store)` is a process that appends batches of seven facts and prints each number that was
    acknowledged; `program` is another program for it, `environment` adds variables."""
    started: list[subprocess.Popen[str]] = []

    def begin(
        store: Store, *arguments: str, program: str = "", environment: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", program or WRITER, store.url, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
