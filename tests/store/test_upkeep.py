"""Snapshots and packs, made beside a ledger that writes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from running import wait_until
from stores import Store, check_batches, facts, numbers_in

from raysched.core.facts import Drained, Fact, NodeJoined
from raysched.core.node import NodeInfo
from raysched.errors import StorageError
from raysched.store import upkeep
from raysched.store.journal import Journal
from raysched.store.reader import Reader, fold
from raysched.store.tables import PACK
from raysched.store.upkeep import Keeper, Upkeep

Start = Callable[[Store], Journal]
Writer = Callable[..., "subprocess.Popen[str]"]


def news(count: int) -> list[Fact]:
    """Facts that fold to ten nodes."""
    return [NodeJoined(at, NodeInfo(f"node-{at % 10}", ("vm",), (), at, 1)) for at in range(count)]


def kept(store: Store) -> list[int]:
    """Which snapshots there are."""
    return [int(seq) for seq in store.sql("select seq from snapshots order by seq").split()]


def test_a_snapshot_is_what_the_facts_fold_to(start: Start, store: Store) -> None:
    journal = start(store)
    journal.append(news(25))
    with Keeper(store.url) as keeper:
        assert keeper.snapshot() == 25
    state, seq, rest = journal.load()
    assert (seq, list(rest)) == (25, [])
    assert state is not None
    assert {name: node.info.cpus for name, node in state.nodes.items()} == {
        f"node-{number}": 20 + number if number < 5 else 10 + number for number in range(10)
    }


def test_facts_before_both_snapshots_are_packed_and_still_read(start: Start, store: Store) -> None:
    journal = start(store)
    told = news(3 * PACK + 10)
    journal.append(told[: 2 * PACK + 5])
    with Keeper(store.url) as keeper:
        keeper.snapshot()
        assert keeper.pack() == 0, (
            "a start must not need what is packed, even if the newest snapshot is damaged"
        )
        journal.append(told[2 * PACK + 5 :])
        keeper.snapshot()
        assert keeper.pack() == 2 * PACK
        assert keeper.pack() == 0
    assert store.sql("select min(seq) from facts") == str(2 * PACK + 1)
    journal = start(store)
    assert [fact for _, fact in journal.facts()] == told
    assert [seq for seq, _ in journal.facts(PACK - 1)] == list(range(PACK, len(told) + 1))
    assert journal.append(facts(1)) == len(told) + 1
    with Reader(store.url) as reader:
        assert reader.last() == len(told) + 1


def test_a_damaged_pack_is_told(start: Start, store: Store) -> None:
    packed(start(store), store)
    store.sql("update packs set last = last - 1 where first = 1001")
    with Reader(store.url) as reader, pytest.raises(StorageError, match="damaged at fact 1001"):
        list(reader.facts())


def test_what_is_damaged_is_not_packed(start: Start, store: Store) -> None:
    journal = start(store)
    for _ in range(2):
        journal.append(news(PACK))
        with Keeper(store.url) as keeper:
            keeper.snapshot()
    store.sql("update facts set checksum = checksum + 1 where seq = 17")
    with Keeper(store.url) as keeper, pytest.raises(StorageError, match="damaged at fact 17"):
        keeper.pack()
    assert store.sql("select count(*) from packs") == "0"


def test_a_journal_that_is_not_there_is_not_made(store: Store) -> None:
    with pytest.raises(StorageError, match=r"is not there|holds no journal"):
        Keeper(store.url)


def test_it_disturbs_no_ledger_that_writes(start: Start, store: Store, writer: Writer) -> None:
    """Round after round of upkeep while another process appends: none of its batches fails, all are there."""
    process = writer(store)
    assert process.stdout is not None
    with Keeper(store.url) as keeper:
        for _ in range(4):
            for _ in range(100):
                acknowledged = int(process.stdout.readline())
            keeper.snapshot()
            keeper.pack()
    process.kill()
    acknowledged = max([acknowledged, *numbers_in(process.stdout.read())])
    process.wait()
    assert store.sql("select count(*) from packs") != "0"
    check_batches([fact for _, fact in start(store).facts()], acknowledged)


def test_it_may_be_killed_at_any_time(start: Start, store: Store) -> None:
    """Here: as soon as the snapshot is there, which is before, within or after the packing."""
    journal = start(store)
    told = news(5 * PACK)
    journal.append(told)
    for _ in range(3):
        told.append(Drained(1, "node-1", True))
        journal.append(told[-1:])
        command = [sys.executable, "-m", "raysched.store.upkeep"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
        assert process.stdin is not None
        with process.stdin as pipe:
            pipe.write(store.url)
        wait_until(lambda: kept(store)[-1:] == [len(told)], "a snapshot is there")
        process.kill()
        process.wait()
    assert [fact for _, fact in start(store).facts()] == told


def test_a_ledger_begins_it_when_it_is_due(
    start: Start, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "DUE", 100)
    monkeypatch.setattr(upkeep, "_REST", 0)
    journal = start(store)
    journal.append(news(99))
    beside = Upkeep(store.url)
    beside.look(99)
    assert beside._process is None
    journal.append(news(1))
    beside.look(100)
    wait_until(lambda: kept(store) == [100], "a snapshot is there")
    journal.append(news(100))

    def second() -> bool:
        beside.look(200)
        return kept(store) == [100, 200]

    wait_until(second, "a second one is there")
    process = beside._process
    assert process is None or process.wait() == 0


def packed(journal: Journal, store: Store) -> None:
    """Three packs, and then some facts."""
    for _ in range(2):
        journal.append(news(3 * PACK + 1))
        with Keeper(store.url) as keeper:
            keeper.snapshot()
            keeper.pack()


def test_a_start_from_a_snapshot_comes_to_the_state_of_a_start_without(start: Start, store: Store) -> None:
    packed(start(store), store)
    with Reader(store.url) as reader:
        quick = fold(reader)
    store.sql("delete from snapshots")
    with Reader(store.url) as reader:
        assert fold(reader) == quick
