"""The faulty disk does what it says; tests that stand on it prove nothing otherwise."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from faulty_disk import FaultyDisk, Operation, When

WRITER = """
import os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
for step in sys.argv[2:]:
    try:
        if step == "sync":
            os.fsync(file)
        elif step == "read":
            os.pread(file, 10, 0)
        elif step == "empty":
            os.ftruncate(file, 0)
        else:
            os.write(file, step.encode())
        print("done", flush=True)
    except OSError as problem:
        print(problem.errno, flush=True)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "file"


@pytest.fixture
def disk(file: Path, tmp_path: Path) -> FaultyDisk:
    return FaultyDisk(tmp_path / "control", str(file.parent))


def run(disk: FaultyDisk, file: Path, *steps: str) -> tuple[int, list[str]]:
    """The exit status of a process that takes these steps, and what it said of each."""
    command = [sys.executable, "-c", WRITER, str(file), *steps]
    done = subprocess.run(
        command, env=os.environ | disk.environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.split()


def test_without_a_fault_it_only_counts(disk: FaultyDisk, file: Path) -> None:
    assert run(disk, file, "abc", "def", "sync", "read", "empty") == (0, ["done"] * 5)
    assert disk.counts == {"read": 1, "write": 2, "sync": 1, "truncate": 1}
    assert disk.fired == 0


@pytest.mark.parametrize(("operation", "step"), [("write", "x"), ("sync", "sync"), ("read", "read")])
def test_one_operation_fails(disk: FaultyDisk, file: Path, operation: Operation, step: str) -> None:
    disk.fail(operation, nth=2, error=errno.EIO)
    assert run(disk, file, step, step, step) == (0, ["done", str(errno.EIO), "done"])
    assert disk.fired == 1


def test_a_full_disk_stays_full_until_it_is_healed(disk: FaultyDisk, file: Path) -> None:
    disk.fail("write", nth=2, error=errno.ENOSPC, lasting=True)
    assert run(disk, file, "a", "b", "c")[1] == ["done", str(errno.ENOSPC), str(errno.ENOSPC)]
    disk.heal()
    assert run(disk, file, "xyz")[1] == ["done"]
    assert file.read_text() == "xyz"


def test_a_torn_write_leaves_half(disk: FaultyDisk, file: Path) -> None:
    disk.fail("write", error=errno.EIO, torn=True)
    assert run(disk, file, "abcdef")[1] == [str(errno.EIO)]
    assert file.read_text() == "abc"


@pytest.mark.parametrize(("when", "left"), [("before", "0123"), ("within", "0123ab"), ("after", "0123abcd")])
def test_it_kills_around_a_write(disk: FaultyDisk, file: Path, when: When, left: str) -> None:
    disk.kill("write", nth=2, when=when)
    assert run(disk, file, "0123", "abcd") == (-signal.SIGKILL, ["done"])
    assert file.read_text() == left


def test_a_loss_of_power_loses_what_was_not_synced(disk: FaultyDisk, file: Path) -> None:
    disk.lose_power("write", nth=3)
    assert run(disk, file, "synced", "sync", "lost", "lost")[0] == -signal.SIGKILL
    assert file.read_text() == "synced"


def test_a_loss_of_power_gives_back_what_was_written_over(disk: FaultyDisk, file: Path) -> None:
    file.write_text("before, and longer")
    disk.lose_power("sync", nth=1)
    assert run(disk, file, "after", "empty", "sync")[0] == -signal.SIGKILL
    assert file.read_text() == "before, and longer"


def test_with_a_seed_some_of_it_survives(disk: FaultyDisk, file: Path) -> None:
    """Over many seeds all of these are seen: the first write alone, the second alone, both, half of one."""
    seen: set[bytes] = set()
    for seed in range(1, 40):
        file.unlink(missing_ok=True)
        disk.lose_power("sync", seed=seed * 0x9E3779B9)
        assert run(disk, file, "ab", "cd", "sync")[0] == -signal.SIGKILL
        seen.add(file.read_bytes())
    assert {b"", b"ab", b"\0\0cd", b"abcd", b"a"} <= seen


def test_other_files_are_none_of_its_business(disk: FaultyDisk, tmp_path: Path) -> None:
    disk.fail("write", "sync", error=errno.EIO, lasting=True)
    assert run(disk, tmp_path / "other", "a", "sync") == (0, ["done", "done"])


def test_a_forked_child_has_a_disk_of_its_own(disk: FaultyDisk, file: Path, tmp_path: Path) -> None:
    child = f"""
import errno, os, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from faulty_disk import FaultyDisk
for number in range(3):
    if os.fork() == 0:
        own = FaultyDisk(Path({str(tmp_path)!r}) / f"control-{{number}}", {str(file.parent)!r})
        own.take_over()
        own.kill("write", nth=number + 1)
        with open(f"{file}-{{number}}", "ab", buffering=0) as out:
            for _ in range(5):
                out.write(b"ab")
    _, status = os.wait()
    assert os.waitstatus_to_exitcode(status) == -9
"""
    subprocess.run([sys.executable, "-c", child], env=os.environ | disk.environment, check=True)
    assert [Path(f"{file}-{number}").read_bytes() for number in range(3)] == [b"a", b"aba", b"ababa"]
