"""The journal, on real files, real kills and real full disks."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raysched.core.facts import Fact, Released, Retried
from raysched.core.state import State
from raysched.errors import ConfigError, StorageError
from raysched.store.journal import SCHEMA, Journal

Open = Callable[[], Journal]

JOBS = [f"job-{number}" for number in range(7)]

WRITER = """
import itertools, resource, sys
from raysched.core.facts import Retried
from raysched.errors import StorageError
from raysched.store.journal import Journal

url, limit = sys.argv[1], int(sys.argv[2])
journal = Journal(url)
print("open", flush=True)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
for batch in itertools.count():
    facts = [Retried(batch, f"job-{number}", "x" * 500) for number in range(7)]
    try:
        print(journal.append(facts), flush=True)
    except StorageError as problem:
        print(problem, flush=True)
        break
"""


def facts(*numbers: int) -> list[Fact]:
    return [Released(number, f"lease-{number}") for number in numbers]


def folded(journal: Journal) -> list[Fact]:
    return list(journal.load()[2])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
def start(path: Path) -> Iterator[Open]:
    """Opens the journal as a restarted ledger would."""
    opened: list[Journal] = []

    def restart() -> Journal:
        for journal in opened:
            journal.close()
        opened.append(Journal(f"sqlite:///{path}"))
        return opened[-1]

    yield restart
    for journal in opened:
        journal.close()


@pytest.fixture
def sql(path: Path) -> Callable[[str], None]:
    """Changes the file behind the journal's back."""

    def run(statement: str) -> None:
        connection = sqlite3.connect(path)
        connection.execute(statement)
        connection.commit()
        connection.close()

    return run


def writer(path: Path, limit: int = 0) -> subprocess.Popen[str]:
    """A process that appends batches of seven facts and prints each number that was acknowledged, until the
    journal's files may not grow past `limit` bytes."""
    command = [sys.executable, "-c", WRITER, f"sqlite:///{path}", str(limit)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def test_facts_come_back_in_order_with_their_numbers(start: Open) -> None:
    journal = start()
    assert journal.load()[:2] == (None, 0)
    assert journal.append(facts(1, 2)) == 2
    assert journal.append(facts(3)) == 3
    assert journal.append([]) == 3
    journal = start()
    assert folded(journal) == facts(1, 2, 3)
    assert list(journal.facts(1)) == list(zip([2, 3], facts(2, 3), strict=True))


def test_a_start_reads_the_newest_snapshot_and_only_the_facts_after_it(start: Open) -> None:
    journal = start()
    journal.append(facts(1, 2))
    journal.snapshot(State(count=2), 2)
    journal.append(facts(3))
    state, seq, rest = start().load()
    assert (state, seq, list(rest)) == (State(count=2), 2, facts(3))


def test_the_two_newest_snapshots_are_kept(start: Open, path: Path) -> None:
    journal = start()
    journal.append(facts(*range(9)))
    for seq in (3, 6, 9, 9):
        journal.snapshot(State(count=seq), seq)
    rows = sqlite3.connect(path)
    assert rows.execute("select seq from snapshots order by seq").fetchall() == [(6,), (9,)]
    rows.close()


def test_a_damaged_snapshot_is_passed_over(
    start: Open, sql: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    journal = start()
    journal.append(facts(1, 2, 3))
    journal.snapshot(State(count=1), 1)
    journal.snapshot(State(count=2), 2)
    sql("update snapshots set body = replace(body, '2', '7') where seq = 2")
    state, seq, rest = journal.load()
    assert (state, seq, list(rest)) == (State(count=1), 1, facts(2, 3))
    assert "fact 2 is damaged" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        "update facts set body = replace(body, 'lease', 'trick') where seq = 2",
        "update facts set kind = 'Releasing' where seq = 2",
        "delete from facts where seq = 2",
    ],
)
def test_damage_is_told_and_never_folded(start: Open, sql: Callable[[str], None], damage: str) -> None:
    journal = start()
    journal.append(facts(1, 2, 3))
    sql(damage)
    rest = journal.load()[2]
    assert next(rest) == facts(1)[0]
    with pytest.raises(StorageError, match="damaged at fact 2"):
        next(rest)


def test_a_second_ledger_is_refused_and_gets_it_once_the_first_is_gone(start: Open, path: Path) -> None:
    start().append(facts(1))
    with pytest.raises(StorageError, match=f"process {os.getpid()}.*raysched down"):
        Journal(f"sqlite:///{path}")
    assert folded(start()) == facts(1)


def test_the_lock_dies_with_the_process_that_held_it(start: Open, path: Path) -> None:
    process = writer(path)
    process.kill()
    process.communicate()
    start()


