"""A journal in PostgreSQL: its connections, its lock, and what its errors mean for the user.

There is one writing connection, and it holds an advisory lock of the server for as long as it lives. So a
connection that is lost takes the lock with it, and the next one has it again before it writes; that another
ledger wrote meanwhile shows in the numbers of the facts (journal.py).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import event, inspect
from sqlalchemy.engine import URL, Connection, Engine, create_engine

from raysched.store.place import PATIENCE, InUse, Place
from raysched.store.tables import tables

_LOCK = 0x7261797  # any number that no other program on that database takes
_ANSWER_S = 5
"""Seconds in which the server has to answer a new connection."""

_CONNECTION = {
    # A server that is out of reach is noticed within half a minute, and one that lost us lets go of our lock.
    "connect_timeout": str(_ANSWER_S),
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
_SETTINGS = (
    "set tcp_keepalives_idle = 10",
    "set tcp_keepalives_interval = 5",
    "set tcp_keepalives_count = 3",
    # A commit is on the server's disk before it is acknowledged, whatever the server's default.
    "select set_config('synchronous_commit', 'on', false) "
    "where current_setting('synchronous_commit') = 'off'",
    "set client_min_messages = warning",
)
_READ_ONLY = "set default_transaction_read_only = on"

_BY_STATE = {
    "53100": "the disk of the server is full; free some space there, and the ledger goes on: nothing that "
    "was acknowledged is lost",
    "53300": "the server has no connection left; raise its max_connections",
    "25006": "the server takes no writes (it is a standby, or read-only); name the primary",
    "3D000": "that database does not exist; make it with `createdb`",
    "42501": "this user has not the right; grant it, or make the user the owner of the database",
    "28P01": "the password is wrong; correct it in ~/.pgpass, PGPASSWORD or the URL",
    "28000": "the server does not let this user in; look at its pg_hba.conf",
    "XX001": "the server says that it is damaged; restore a backup",
    "XX002": "the server says that it is damaged; restore a backup",
}
"""What to do, by SQLSTATE (postgresql.org/docs/current/errcodes-appendix.html)."""

_BY_WORDS = {
    "does not exist": _BY_STATE["3D000"],
    "password": _BY_STATE["28P01"],
    "permission denied": _BY_STATE["42501"],
    "pg_hba": _BY_STATE["28000"],
    "resolve": "the host's name is not known; correct it in `store` of raysched.yaml",
    "refused": "no PostgreSQL answers there; start it, or correct `store` in raysched.yaml",
    "timeout": "no PostgreSQL answers there in time; look at the network, or correct `store` in "
    "raysched.yaml",
    "starting up": "the server is starting; try again in a moment",
    "not yet accepting": "the server is starting; try again in a moment",
    "shutting down": "the server is shutting down; start it again",
    "No such file": "no PostgreSQL listens at that socket; start it, or correct `store` in raysched.yaml",
}
"""What to do where there is no SQLSTATE, because no connection came about."""

_COMES_BACK = (
    "refused",
    "timeout",
    "starting up",
    "shutting down",
    "not yet accepting",
    "No such file",
    "closed the connection",
)
_LOST_STATES = ("08", "57P")
_LOST = "the connection to the server was lost; it is made again as soon as the server answers"


class ServerPlace(Place):
    """A journal in the database that a URL names."""

    def __init__(self, url: URL) -> None:
        self._url = url.set(query={**_CONNECTION, **url.query})
        self.where = url.set(drivername="postgresql", password=None, query={}).render_as_string()

    @property
    def afresh(self) -> str:
        """How to start with an empty one."""
        return "name another database to start with an empty journal"

    def reader(self) -> Engine:
        """Each transaction sees one moment, and writes nothing."""
        engine = create_engine(self._url, isolation_level="REPEATABLE READ")
        event.listen(engine, "connect", _read_only)
        return engine

    def writer(self) -> Engine:
        """One connection, which has the lock."""
        engine = create_engine(self._url, pool_size=1, max_overflow=0, paramstyle="format")
        event.listen(engine, "connect", self._take)
        return engine

    def helper(self) -> Engine:
        """Ordinary connections."""
        engine = create_engine(self._url, pool_size=1, max_overflow=0, paramstyle="format")
        event.listen(engine, "connect", _prepare)
        return engine

    def replace(self, fill: Callable[[Connection], None], stamp: str) -> str | None:
        """The old tables get other names, in the transaction that makes the new ones."""
        engine = self.writer()
        try:
            with self.wording(engine.begin) as connection:
                there = [name for name in tables.tables if inspect(connection).has_table(name)]
                for name in there:
                    connection.exec_driver_sql(f"alter table {name} rename to {name}_before_{stamp}")
                    connection.exec_driver_sql(
                        f"alter index if exists {name}_pkey rename to {name}_before_{stamp}_pkey"
                    )
                fill(connection)
        finally:
            engine.dispose()
        return f"tables *_before_{stamp}" if there else None

    def driver_errors(self) -> tuple[type[Exception], ...]:
        """Those of psycopg."""
        from psycopg import Error

        return (Error,)

    def bytes(self, connection: Connection) -> int:
        """Of the tables and their indexes."""
        sizes = (f"coalesce(pg_total_relation_size(to_regclass('{name}')), 0)" for name in tables.tables)
        return int(connection.exec_driver_sql(f"select {' + '.join(sizes)}").scalar() or 0)

    def complaints(self, connection: Connection) -> list[str]:
        """Settings of the server with which it may lose what was acknowledged."""
        unsafe = [
            name
            for name in ("fsync", "full_page_writes")
            if connection.exec_driver_sql(f"select current_setting('{name}')").scalar() == "off"
        ]
        return [f"the server runs with {name} = off: when its power fails, facts are lost" for name in unsafe]

    def shrink(self) -> None:
        """The tables are written anew without their free pages."""
        engine = create_engine(self._url, isolation_level="AUTOCOMMIT")
        try:
            with self.wording(engine.connect) as connection:
                for name in tables.tables:
                    connection.exec_driver_sql(f"vacuum full {name}")
        finally:
            engine.dispose()

    def is_lost(self, problem: Exception) -> bool:
        """Whether the connection broke, or none comes about because the server is being started."""
        original = getattr(problem, "orig", None) or problem
        state, said = getattr(original, "sqlstate", None), str(original)
        if getattr(problem, "connection_invalidated", False) or (state or "").startswith(_LOST_STATES):
            return True
        return state is None and any(words in said for words in _COMES_BACK)

    def advice(self, problem: Exception) -> str:
        """What PostgreSQL's error means, by its SQLSTATE, else by its words."""
        original = getattr(problem, "orig", None) or problem
        state = getattr(original, "sqlstate", None)
        said = " ".join(str(original).split())
        if state in _BY_STATE:
            return _BY_STATE[state]
        if getattr(problem, "connection_invalidated", False) or (state or "").startswith(_LOST_STATES):
            return _LOST
        for words, sentence in _BY_WORDS.items():
            if state is None and words in said:
                return sentence
        return f"PostgreSQL says {said!r}"

    def _take(self, connection: Any, _record: Any) -> None:
        """Make a connection ready, and take the lock with it. Raises StorageError where another has it."""
        _prepare(connection, _record)
        deadline = time.monotonic() + PATIENCE
        while not _ask(connection, f"select pg_try_advisory_lock({_LOCK}, hashtext(current_schema()))"):
            if time.monotonic() > deadline:
                raise InUse(
                    f"{self.name} is used by another ledger ({_holder(connection)}); stop that one with "
                    "`raysched down`, or name another database (`store` in raysched.yaml)"
                )
            time.sleep(0.05)
        _ask(connection, "select set_config('application_name', %s, false)", _who())


def _prepare(connection: Any, _record: Any) -> None:
    for setting in _SETTINGS:
        _ask(connection, setting)


def _read_only(connection: Any, _record: Any) -> None:
    _prepare(connection, _record)
    _ask(connection, _READ_ONLY)


def _ask(connection: Any, statement: str, *arguments: str) -> Any:
    """The first value that a statement gives, in a transaction of its own."""
    with connection.cursor() as cursor:
        cursor.execute(statement, arguments)
        row = cursor.fetchone() if cursor.description else None
    connection.commit()
    return row[0] if row else None


def _holder(connection: Any) -> str:
    """Who has the lock, as far as the server tells."""
    found = _ask(
        connection,
        "select application_name from pg_locks join pg_stat_activity using (pid) "
        f"where locktype = 'advisory' and classid = {_LOCK} and granted limit 1",
    )
    return found or "unknown"


def _who() -> str:
    return f"raysched, process {os.getpid()} on {socket.gethostname()}"
