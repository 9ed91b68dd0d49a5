"""`check` finds what is wrong, backups are whole, restoring keeps the old one, compacting loses nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from stores import FileStore, Store, check_batches, facts, numbers_in

from raysched.core.facts import Fact, NodeJoined
from raysched.core.node import NodeInfo
from raysched.core.state import State
from raysched.errors import Conflict, StorageError
from raysched.store.backup import backup, restore
from raysched.store.check import Kept, check
from raysched.store.compact import compact
from raysched.store.file import url_of
from raysched.store.journal import Journal
from raysched.store.reader import Reader
from raysched.store.tables import PACK
from raysched.store.upkeep import Keeper

Start = Callable[[Store], Journal]
Writer = Callable[..., "subprocess.Popen[str]"]


def nodes(count: int, first: int = 0) -> list[Fact]:
    """Facts that fold."""
    return [
        NodeJoined(at, NodeInfo(f"node-{at % 10}", ("vm",), (), at, 1)) for at in range(first, first + count)
    ]


def all_facts(store: Store) -> list[Fact]:
    with Reader(store.url) as reader:
        return [fact for _, fact in reader.facts()]


@pytest.fixture
def full(start: Start, store: Store) -> Store:
    """A journal with packs, two snapshots and facts after them, that no ledger uses."""
    journal = start(store)
    for part in range(2):
        journal.append(nodes(PACK + 200, part * 1000))
        with Keeper(store.url) as keeper:
            keeper.snapshot()
            keeper.pack()
    journal.append(nodes(5))
    journal.close()
    return store


def test_a_good_journal_has_no_problems(full: Store) -> None:
    found = check(full.url)
    assert found.problems == []
    assert (found.facts, found.packed) == (2 * PACK + 405, PACK)
    assert found.snapshots == [Kept(2 * PACK + 400, True), Kept(PACK + 200, True)]
    assert found.bytes > 0


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("update facts set body = '{}' where seq = 2001", "damaged at fact 2001"),
        ("delete from facts where seq = 2001", "damaged at fact 2001"),
        ("update packs set checksum = 7", "damaged at fact 1"),
        ("update snapshots set checksum = 7 where seq = 1200", "snapshot after fact 1200 is damaged"),
        ("update snapshots set seq = 9999 where seq = 1200", "snapshot after fact 9999 is damaged"),
    ],
)
def test_damage_is_found(full: Store, damage: str, problem: str) -> None:
    full.sql(damage)
    assert [said for said in check(full.url).problems if problem in said]


def test_a_snapshot_that_is_not_what_the_facts_fold_to_is_found(start: Start, full: Store) -> None:
    start(full).snapshot(State(count=7), 2 * PACK + 405)
    (problem,) = check(full.url).problems
    assert problem == "the snapshot after fact 2405 is not what the facts fold to"


def test_facts_that_do_not_fold_are_found(start: Start, full: Store) -> None:
    start(full).append(facts(1))
    (problem,) = check(full.url).problems
    assert "does not fold: fact 2406, Released, does not follow" in problem


def test_a_damaged_file_is_found(file: FileStore, start: Start) -> None:
    journal = start(file)
    journal.append(nodes(5000))
    journal.close()
    with file.path.open("r+b") as raw:
        raw.seek(200_000)
        raw.write(b"\xff" * 50_000)
    assert any("SQLite finds the file damaged" in said for said in check(file.url).problems)


def test_an_end_that_is_missing_is_found(file: FileStore, start: Start) -> None:
    start(file).append(nodes(10))
    file.sql("delete from facts where seq > 7")
    assert "facts 8 to 10 were acknowledged and are missing" in check(file.url).problems


def test_a_backup_holds_what_the_journal_holds(full: Store, tmp_path: Path) -> None:
    target = tmp_path / "backup #1 %41?.sqlite"
    answer = backup(full.url, target)
    assert (answer["facts"], answer["bytes"]) == (2 * PACK + 405, target.stat().st_size)
    found = check(url_of(target))
    assert found.problems == []
    assert found.snapshots == [Kept(2 * PACK + 400, True)]
    with Reader(url_of(target)) as reader:
        assert [fact for _, fact in reader.facts()] == all_facts(full)
    assert target.stat().st_mode & 0o077 == 0


def test_a_backup_may_be_made_while_a_ledger_writes(store: Store, writer: Writer, tmp_path: Path) -> None:
    """It has all that was acknowledged before it began, and no batch fails meanwhile."""
    process = writer(store)
    assert process.stdout is not None
    for number in range(3):
        for _ in range(50):
            acknowledged = int(process.stdout.readline())
        target = FileStore(tmp_path / f"backup-{number}.sqlite")
        backup(store.url, target.path)
        check_batches(all_facts(target), acknowledged)
    process.kill()
    later = numbers_in(process.stdout.read())
    assert len(later) > 1
    check_batches(all_facts(store), later[-1])


def test_a_backup_overwrites_nothing_and_leaves_nothing_half(full: Store, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("mine")
    with pytest.raises(Conflict, match="exists already"):
        backup(full.url, there)
    assert there.read_text() == "mine"
    full.sql("delete from facts where seq = 2001")
    with pytest.raises(StorageError, match="damaged at fact 2001"):
        backup(full.url, tmp_path / "new")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("new")]
    with pytest.raises(StorageError, match="No such file or directory"):
        backup(full.url, tmp_path / "no-such-folder" / "new")


def test_restoring_brings_back_what_was_and_keeps_what_is(start: Start, full: Store, tmp_path: Path) -> None:
    before = all_facts(full)
    backup(full.url, tmp_path / "backup")
    journal = start(full)
    journal.append(nodes(3))
    after = [fact for _, fact in journal.facts()]
    journal.close()
    answer = restore(tmp_path / "backup", full.url)
    assert answer["facts"] == len(before)
    assert all_facts(full) == before
    assert start(full).append(nodes(1)) == len(before) + 1
    if isinstance(full, FileStore):
        assert all_facts(FileStore(Path(answer["aside"]))) == after
    else:
        stamp = answer["aside"].rpartition("*")[2]
        assert full.sql(f"select max(seq) from facts{stamp}") == str(len(after))


def test_restoring_over_a_damaged_journal_works(full: Store, tmp_path: Path, start: Start) -> None:
    before = all_facts(full)
    backup(full.url, tmp_path / "backup")
    full.sql("delete from facts where seq = 2001")
    full.sql("drop table snapshots")
    restore(tmp_path / "backup", full.url)
    assert all_facts(full) == before
    start(full)


def test_restoring_where_no_journal_is_makes_one(full: Store, file: FileStore, tmp_path: Path) -> None:
    """A journal moves from one kind of store to the other, too."""
    backup(full.url, tmp_path / "backup")
    other = FileStore(tmp_path / "other.sqlite")
    assert restore(tmp_path / "backup", other.url)["aside"] is None
    assert all_facts(other) == all_facts(full)
    full.sql("drop table meta")
    restore(tmp_path / "backup", full.url)
    assert all_facts(full) == all_facts(other)


def test_a_log_that_is_left_is_not_taken_for_the_restored_journals(
    file: FileStore, writer: Writer, start: Start, tmp_path: Path
) -> None:
    """Its ledger was killed, and somebody deleted the file alone."""
    process = writer(file)
    assert process.stdout is not None
    for _ in range(50):
        process.stdout.readline()
    process.kill()
    process.wait()
    backup(file.url, tmp_path / "backup")
    before = all_facts(file)
    file.path.unlink()
    restore(tmp_path / "backup", file.url)
    assert all_facts(file) == before
    assert start(file).append(nodes(1)) == len(before) + 1
    assert check(file.url).problems == []


def test_a_journal_in_use_is_not_restored_over(start: Start, full: Store, tmp_path: Path) -> None:
    backup(full.url, tmp_path / "backup")
    journal = start(full)
    with pytest.raises(StorageError, match="is used by another ledger"):
        restore(tmp_path / "backup", full.url)
    assert journal.append(nodes(1)) == 2 * PACK + 406


@pytest.mark.parametrize("damage", ["delete from packs where first = 1001", "update packs set checksum = 7"])
def test_a_damaged_backup_is_not_restored(full: Store, tmp_path: Path, damage: str) -> None:
    file = FileStore(tmp_path / "backup")
    backup(full.url, file.path)
    file.sql(damage)
    before = all_facts(full)
    with pytest.raises(StorageError, match=r"the backup .* is damaged"):
        restore(file.path, full.url)
    assert all_facts(full) == before
    with pytest.raises(StorageError, match="is not there"):
        restore(tmp_path / "nowhere", full.url)


def test_compacting_loses_nothing_and_takes_less_room(full: Store, start: Start) -> None:
    before = all_facts(full)
    answer = compact(full.url)
    assert (answer["packed"], answer["in_use"]) == (PACK, False)
    assert answer["bytes_after"] < answer["bytes_before"]
    assert all_facts(full) == before
    assert check(full.url).problems == []
    assert start(full).append(nodes(1)) == len(before) + 1


def test_a_journal_in_use_is_compacted_and_goes_on(full: Store, start: Start) -> None:
    journal = start(full)
    answer = compact(full.url)
    assert (answer["packed"], answer["in_use"]) == (PACK, True)
    assert journal.append(nodes(1)) == 2 * PACK + 406
    assert check(full.url).problems == []
