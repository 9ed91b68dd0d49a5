"""`raysched store ...`, without a running system."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raysched.core.facts import NodeJoined
from raysched.core.node import NodeInfo
from raysched.store.journal import Journal
from raysched.store.usual import file_url

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A state folder with a journal of 1500 facts."""
    journal = Journal(file_url(tmp_path))
    journal.append([NodeJoined(at, NodeInfo(f"n{at % 10}", ("vm",), (), at, 1)) for at in range(1500)])
    journal.close()
    return tmp_path


@pytest.fixture
def store(home: Path) -> Run:
    """Runs `raysched store ARGUMENTS` in that folder."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAYSCHED_")}
        environment |= {"RAYSCHED_HOME": str(home), "XDG_CONFIG_HOME": str(home / "none")}
        command = [str(Path(sys.executable).with_name("raysched")), "store", *arguments]
        return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=False)

    return run


def document(done: subprocess.CompletedProcess[str], code: int = 0) -> dict[str, Any]:
    assert (done.returncode, done.stderr) == (code, "")
    return json.loads(done.stdout)


def test_a_good_journal_is_told_to_be(store: Run, home: Path) -> None:
    done = store("check")
    assert (done.returncode, done.stderr) == (0, "")
    first, *_, last = done.stdout.splitlines()
    assert (first, last) == (f"the journal {home}/journal.sqlite", "ok")
    found = document(store("check", "--json"))
    assert (found["ok"], found["problems"], found["facts"], found["packed"]) == (True, [], 1500, 0)
    assert found["journal"] == f"{home}/journal.sqlite"


def test_what_is_wrong_is_told_and_gives_exit_code_1(store: Run, home: Path) -> None:
    rows = sqlite3.connect(home / "journal.sqlite")
    rows.execute("delete from facts where seq = 700")
    rows.commit()
    rows.close()
    done = store("check")
    assert done.returncode == 1
    assert "bad the journal" in done.stdout
    assert "is damaged at fact 700; restore a backup" in done.stdout
    assert document(store("check", "--json"), 1)["ok"] is False


def test_backup_restore_and_compact_do_what_they_say(store: Run, home: Path) -> None:
    done = store("backup", "b.sqlite")
    assert done.stdout.startswith("1500 facts in b.sqlite, ")
    assert document(store("check", "--store", f"sqlite:///{home}/b.sqlite", "--json"))["packed"] == 1500
    assert document(store("backup", "b.sqlite", "--json"), 82)["error"]["code"] == "conflict"
    compacted = document(store("compact", "--json"))
    assert compacted["packed"] == 1000
    assert compacted["in_use"] is False
    assert compacted["bytes_after"] < compacted["bytes_before"]
    restored = document(store("restore", "b.sqlite", "--json"))
    assert restored["facts"] == 1500
    assert Path(restored["aside"]).exists()
    assert document(store("check", "--json"))["packed"] == 1500


def test_a_journal_that_a_ledger_uses_is_not_restored_over(store: Run, home: Path) -> None:
    document(store("backup", "b.sqlite", "--json"))
    journal = Journal(file_url(home))
    error = document(store("restore", "b.sqlite", "--json"), 74)["error"]
    assert error["code"] == "storage_error"
    assert f"used by another ledger (process {os.getpid()})" in error["message"]
    assert document(store("compact", "--json"))["in_use"] is True
    journal.close()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["check", "--store", "sqlite:////no/such/file"], 74, "the journal /no/such/file is not there"),
        (["check", "--store", "mysql://a:hidden@b/c"], 78, "mysql://a:***@b/c' names no journal"),
        (["restore", "nothing"], 74, "the backup nothing is not there"),
        (["backup", "no/such/folder/file"], 74, "No such file or directory"),
        (["backup"], 2, "Missing argument 'FILE'"),
    ],
)
def test_errors_are_a_sentence(store: Run, arguments: list[str], code: int, said: str) -> None:
    done = store(*arguments)
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