def test_what_was_acknowledged_is_there_after_kill_9_and_no_batch_is_torn(start: Open, path: Path) -> None:
    """Kills fall between and within appends, and each round goes on where the last one was cut."""
    acknowledged = 0
    for rounds in range(1, 7):
        process = writer(path)
        assert process.stdout is not None
        for _ in range(rounds * 3):
            acknowledged = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
        complete = [int(line) for line in rest.splitlines(keepends=True) if line.endswith("\n")]
        acknowledged = max([acknowledged, *complete])
    found = folded(start())
    assert len(found) >= acknowledged
    assert len(found) % 7 == 0
    batches = [found[at : at + 7] for at in range(0, len(found), 7)]
    assert all([fact.job for fact in batch if isinstance(fact, Retried)] == JOBS for batch in batches)


def test_a_full_disk_is_told_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    """On a disk of 1 MiB of its own, in a mount namespace."""
    folder = tmp_path / "disk"
    folder.mkdir()
    script = (
        'mount -t tmpfs -o size=1m tmpfs "$0" && "$@" && '
        'exec "$1" -c "import sys; from raysched.store.journal import Journal; '
        'journal = Journal(sys.argv[1]); print(len(list(journal.load()[2])))" "sqlite:///$0/journal.sqlite"'
    )
    enter = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    mount = [*enter, "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    if shutil.which("unshare") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk here; the test with a limit on file sizes runs instead")
    url = f"sqlite:///{folder}/journal.sqlite"
    done = subprocess.run(
        [*enter, "sh", "-c", script, str(folder), sys.executable, "-c", WRITER, url, "0"],
        capture_output=True,
        text=True,
        check=True,
    )
    *acknowledged, problem, found = done.stdout.splitlines()[1:]
    assert "is full" in problem
    assert str(folder) in problem
    assert int(found) == int(acknowledged[-1])


def test_a_journal_goes_on_after_a_failed_write(start: Open, path: Path) -> None:
    """A limit on the size of files stands for the disk; once it is lifted the same journal is used again."""
    process = writer(path, limit=300_000)
    *acknowledged, problem = process.communicate()[0].splitlines()
    assert "ulimit" in problem
    journal = start()
    assert journal.append(facts(1)) == int(acknowledged[-1]) + 1
    assert len(folded(journal)) == int(acknowledged[-1]) + 1


def test_a_failed_batch_leaves_nothing(start: Open) -> None:
    journal = start()
    journal.append(facts(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageError):
            journal.append([Retried(1, "job", "x" * 1000)] * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert folded(journal) == facts(1)
    assert journal.append(facts(2)) == 2


def test_a_journal_from_the_future_is_refused(start: Open, sql: Callable[[str], None], path: Path) -> None:
    start()
    sql(f"update meta set value = '{SCHEMA + 1}'")
    with pytest.raises(StorageError, match="newer raysched"):
        start()


def test_what_is_no_journal_is_left_as_it_is(start: Open, path: Path) -> None:
    path.write_text("my shopping list " * 1000)
    with pytest.raises(StorageError, match="no journal"):
        start()
    assert path.read_text().startswith("my shopping list")


def test_a_torn_file_is_told(start: Open, path: Path) -> None:
    journal = start()
    journal.append([Retried(1, "job", "x" * 5000)] * 200)
    journal.close()
    with path.open("r+b") as file:
        file.seek(200_000)
        file.write(b"\xff" * 100_000)
    with pytest.raises(StorageError, match="damaged"):
        folded(start())


@pytest.mark.parametrize("place", ["", "no-such-folder/journal.sqlite"])
def test_a_path_that_cannot_be_is_told(tmp_path: Path, place: str) -> None:
    with pytest.raises(StorageError, match="can't be opened") as caught:
        Journal(f"sqlite:///{tmp_path / place}")
    assert str(tmp_path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_may_not_be_written_is_told(start: Open, path: Path) -> None:
    """As another user, for root may write anything."""
    start().close()
    path.chmod(0o444)
    path.parent.chmod(0o555)
    script = (
        "import os, sys; from raysched.store.journal import Journal; os.geteuid() or os.setuid(65534); "
        "Journal(sys.argv[1])"
    )
    command = [sys.executable, "-c", script, f"sqlite:///{path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    path.parent.chmod(0o755)
    assert done.returncode != 0
    assert "can't be opened: Permission denied" in done.stderr


def test_others_may_not_read_it(start: Open, path: Path) -> None:
    start().append(facts(1))
    assert {file.stat().st_mode & 0o077 for file in path.parent.iterdir()} == {0}


@pytest.mark.parametrize(
    "url", ["postgresql://host/db", "journal.sqlite", "sqlite://", "sqlite:///:memory:", ""]
)
def test_what_is_no_file_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="sqlite:///PATH"):
        Journal(url)


def test_a_name_that_is_no_utf_8_survives(start: Open) -> None:
    odd = Retried(1, "job", os.fsdecode(b"caf\xe9"))
    start().append([odd])
    assert folded(start()) == [odd]
