"""Processes of a lease, on real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raysched.errors import RayschedError
from raysched.gpu import processes
from raysched.gpu.owners import Owners
from raysched.gpu.processes import MARKER, end_processes, processes_of, tree

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def lease() -> str:
    return f"lease-{uuid.uuid4().hex}"


@pytest.fixture
def start(lease: str) -> Iterator[Start]:
    """Starts a shell script under the lease (or another, or none); it is up once it has printed a line."""
    begun: list[subprocess.Popen[str]] = []
    marks = {lease}

    def run(script: str, mark: str | None = lease) -> subprocess.Popen[str]:
        environ = {**os.environ, MARKER: mark} if mark else None
        marks.add(mark or lease)
        shell = subprocess.Popen(["bash", "-c", script], env=environ, stdout=subprocess.PIPE, text=True)
        begun.append(shell)
        assert shell.stdout is not None
        shell.stdout.readline()
        return shell

    yield run
    for mark in marks:
        end_processes(mark, 0)
    for shell in begun:
        shell.kill()
        shell.communicate()


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


def names(found: frozenset[processes.Process]) -> list[str]:
    return sorted(process.name for process in found)


def test_all_are_found_the_ones_that_called_setsid_or_dropped_the_variable_included(
    lease: str, start: Start
) -> None:
    start("setsid sleep 600 & env -i sleep 600 & (sleep 600 & echo up) ; wait")
    until(lambda: names(processes_of(lease)) == ["bash", "sleep", "sleep", "sleep"])


def test_none_is_left_when_it_returns(lease: str, start: Start) -> None:
    """Case ray-03: children that called setsid end with the rest."""
    stubborn = "trap '' TERM; sleep 600; sleep 600"
    start(f"setsid sleep 600 & ({stubborn}) & echo up; {stubborn}")
    end_processes(lease, 0.2)
    assert processes_of(lease) == frozenset()


def test_a_process_has_its_grace_to_write_a_checkpoint(lease: str, start: Start, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    start(f"trap 'sleep 0.2; echo done > {saved}; exit' TERM; echo up; while :; do sleep 0.05; done")
    end_processes(lease, 60)
    assert saved.read_text() == "done\n"


def test_a_child_without_the_variable_stays_known_when_its_parent_is_gone(lease: str, start: Start) -> None:
    stubborn = "trap '' TERM; echo up; while :; do sleep 0.05; done"
    shell = start(f'env -i bash -c "{stubborn}" & wait')
    mine = processes_of(lease)
    end_processes(lease, 0.3)
    assert shell.wait() == -signal.SIGTERM
    assert not Owners().of(process.pid for process in mine)
    assert not [process for process in mine if process in tree(process.pid)]


def test_no_process_of_another_lease_ends_with_it(lease: str, start: Start) -> None:
    """Case ray-03: never a process of another lease, one that a process of this lease started included."""
    inner = f"{lease}-inner"
    other = start("echo up; exec sleep 600", mark=f"{lease}0")
    plain = start("echo up; exec sleep 600", mark=None)
    start(f"{MARKER}={inner} sleep 600 & echo up; wait", mark=lease)
    until(lambda: bool(processes_of(inner)))
    end_processes(lease, 0.1)
    assert processes_of(lease) == frozenset()
    assert names(processes_of(inner)) == ["sleep"]
    assert other.poll() is None
    assert plain.poll() is None
    end_processes(inner, 0)


def test_what_is_spared_is_left_alone(lease: str, start: Start) -> None:
    shell = start("sleep 600 & echo up; exec sleep 600")
    end_processes(lease, 0, exclude=[shell.pid])
    assert [process.pid for process in processes_of(lease)] == [shell.pid]


def test_ending_what_is_gone_is_silent(lease: str) -> None:
    end_processes(lease, 60)


def test_a_tree_holds_the_process_and_its_descendants(start: Start) -> None:
    shell = start("setsid sleep 600 & sleep 600 & echo up; wait")
    until(lambda: names(tree(shell.pid)) == ["bash", "sleep", "sleep"])
    assert tree(2**22 + 1) == frozenset()


def test_a_name_with_brackets_is_read(lease: str, tmp_path: Path, start: Start) -> None:
    odd = tmp_path / ") S 1 ("
    odd.symlink_to("/bin/sleep")
    start(f"'{odd}' 600 & echo up; wait")
    until(lambda: names(processes_of(lease)) == [") S 1 (", "bash"])


def test_a_process_that_does_not_end_is_named(
    lease: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs in the kernel can't be made at will, so here the signals are the ones that get lost."""
    shell = start("echo up; sleep 600; :")
    with monkeypatch.context() as patch:
        patch.setattr(processes, "_STUBBORN_S", 0.0)
        patch.setattr(processes, "send", lambda *_: None)
        with pytest.raises(RayschedError) as caught:
            end_processes(lease, 0)
    assert lease in str(caught.value)
    assert f"{shell.pid} (bash)" in str(caught.value)
