"""What is peculiar to a journal in PostgreSQL: cut connections, killed servers, and words for its errors."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from postgres import Postgres
from running import free_port
from stores import ServerStore, Store, check_batches, facts, folded, numbers_in

from raysched.errors import StorageError
from raysched.store.journal import Journal
from raysched.store.place import Lost
from raysched.store.reader import Reader

Start = Callable[[Store], Journal]
Writer = Callable[..., "subprocess.Popen[str]"]

STUBBORN = """
import itertools, sys, time
from raysched.core.facts import NodeJoined
from raysched.core.node import NodeInfo
from raysched.errors import StorageError
from raysched.store.journal import Journal
from raysched.store.place import Lost

journal = Journal(sys.argv[1])
print("open", flush=True)
for batch in itertools.count():
    nodes = [NodeInfo(f"node-{number}", ("vm",), (), batch, 1, "x" * 500) for number in range(7)]
    try:
        print(journal.append([NodeJoined(batch, node) for node in nodes]), flush=True)
    except StorageError as problem:
        print(problem, flush=True)
        while True:
            try:
                list(journal.load()[2])
                break
            except StorageError:
                time.sleep(0.02)
"""
"""A program that appends as the ledger does: after an error it reads the journal again, until it can."""


@pytest.fixture
def server(shared_postgres: Postgres) -> ServerStore:
    return ServerStore(shared_postgres, shared_postgres.database())


def cut(store: ServerStore) -> None:
    """End every connection to this one database."""
    name = store.url.rpartition("/")[2]
    store.server.sql(f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'")


def test_a_cut_connection_is_made_again(start: Start, server: ServerStore) -> None:
    """With its lock."""
    journal = start(server)
    journal.append(facts(1))
    cut(server)
    assert journal.append(facts(2)) == 2
    assert folded(journal) == facts(1, 2)
    with pytest.raises(StorageError, match="used by another ledger"):
        Journal(server.url)


def test_who_lost_the_connection_and_the_lock_cannot_write_over_another(
    start: Start, server: ServerStore
) -> None:
    journal = start(server)
    journal.append(facts(1))
    cut(server)
    other = Journal(server.url)
    other.append(facts(2))
    with pytest.raises(StorageError, match=r"used by another ledger \(raysched, process \d+ on "):
        journal.append(facts(3))
    other.close()
    with pytest.raises(StorageError, match="written by another ledger meanwhile"):
        journal.append(facts(3))
    assert folded(journal) == facts(1, 2)
    assert journal.append(facts(3)) == 3


def test_a_cut_amid_a_read_is_told(start: Start, server: ServerStore) -> None:
    start(server).append(facts(*range(3000)))
    with Reader(server.url) as reader:
        rows = reader.facts()
        next(rows)
        cut(server)
        with pytest.raises(StorageError, match="connection to the server was lost"):
            list(rows)
        assert len(list(reader.facts())) == 3000


def test_a_write_whose_answer_was_lost_is_not_written_twice(
    start: Start, server: ServerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks right after the server committed."""
    journal = start(server)
    write = journal._write

    def break_afterwards(rows: Any) -> None:
        write(rows)
        cut(server)
        monkeypatch.undo()
        raise Lost("the answer did not come")

    monkeypatch.setattr(journal, "_write", break_afterwards)
    assert journal.append(facts(1, 2)) == 2
    assert journal.append(facts(3)) == 3
    assert folded(journal) == facts(1, 2, 3)


def test_what_was_acknowledged_outlives_cuts_kills_and_restarts_of_the_server(
    start: Start, postgres: Postgres, writer: Writer
) -> None:
    """It is cut off, stopped, and killed with -9 amid appends; the same process goes on each time."""
    store = ServerStore(postgres, postgres.database())
    process = writer(store, program=STUBBORN)
    assert process.stdout is not None
    told: list[str] = []

    def kill() -> None:
        postgres.kill()
        postgres.start()

    def stop() -> None:
        postgres.stop()
        postgres.start()

    for fault in (lambda: cut(store), kill, stop, kill):
        told += [process.stdout.readline() for _ in range(20)]
        fault()
    told += [process.stdout.readline() for _ in range(200)]
    process.kill()
    told += process.stdout.read().splitlines(keepends=True)
    process.wait()
    errors = [line for line in told if not line.strip().isdigit() and line.endswith("\n")]
    assert all("the connection to the server was lost" in line or "answers" in line for line in errors), (
        errors
    )
    numbers = numbers_in("".join(line for line in told if line.strip().isdigit()))
    assert numbers == sorted(set(numbers))
    check_batches(folded(start(store)), numbers[-1])


