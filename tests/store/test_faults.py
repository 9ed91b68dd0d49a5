"""A journal on a disk that fails: whatever it does, the answer is an error, nothing acknowledged is lost, and
the ledger goes on."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_disk import FaultyDisk, Operation, When
from stores import FileStore, Store, check_batches, facts, folded

from raysched.core.state import State
from raysched.errors import StorageError
from raysched.store.journal import Journal
from raysched.store.mark import Mark
from raysched.store.upkeep import Keeper

Start = Callable[[Store], Journal]

ROUNDS = """
import sys
from raysched.core.facts import NodeJoined
from raysched.core.node import NodeInfo
from raysched.core.state import State
from raysched.errors import StorageError
from raysched.store.journal import Journal
from raysched.store.mark import Mark

journal = Journal(sys.argv[1])
print("open", flush=True)
for line in sys.stdin:
    batches, size = map(int, line.split())
    for batch in range(batches):
        nodes = [NodeInfo(f"node-{number}", ("vm",), (), batch, 1, "x" * size) for number in range(7)]
        try:
            print(journal.append([NodeJoined(batch, node) for node in nodes]), flush=True)
        except StorageError as problem:
            print(problem, flush=True)
            break
    try:
        print("read", len(list(journal.load()[2])), flush=True)
    except StorageError as problem:
        print("unreadable:", problem, flush=True)
"""
"""For each line with a number of batches and the size of a fact: appends them until there is an error, then
reads the journal anew, as the ledger does after one, and says how many facts there are."""


class Ledger:
    """That program, on a disk that can fail."""

    def __init__(self, store: FileStore, disk: FaultyDisk) -> None:
        command = [sys.executable, "-c", ROUNDS, store.url]
        environment = os.environ | disk.environment
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.acknowledged = 0
        assert self._line() == "open"

    def write(self, batches: int, size: int = 500) -> str:
        """Have it append, and read all of it; what it said of an error, empty where there was none."""
        assert self.process.stdin is not None
        print(batches, size, file=self.process.stdin, flush=True)
        while (line := self._line()).isdigit():
            self.acknowledged = int(line)
        error = ""
        if line and not line.startswith(("read ", "unreadable: ")):
            error, line = line, self._line()
        if line.startswith("read "):
            assert int(line.split()[1]) >= self.acknowledged
            return error
        return line

    def end(self) -> int:
        """Its exit status."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        for line in self.process.stdout:
            self.acknowledged = (
                int(line) if line.endswith("\n") and line.strip().isdigit() else self.acknowledged
            )
        self.process.stdout.close()
        return self.process.wait()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


Begin = Callable[[], Ledger]


@pytest.fixture
def disk(file: FileStore, tmp_path: Path) -> FaultyDisk:
    return FaultyDisk(tmp_path / "control", str(file.path))


