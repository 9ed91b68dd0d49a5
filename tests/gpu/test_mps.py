"""MPS daemons: the real client code, against a stand-in for NVIDIA's control program (`fake_mps`)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_mps.install import install
from running import wait_until

from raysched.core.mig import DAEMON
from raysched.gpu import mps
from raysched.gpu.driver import PartitionRefused
from raysched.gpu.mps import Daemons

GPU, OTHER = "GPU-3f2a0001-aaaa-bbbb", "GPU-3f2a0002-aaaa-bbbb"


@pytest.fixture
def daemons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemons]:
    (tmp_path / "bin").mkdir()
    path = os.pathsep.join([str(install(tmp_path / "bin")), os.environ["PATH"]])
    monkeypatch.setenv("PATH", path)
    monkeypatch.setattr(mps, "ANSWER_S", 3.0)
    monkeypatch.setattr(mps, "END_S", 1.0)
    found = Daemons(tmp_path / "mps")
    yield found
    found.stop_all()


def pid_of(daemons: Daemons, gpu: str = GPU) -> int:
    return int((Path(daemons.pipe(gpu)) / mps.PID_FILE).read_text())


def runs(pid: int) -> bool:
    """Not as a zombie, which waits for its parent."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def server_of(daemon: int) -> int:
    text = Path(f"/proc/{daemon}/task/{daemon}/children").read_text()
    return int(text.split()[0])


def test_a_daemon_serves_one_gpu_until_it_is_ended(daemons: Daemons, tmp_path: Path) -> None:
    assert daemons.pipe(GPU) == ""
    daemons.start(GPU)
    daemons.start(GPU)
    pipe, pid = Path(daemons.pipe(GPU)), pid_of(daemons)
    assert pipe == tmp_path / "mps" / GPU
    assert pipe.parent.stat().st_mode & 0o077 == 0
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert f"CUDA_VISIBLE_DEVICES={GPU}".encode() in variables
    assert daemons.pipe(OTHER) == ""
    assert Daemons(tmp_path / "mps").pipe(GPU) == str(pipe), "whoever comes next finds it"
    server = server_of(pid)
    daemons.stop(GPU)
    daemons.stop(GPU)
    assert not runs(pid)
    assert not runs(server)
    assert (daemons.pipe(GPU), pipe.exists()) == ("", False)


def test_its_processes_are_its_own(daemons: Daemons) -> None:
    """They use the GPU, and hold no lease: they are no strangers for that."""
    daemons.start(GPU)
    pid = pid_of(daemons)
    assert daemons.owns(GPU, pid)
    assert daemons.owns(GPU, server_of(pid))
    assert not daemons.owns(OTHER, pid)
    assert not daemons.owns(GPU, os.getpid())


def test_one_that_died_is_none_though_its_files_are_there(daemons: Daemons) -> None:
    daemons.start(GPU)
    pid, pipe = pid_of(daemons), Path(daemons.pipe(GPU))
    server = server_of(pid)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: daemons.pipe(GPU) == "", "the daemon is known to be gone")
    (pipe / mps.PID_FILE).write_text(str(os.getpid()))
    assert daemons.pipe(GPU) == "", "another process has that number now"
    daemons.start(GPU)
    assert pid_of(daemons) != pid
    assert not runs(server), "its server went with it"


@pytest.mark.parametrize(
    ("will", "words"),
    [("refuses", "Failed to start"), ("dies", "does not"), ("deaf", "does not answer")],
)
def test_one_that_does_not_start_is_refused_in_words(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch, will: str, words: str
) -> None:
    monkeypatch.setenv("FAKE_MPS", will)
    with pytest.raises(PartitionRefused) as refused:
        daemons.start(GPU)
    assert refused.value.cut == DAEMON
    assert words in str(refused.value)
    assert GPU in str(refused.value)
    assert daemons.pipe(GPU) == ""


def test_one_that_does_not_quit_is_killed(daemons: Daemons, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_MPS", "stubborn")
    daemons.start(GPU)
    pid = pid_of(daemons)
    daemons.stop(GPU)
    assert not runs(pid)


def test_without_the_program_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PartitionRefused, match="is not here"):
        Daemons(tmp_path / "mps").start(GPU)
    assert not mps.usable("8.0", "12.8")


def test_a_folder_that_others_may_write_to_is_not_used(daemons: Daemons, tmp_path: Path) -> None:
    """Whoever owns it could have put a daemon of his own there."""
    (tmp_path / "mps").mkdir()
    (tmp_path / "mps").chmod(0o777)
    with pytest.raises(PartitionRefused, match="remove it"):
        daemons.start(GPU)


@pytest.mark.parametrize(
    ("capability", "cuda", "can"),
    [
        ("8.0", "12.8", True),
        ("7.0", "11.5", True),
        ("6.1", "12.8", False),
        ("8.0", "11.4", False),
        ("", None, False),
    ],
)
def test_what_is_too_old_is_not_offered(
    daemons: Daemons, capability: str, cuda: str | None, can: bool
) -> None:
    assert mps.usable(capability, cuda) == can