def test_a_server_that_stays_away_is_an_error_and_its_return_goes_on(
    start: Start, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raysched.store.journal.RECONNECT_S", 0.2)
    store = ServerStore(postgres, postgres.database())
    journal = start(store)
    journal.append(facts(1))
    postgres.stop()
    for _ in range(2):
        with pytest.raises(StorageError, match="no PostgreSQL answers there"):
            journal.append(facts(2))
        with pytest.raises(StorageError, match="no PostgreSQL answers there"):
            journal.load()
    postgres.start()
    assert folded(journal) == facts(1)
    assert journal.append(facts(2)) == 2


def test_a_commit_is_on_the_disk_before_it_is_acknowledged(start: Start, server: ServerStore) -> None:
    """Whatever the database's own default."""
    name = server.url.rpartition("/")[2]
    server.sql(f"alter database {name} set synchronous_commit = off")
    journal = start(server)
    with journal._writing() as connection:
        assert connection.exec_driver_sql("show synchronous_commit").scalar() == "on"


def test_reading_writes_nothing(start: Start, server: ServerStore) -> None:
    start(server).append(facts(1))
    with (
        Reader(server.url) as reader,
        pytest.raises(StorageError, match="takes no writes"),
        reader._reading() as connection,
    ):
        connection.exec_driver_sql("delete from facts")
    assert server.sql("select count(*) from facts") == "1"


def test_what_is_in_the_way_is_told(shared_postgres: Postgres) -> None:
    """One sentence each, which names the journal and what to do, and tells no password."""
    there = shared_postgres.database()
    name = there.rpartition("/")[2]
    shared_postgres.sql("create role guest login")
    shared_postgres.sql(
        f"revoke create on schema public from public; revoke all on database {name} from public", name
    )
    where = f"127.0.0.1:{shared_postgres.port}"
    for url, said in (
        (f"postgresql://ana:hidden@127.0.0.1:{free_port()}/db", "no PostgreSQL answers there; start it"),
        (f"postgresql://{shared_postgres.user}:hidden@{where}/nowhere", "createdb"),
        (f"postgresql://guest:hidden@{where}/{name}", "has not the right; grant it"),
        (f"postgresql://nobody-at-all:hidden@{where}/{name}", "does not exist"),
        ("postgresql://ana:hidden@no-such-host.invalid/db", "host's name is not known"),
        ("postgresql://ana:hidden@/db?host=/no/such/folder", "no PostgreSQL listens at that socket"),
    ):
        with pytest.raises(StorageError) as caught:
            Journal(url)
        assert said in str(caught.value)
        assert "hidden" not in str(caught.value)
        assert "\n" not in str(caught.value)
    shared_postgres.sql(f"alter database {name} set default_transaction_read_only = on")
    with pytest.raises(StorageError, match="takes no writes"):
        Journal(there)


def test_tables_of_another_program_are_left_alone(server: ServerStore) -> None:
    server.sql("create table facts (mine text)")
    with pytest.raises(StorageError, match="there already is a table facts of something else"):
        Journal(server.url)
    assert server.sql("select count(*) from facts") == "0"


def test_two_journals_may_be_in_two_schemas_of_a_database(server: ServerStore) -> None:
    server.sql("create schema one; create schema two")
    urls = [f"{server.url}?options=-csearch_path%3D{name}" for name in ("one", "two")]
    journals: list[Any] = [Journal(url) for url in urls]
    for number, journal in enumerate(journals):
        journal.append(facts(number))
    assert [folded(journal) for journal in journals] == [facts(0), facts(1)]
    for journal in journals:
        journal.close()
