"""What is peculiar to a journal in a file: real full disks, torn files, and who may read it."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from stores import WRITER, FileStore, Store, facts, folded

from raysched.core.facts import Retried
from raysched.errors import StorageError
from raysched.store.journal import Journal
from raysched.store.reader import Reader

Start = Callable[[Store], Journal]
Writer = Callable[..., "subprocess.Popen[str]"]


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
        [*enter, "sh", "-c", script, str(folder), sys.executable, "-c", WRITER, url],
        capture_output=True,
        text=True,
        check=True,
    )
    *acknowledged, problem, found = done.stdout.splitlines()[1:]
    assert "is full" in problem
    assert str(folder) in problem
    assert int(found) == int(acknowledged[-1])


def test_a_journal_goes_on_after_a_failed_write(start: Start, file: FileStore, writer: Writer) -> None:
    """A limit on the size of files stands for the disk; once it is lifted the same journal is used again."""
    process = writer(file, "300000")
    *acknowledged, problem = process.communicate()[0].splitlines()
    assert "ulimit" in problem
    journal = start(file)
    assert journal.append(facts(1)) == int(acknowledged[-1]) + 1
    assert len(folded(journal)) == int(acknowledged[-1]) + 1


def test_a_failed_batch_leaves_nothing(start: Start, file: FileStore) -> None:
    journal = start(file)
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


def test_what_is_no_journal_is_left_as_it_is(start: Start, file: FileStore) -> None:
    file.path.write_text("my shopping list " * 1000)
    with pytest.raises(StorageError, match="no journal"):
        start(file)
    assert file.path.read_text().startswith("my shopping list")


def test_a_torn_file_is_told(start: Start, file: FileStore) -> None:
    journal = start(file)
    journal.append([Retried(1, "job", "x" * 5000)] * 200)
    journal.close()
    with file.path.open("r+b") as raw:
        raw.seek(200_000)
        raw.write(b"\xff" * 100_000)
    with pytest.raises(StorageError, match="damaged"):
        folded(start(file))


@pytest.mark.parametrize("place", ["", "no-such-folder/journal.sqlite"])
def test_a_path_that_cannot_be_is_told(tmp_path: Path, place: str) -> None:
    with pytest.raises(StorageError, match="can't be opened") as caught:
        Journal(f"sqlite:///{tmp_path / place}")
    assert str(tmp_path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_may_not_be_written_is_told(start: Start, file: FileStore) -> None:
    """As another user, for root may write anything."""
    start(file).close()
    file.path.chmod(0o444)
    file.path.parent.chmod(0o555)
    script = (
        "import os, sys; from raysched.store.journal import Journal; os.geteuid() or os.setuid(65534); "
        "Journal(sys.argv[1])"
    )
    command = [sys.executable, "-c", script, f"sqlite:///{file.path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    file.path.parent.chmod(0o755)
    assert done.returncode != 0
    assert "can't be opened: Permission denied" in done.stderr


def test_others_may_not_read_it(start: Start, file: FileStore) -> None:
    start(file).append(facts(1))
    assert {path.stat().st_mode & 0o077 for path in file.path.parent.iterdir()} == {0}


CUT_OFF = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode=DELETE")
connection.execute("PRAGMA cache_size=1")
connection.execute("BEGIN")
for number in range(100):
    connection.execute("INSERT INTO meta VALUES (?, ?)", (f"noise-{number}", "x" * 10_000))
os._exit(0)
"""
"""A program that dies amid a write, on a file system where SQLite has no write-ahead log."""


def test_a_write_that_was_cut_off_without_a_log_is_undone(start: Start, file: FileStore) -> None:
    journal = start(file)
    journal.append(facts(5))
    journal.close()
    subprocess.run([sys.executable, "-c", CUT_OFF, str(file.path)], check=True)
    assert Path(f"{file.path}-journal").stat().st_size > 0
    with pytest.raises(StorageError, match="its last write was cut off; the next `raysched up` undoes that"):
        Reader(file.url)
    assert folded(start(file)) == facts(5)
    assert "noise" not in file.sql("SELECT name FROM meta")
