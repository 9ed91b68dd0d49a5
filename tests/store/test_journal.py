"""The journal, wherever it is kept: in a file and on a real PostgreSQL, with real kills."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable

import pytest
from stores import Store, check_batches, facts, folded, numbers_in

from raysched.core.facts import Retried
from raysched.core.state import State
from raysched.errors import ConfigError, StorageError
from raysched.store.journal import Journal
from raysched.store.tables import SCHEMA

Start = Callable[[Store], Journal]
Writer = Callable[..., "subprocess.Popen[str]"]


def test_facts_come_back_in_order_with_their_numbers(start: Start, store: Store) -> None:
    journal = start(store)
    assert journal.load()[:2] == (None, 0)
    assert journal.append(facts(1, 2)) == 2
    assert journal.append(facts(3)) == 3
    assert journal.append([]) == 3
    journal = start(store)
    assert folded(journal) == facts(1, 2, 3)
    assert list(journal.facts(1)) == list(zip([2, 3], facts(2, 3), strict=True))


def test_a_start_reads_the_newest_snapshot_and_only_the_facts_after_it(start: Start, store: Store) -> None:
    journal = start(store)
    journal.append(facts(1, 2))
    journal.snapshot(State(count=2), 2)
    journal.append(facts(3))
    state, seq, rest = start(store).load()
    assert (state, seq, list(rest)) == (State(count=2), 2, facts(3))


def test_the_two_newest_snapshots_are_kept(start: Start, store: Store) -> None:
    journal = start(store)
    journal.append(facts(*range(9)))
    for seq in (3, 6, 9, 9):
        journal.snapshot(State(count=seq), seq)
    assert store.sql("select seq from snapshots order by seq") == "6\n9"


@pytest.mark.parametrize(
    "damage",
    [
        "update snapshots set checksum = checksum + 1 where seq = 2",
        "update snapshots set shape = 'another version' where seq = 2",
        "update snapshots set fact = 9 where seq = 2",
    ],
)
def test_a_snapshot_that_cannot_be_used_is_passed_over(
    start: Start, store: Store, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    journal = start(store)
    journal.append(facts(1, 2, 3))
    journal.snapshot(State(count=1), 1)
    journal.snapshot(State(count=2), 2)
    store.sql(damage)
    caplog.set_level("INFO")
    state, seq, rest = journal.load()
    assert (state, seq, list(rest)) == (State(count=1), 1, facts(2, 3))
    assert "is passed over" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        "update facts set body = replace(body, 'lease', 'trick') where seq = 2",
        "update facts set kind = 'Releasing' where seq = 2",
        "delete from facts where seq = 2",
    ],
)
def test_damage_is_told_and_never_folded(start: Start, store: Store, damage: str) -> None:
    journal = start(store)
    journal.append(facts(1, 2, 3))
    store.sql(damage)
    rest = journal.load()[2]
    assert next(rest) == facts(1)[0]
    with pytest.raises(StorageError, match=r"damaged at fact 2; restore a backup.*raysched store restore"):
        next(rest)


def test_a_second_ledger_is_refused_and_gets_it_once_the_first_is_gone(start: Start, store: Store) -> None:
    start(store).append(facts(1))
    with pytest.raises(StorageError, match=f"process {os.getpid()}.*raysched down"):
        Journal(store.url)
    assert folded(start(store)) == facts(1)


def test_the_lock_dies_with_the_process_that_held_it(start: Start, store: Store, writer: Writer) -> None:
    process = writer(store)
    process.kill()
    process.communicate()
    start(store)


def test_facts_are_written_only_after_the_last_one_that_was_known(start: Start, store: Store) -> None:
    """Somebody got past the lock: what was decided on another state is not written, not even after that one
    was packed away."""
    journal = start(store)
    journal.append(facts(1))
    stranger = "select seq + 1, kind, body, checksum from facts where seq = 1"
    store.sql(f"insert into facts (seq, kind, body, checksum) {stranger}")
    with pytest.raises(StorageError, match="written by another ledger meanwhile"):
        journal.append(facts(2))
    store.sql("delete from facts where seq = 2")
    list(journal.load()[2])
    assert journal.append(facts(2)) == 2


def test_what_was_acknowledged_is_there_after_kill_9_and_no_batch_is_torn(
    start: Start, store: Store, writer: Writer
) -> None:
    """Kills fall between and within appends, and each round goes on where the last one was cut."""
    acknowledged = 0
    for rounds in range(1, 7):
        process = writer(store)
        assert process.stdout is not None
        for _ in range(rounds * 3):
            acknowledged = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *numbers_in(process.communicate()[0])])
    check_batches(folded(start(store)), acknowledged)


def test_a_journal_from_the_future_is_refused(start: Start, store: Store) -> None:
    start(store)
    store.sql(f"update meta set value = '{SCHEMA + 1}' where name = 'schema'")
    with pytest.raises(StorageError, match="newer raysched"):
        start(store)


@pytest.mark.parametrize(
    "url",
    ["mysql://host/db", "postgresql://host", "journal.sqlite", "sqlite://", "sqlite:///:memory:", "", "::"],
)
def test_what_names_no_journal_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"sqlite:///PATH.*postgresql://"):
        Journal(url)


def test_a_password_is_not_told() -> None:
    with pytest.raises(ConfigError) as caught:
        Journal("mysql://ana:hidden@host/db")
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("text", [os.fsdecode(b"caf\xe9"), "\0", "line\nline", "\u2028 \U0001f600"])
def test_any_text_survives(start: Start, store: Store, text: str) -> None:
    """A name that is no UTF-8, and characters that PostgreSQL does not take."""
    odd = Retried(1, "job", text)
    start(store).append([odd])
    assert folded(start(store)) == [odd]
