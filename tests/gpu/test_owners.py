"""Whose a process is: on real processes, in a real container too."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engines import need
from running import wait_until

from raysched.gpu import owners
from raysched.gpu.owners import Owners
from raysched.gpu.processes import MARKER, end_processes

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

Start = Callable[..., int]


@pytest.fixture
def lease() -> Iterator[str]:
    name = f"lease-{uuid.uuid4().hex}"
    yield name
    end_processes(name, 0)


@pytest.fixture
def start(lease: str) -> Iterator[Start]:
    """Starts a shell script, with a lease in its environment or none, which prints the process id of a sleep;
    gives that once it sleeps."""
    begun: list[subprocess.Popen[str]] = []

    def run(script: str, mark: str | None = lease) -> int:
        environ = {**os.environ, MARKER: mark} if mark else dict(os.environ)
        shell = subprocess.Popen(["bash", "-c", script], env=environ, stdout=subprocess.PIPE, text=True)
        begun.append(shell)
        assert shell.stdout is not None
        pid = int(shell.stdout.readline())
        wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", "it sleeps")
        return pid

    yield run
    end_processes(lease, 0)
    for shell in begun:
        shell.kill()
        shell.communicate()


def test_a_process_has_the_lease_of_its_environment_else_of_its_nearest_ancestor(
    lease: str, start: Start
) -> None:
    own = start("echo $$; exec sleep 600")
    child = start("env -i sleep 600 & echo $!; wait")
    other = start(f"{MARKER}=another sleep 600 & echo $!; wait")
    stranger = start("echo $$; exec sleep 600", mark=None)
    found = Owners().of([own, child, other, stranger, 2**22 + 1])
    os.kill(other, signal.SIGKILL)
    assert {pid: user.lease for pid, user in found.items()} == {
        own: lease,
        child: lease,
        other: "another",
        stranger: None,
    }
    assert found[own].process.name == "sleep"
    assert {user.account for user in found.values()} == {getpass.getuser()}


def test_what_is_known_of_a_process_is_not_asked_again(
    lease: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent looks every second or two, on nodes with thousands of processes."""
    pids = [start("echo $$; exec sleep 600"), start("echo $$; exec sleep 600", mark=None)]
    asked: list[int] = []
    look = owners.mark
    monkeypatch.setattr(owners, "mark", lambda pid: asked.append(pid) or look(pid))
    known = Owners()
    first = known.of(pids)
    once = len(asked)
    assert known.of(pids) == first
    assert len(asked) == once


def test_a_later_process_with_the_same_id_is_another_one(
    lease: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = start("echo $$; exec sleep 600", mark=None)
    known = Owners()
    assert known.of([pid])[pid].lease is None
    later = start("echo $$; exec sleep 600")
    look = owners.find
    monkeypatch.setattr(owners, "find", lambda asked: look(later if asked == pid else asked))
    assert known.of([pid])[pid].lease == lease


# ---------------------------------------------------------------- containers


FOREVER = "int pause(void); int main(void) { for (;;) pause(); }"


class Podman:
    """A podman of its own, with an image of one program, which never ends."""

    def __init__(self, folder: Path) -> None:
        self._options = ["--root", str(folder / "root"), "--runroot", str(folder / "run")]
        self._options += ["--storage-driver", "vfs"]
        self._options += ["--cgroup-manager", "cgroupfs", "--runtime", "runc"]
        program, archive = folder / "forever", folder / "image.tar"
        compiler = ["gcc", "-static", "-x", "c", "-", "-o", str(program)]
        subprocess.run(compiler, input=FOREVER, text=True, check=True)
        with tarfile.open(archive, "w") as image:
            image.add(program, "forever")
        self("import", str(archive), "forever")

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(
            ["podman", *self._options, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def run(self, *options: str) -> tuple[str, int]:
        """The id of a new container, and the process id of its first process."""
        limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--network", "none"]
        name = self("run", "--detach", *limits, *options, "forever", "/forever")
        return name, int(self("inspect", "--format", "{{.State.Pid}}", name))

    def enter(self, name: str, *options: str) -> int:
        """The process id of another process, started into a container from outside."""
        before = self._pids(name)
        self("exec", "--detach", *options, name, "/forever")
        return wait_until(lambda: self._pids(name) - before, "it is there").pop()

    def _pids(self, name: str) -> set[int]:
        return {int(pid) for pid in self("top", name, "hpid").split() if pid.isdecimal()}


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    need(all(map(shutil.which, ("podman", "runc", "gcc"))), "apt-get install podman runc gcc libc6-dev")
    need(os.geteuid() == 0, "run the tests as root: others may not start containers here")
    folder = tmp_path_factory.mktemp("podman")
    made = Podman(folder)
    yield made
    made("rm", "--all", "--force", "--time", "0")
    made("rmi", "--all", "--force")
    shutil.rmtree(folder, ignore_errors=True)


def test_a_container_that_a_job_starts_is_the_jobs(podman: Podman, lease: str) -> None:
    """Where the container gets the variable; its processes are no children of the job's."""
    _, inside = podman.run("--env", f"{MARKER}={lease}")
    assert Owners().of([inside])[inside].lease == lease


def test_what_is_started_into_a_leases_container_is_the_leases(podman: Podman, lease: str) -> None:
    """By its cgroup: neither its environment nor a parent of it names the lease."""
    name, _ = podman.run("--env", f"{MARKER}={lease}")
    late = podman.enter(name, "--env", f"{MARKER}=")
    assert owners.mark(late) is None
    assert Owners().of([late])[late].lease == lease


def test_a_container_without_a_lease_is_nobodys(podman: Podman) -> None:
    _, inside = podman.run()
    assert Owners().of([inside])[inside].lease is None


def test_a_container_with_two_leases_decides_nothing(podman: Podman, lease: str) -> None:
    name, _ = podman.run("--env", f"{MARKER}={lease}")
    podman.enter(name, "--env", f"{MARKER}=another")
    late = podman.enter(name, "--env", f"{MARKER}=")
    assert Owners().of([late])[late].lease is None