@pytest.fixture
def ledger(file: FileStore, disk: FaultyDisk) -> Iterator[Begin]:
    """Starts the program; whatever the test does, it is ended."""
    started: list[Ledger] = []

    def begin() -> Ledger:
        started.append(Ledger(file, disk))
        return started[-1]

    yield begin
    for one in started:
        one.process.kill()
        one.process.wait()
        for pipe in (one.process.stdin, one.process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.mark.parametrize(
    "fault",
    [
        {"at": ("write",), "error": errno.ENOSPC},
        {"at": ("write",), "error": errno.EIO},
        {"at": ("write",), "error": errno.EIO, "torn": True},
        {"at": ("write",), "error": errno.ENOSPC, "torn": True},
        {"at": ("sync",), "error": errno.EIO},
        {"at": ("read",), "error": errno.EIO},
    ],
    ids=lambda fault: "-".join(
        [*fault["at"], errno.errorcode[fault["error"]], *(["torn"] * ("torn" in fault))]
    ),
)
def test_after_any_failure_of_the_disk_the_ledger_goes_on(
    start: Start, file: FileStore, disk: FaultyDisk, ledger: Begin, fault: dict[str, Any]
) -> None:
    """The fault comes at each of the first operations, and at some later ones, where the log is copied into
    the file; there is an error, or the batch was not touched by it, and then the same process goes on."""
    running, chance = ledger(), random.Random(str(fault))
    settings = {key: value for key, value in fault.items() if key != "at"}
    fired = 0
    for nth in [*range(1, 9), *(chance.randrange(9, 250) for _ in range(6))]:
        before = disk.fired
        disk.fail(*fault["at"], nth=nth, **settings)
        error = running.write(30, 4_000)
        came = disk.fired > before
        disk.heal()
        if error:
            assert came
            assert str(file.path) in error
            assert running.write(0) == ""
        fired += came
        assert running.write(1) == ""
    assert fired >= 4
    assert running.end() == 0
    check_batches(folded(start(file)), running.acknowledged)


def test_a_full_disk_stops_writes_and_nothing_else(
    start: Start, file: FileStore, disk: FaultyDisk, ledger: Begin
) -> None:
    running = ledger()
    assert running.write(20) == ""
    disk.fail("write", error=errno.ENOSPC, lasting=True)
    for _ in range(3):
        assert "is full" in running.write(1)
    disk.heal()
    assert running.write(20) == ""
    assert running.end() == 0
    check_batches(folded(start(file)), 280)


@pytest.mark.parametrize("when", ["before", "within", "after"])
@pytest.mark.parametrize("operation", ["write", "sync"])
def test_a_crash_amid_an_operation_loses_nothing(
    start: Start,
    file: FileStore,
    disk: FaultyDisk,
    ledger: Begin,
    operation: Operation,
    when: When,
) -> None:
    """Each life ends at another operation; the next one goes on with what the last one left."""
    chance, acknowledged = random.Random(f"{operation} {when}"), 0
    for nth in (1, 2, 3, chance.randrange(4, 150), chance.randrange(4, 150)):
        running = ledger()
        disk.kill(operation, nth=nth, when=when)
        running.write(200, chance.choice([500, 4_000]))
        assert running.end() == -signal.SIGKILL
        disk.heal()
        acknowledged = max(acknowledged, running.acknowledged)
        check_batches(folded(start(file)), acknowledged)
        start(file).close()


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_a_loss_of_power_loses_nothing_that_was_acknowledged(
    start: Start, file: FileStore, disk: FaultyDisk, ledger: Begin, operation: Operation
) -> None:
    """What was not synced is gone, or by chance only some of it."""
    chance, acknowledged = random.Random(operation), 0
    for _ in range(6):
        running = ledger()
        disk.lose_power(
            operation, nth=chance.randrange(1, 150), seed=chance.choice([0, chance.getrandbits(40)])
        )
        running.write(200, chance.choice([500, 4_000]))
        assert running.end() == -signal.SIGKILL
        disk.heal()
        acknowledged = max(acknowledged, running.acknowledged)
        check_batches(folded(start(file)), acknowledged)
        start(file).close()


def test_a_write_that_was_not_finished_is_reported_and_dropped(
    start: Start,
    file: FileStore,
    disk: FaultyDisk,
    ledger: Begin,
    caplog: pytest.LogCaptureFixture,
) -> None:
    running = ledger()
    running.write(2)
    start_of_next = disk.counts["write"]
    disk.kill("write", nth=4)
    running.write(5, 20_000)
    running.end()
    disk.heal()
    assert disk.counts["write"] > start_of_next
    journal = start(file)
    assert "was not finished when its ledger died; it is dropped" in caplog.text
    check_batches(folded(journal), running.acknowledged)
    assert running.acknowledged == 14


def test_an_acknowledged_end_that_the_disk_damages_stops_the_start(
    start: Start, file: FileStore, ledger: Begin
) -> None:
    """SQLite itself drops such an end without a word."""
    running = ledger()
    running.write(10)
    running.process.kill()
    running.process.wait()
    log = Path(f"{file.path}-wal")
    with log.open("r+b") as raw:
        raw.seek(log.stat().st_size - 2000)
        raw.write(b"\xff" * 1000)
    with pytest.raises(
        StorageError, match=r"has lost facts 64 to 70, which were acknowledged.*store restore"
    ):
        start(file)
    assert log.exists(), "what is left of the end is not thrown away"
    Path(f"{file.path}.mark").unlink()
    assert len(folded(start(file))) == 63


def test_a_log_that_is_missing_stops_the_start(start: Start, file: FileStore, ledger: Begin) -> None:
    """Somebody copied the file alone."""
    running = ledger()
    running.write(10)
    running.process.kill()
    running.process.wait()
    for end in ("-wal", "-shm"):
        Path(f"{file.path}{end}").unlink()
    with pytest.raises(StorageError, match="has lost facts 1 to 70, which were acknowledged"):
        start(file)


def test_a_damaged_end_that_was_never_acknowledged_is_cut_off(
    start: Start, file: FileStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The ledger died after its commit and before its answer, and the disk damaged what it had committed."""
    journal = start(file)
    journal.append(facts(1, 2, 3))
    mark = Path(f"{file.path}.mark").read_bytes()
    journal.append(facts(4, 5))
    journal.close()
    Path(f"{file.path}.mark").write_bytes(mark)
    file.sql("update facts set checksum = checksum + 1 where seq = 4")
    journal = start(file)
    assert "Facts 4 to 5 at the end" in caplog.text
    assert folded(journal) == facts(1, 2, 3)
    assert journal.append(facts(6)) == 4


def test_a_snapshot_of_facts_that_were_lost_is_never_used(start: Start, file: FileStore) -> None:
    """Not even once there are other facts with their numbers."""
    journal = start(file)
    journal.append(facts(1, 2, 3))
    journal.append(facts(4, 5))
    journal.snapshot(State(count=5), 5)
    journal.close()
    file.sql("delete from facts where seq > 3")
    Path(f"{file.path}.mark").unlink()
    journal = start(file)
    assert journal.load()[:2] == (None, 0)
    assert folded(journal) == facts(1, 2, 3)
    journal.append(facts(6, 7, 8))
    assert start(file).load()[:2] == (None, 0)


def test_what_is_packed_is_never_cut_off(
    start: Start, file: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where a mark from before was put back: packed facts are whole, and long acknowledged."""
    monkeypatch.setattr("raysched.store.upkeep.PACK", 2)
    journal = start(file)
    journal.append(facts(1))
    mark = Path(f"{file.path}.mark").read_bytes()
    journal.append(facts(2, 3, 4, 5))
    journal.close()
    with Keeper(file.url) as keeper:
        assert keeper.pack(upto=4) == 4
    Path(f"{file.path}.mark").write_bytes(mark)
    assert folded(start(file)) == facts(1, 2, 3, 4, 5)


@pytest.mark.parametrize("spoiled", ["of another start", "damaged", "missing"])
def test_what_may_have_been_acknowledged_is_never_cut_off(
    start: Start, file: FileStore, spoiled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine itself went down, so that the mark may be behind; or there is none that can be read."""
    journal = start(file)
    journal.append(facts(1, 2, 3))
    journal.append(facts(4, 5))
    id = journal.id()
    journal.close()
    mark = Path(f"{file.path}.mark")
    if spoiled == "of another start":
        with monkeypatch.context() as before:
            before.setattr("raysched.store.mark._boot", lambda: "another-start-of-the-machine")
            Mark(file.path).write(id, 3)
    elif spoiled == "damaged":
        mark.write_bytes(mark.read_bytes().replace(b" 5 ", b" 3 "))
    else:
        mark.unlink()
    file.sql("update facts set checksum = checksum + 1 where seq = 4")
    with pytest.raises(StorageError, match="damaged at fact 4"):
        folded(start(file))
    assert file.sql("select count(*) from facts") == "5"


@pytest.mark.parametrize("part", [0.0, 0.3, 0.7, 0.999])
def test_a_file_that_was_cut_short_stops_the_start(start: Start, file: FileStore, part: float) -> None:
    """Wherever; the log was copied into the file before, as at every end of a ledger."""
    journal = start(file)
    for _ in range(20):
        journal.append(facts(*range(200)))
    journal.close()
    os.truncate(file.path, int(file.path.stat().st_size * part))
    with pytest.raises(StorageError) as caught:
        folded(start(file))
    assert str(file.path) in str(caught.value)
    assert "restore" in str(caught.value)
