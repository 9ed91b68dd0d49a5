"""Where the journals of tests are, and how to change them behind their backs."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from postgres import Postgres

from raysched.core.facts import Fact, NodeJoined, Released
from raysched.store.reader import Reader

NODES = [f"node-{number}" for number in range(7)]

WRITER = """
import itertools, resource, sys
from raysched.core.facts import NodeJoined
from raysched.core.node import NodeInfo
from raysched.errors import StorageError
from raysched.store.journal import Journal

journal = Journal(sys.argv[1])
print("open", flush=True)
if sys.argv[2:]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
for batch in itertools.count():
    nodes = [NodeInfo(f"node-{number}", ("vm",), (), batch, 1, "x" * 500) for number in range(7)]
    try:
        print(journal.append([NodeJoined(batch, node) for node in nodes]), flush=True)
    except StorageError as problem:
        print(problem, flush=True)
        break
"""
"""A program that appends batches of seven facts, a fact for each of NODES, and prints each number that was
acknowledged. A second argument is the size beyond which it may not grow a file."""


class Store(Protocol):
    """A journal that is there or can be made."""

    @property
    def url(self) -> str: ...

    def sql(self, statement: str) -> str:
        """Run a statement; what it finds, a row a line, columns with | between."""
        ...


@dataclass(frozen=True)
class FileStore:
    """In a file."""

    path: Path

    @property
    def url(self) -> str:
        return f"sqlite:///{self.path}"

    def sql(self, statement: str) -> str:
        connection = sqlite3.connect(self.path)
        try:
            rows = connection.execute(statement).fetchall()
            connection.commit()
        finally:
            connection.close()
        return "\n".join("|".join(map(str, row)) for row in rows)


@dataclass(frozen=True)
class ServerStore:
    """In a database of a PostgreSQL."""

    server: Postgres
    url: str

    def sql(self, statement: str) -> str:
        return self.server.sql(statement, self.url.rpartition("/")[2])


def facts(*numbers: int) -> list[Fact]:
    """A fact for each number, none like another."""
    return [Released(number, f"lease-{number}") for number in numbers]


def folded(journal: Reader) -> list[Fact]:
    """All that a start would read, when there is no snapshot."""
    return list(journal.load()[2])


def check_batches(found: list[Fact], acknowledged: int) -> None:
    """What the writer was told to be there is there, and no batch is torn."""
    assert len(found) >= acknowledged
    assert len(found) % 7 == 0
    batches = [found[at : at + 7] for at in range(0, len(found), 7)]
    assert all(
        [fact.node.name for fact in batch if isinstance(fact, NodeJoined)] == NODES for batch in batches
    )


def numbers_in(output: str) -> list[int]:
    """The numbers that a killed writer had printed in full."""
    return [int(line) for line in output.splitlines(keepends=True) if line.endswith("\n")]
