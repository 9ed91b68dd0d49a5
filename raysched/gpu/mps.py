"""NVIDIA's Multi-Process Service: a control daemon for each GPU that tenants share by it.

A CUDA program is a client of the daemon whose pipe directory `CUDA_MPS_PIPE_DIRECTORY` names; where no daemon
listens there, it runs without MPS and without a word. So the directory is raysched's own, one a GPU, and what
counts is not the file that names the daemon's process but that process. A daemon outlives the node agent, and
whoever comes next finds it.

A daemon has its clients run under one user, the one who started it: so the agent's user is the tenants' too.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from raysched.core.mig import DAEMON
from raysched.gpu.driver import PartitionRefused
from raysched.gpu.processes import MARKER

CONTROL = "nvidia-cuda-mps-control"
PID_FILE = f"{CONTROL}.pid"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
ANSWER_S = 20.0
"""How long the control program may take for an answer."""
END_S = 10.0
"""How long a daemon without clients may take to end, before it is killed."""
LEAST_CAPABILITY = (7, 0)
"""Before Volta, clients of one GPU had one address space."""
LEAST_CUDA = (11, 5)
"""Before that, no client could be held to a part of the memory."""


def usable(capability: str, cuda: str | None) -> bool:
    """Whether this GPU and driver can hold MPS tenants to their shares, and the control program is here."""
    return not missing(capability, cuda)


def missing(capability: str, cuda: str | None) -> str:
    """What MPS needs and a GPU with this compute capability lacks, or its node, in words."""
    if _version(capability) < LEAST_CAPABILITY:
        return "a GPU of compute capability 7.0 (Volta) or later"
    if _version(cuda or "") < LEAST_CUDA:
        return "a driver for CUDA 11.5 or later"
    if shutil.which(CONTROL) is None:
        return f"{CONTROL} in PATH, which comes with the driver (Debian and Ubuntu: nvidia-compute-utils)"
    return ""


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")) if text else ()


def default_folder() -> Path:
    """Where the pipe directories lie: short, since a socket's path may have 107 characters."""
    return Path(f"/tmp/raysched-mps-{os.getuid()}")


class Daemons:
    """The daemons of this node's GPUs, by the GPUs' UUIDs. `folder` holds their pipe directories."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or default_folder()

    def pipe(self, gpu: str) -> str:
        """The pipe directory of the daemon that runs for a GPU; empty if none does."""
        return "" if self._pid(gpu) is None else str(self._folder / gpu)

    def start(self, gpu: str) -> None:
        """Start the daemon of a GPU; silent where it runs. Raises PartitionRefused."""
        if self._pid(gpu) is not None:
            return
        self.stop(gpu)
        pipe = self._folder / gpu
        self._make(pipe, gpu)
        done = self._control(gpu, ["-d"], "")
        if done is None or done.returncode != 0 or self._pid(gpu) is None:
            why = _said(done, pipe)
            self.stop(gpu)
            raise PartitionRefused(f"the MPS daemon of {gpu} does not start: {why}", DAEMON)
        if self._ask(gpu, "get_server_list") is None:
            self.stop(gpu)
            raise PartitionRefused(f"the MPS daemon of {gpu} does not answer", DAEMON)

    def stop(self, gpu: str) -> None:
        """End the daemon of a GPU and its servers; silent where none runs. Raises PartitionRefused."""
        if not (self._folder / gpu).exists():
            return
        family = list(_family(self._folder / gpu))
        if self._pid(gpu) is not None:
            self._ask(gpu, "quit")
            _wait(family)
        for each in family:  # one that did not quit, and the servers of one that was killed
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        if not _wait(family):
            raise PartitionRefused(f"the MPS daemon of {gpu} (process {family[0]}) does not end", DAEMON)
        shutil.rmtree(self._folder / gpu, ignore_errors=True)

    def stop_all(self) -> None:
        """End every daemon that raysched started here."""
        for gpu in os.listdir(self._folder) if self._folder.is_dir() else ():
            with suppress(PartitionRefused):
                self.stop(gpu)

    def owns(self, gpu: str, pid: int) -> bool:
        """Whether a process is the daemon of a GPU, or a server of it: it is no tenant, and no stranger."""
        daemon = self._pid(gpu)
        return daemon is not None and (pid == daemon or _parent(pid) == daemon)

    def _make(self, pipe: Path, gpu: str) -> None:
        """An empty pipe directory that nobody else may look into. What lies in a folder of another user
        could be that user's daemon."""
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            there = self._folder.lstat()
            if there.st_uid != os.getuid() or there.st_mode & 0o077 or self._folder.is_symlink():
                why = f"{self._folder} belongs to somebody else, or others may write there: remove it"
                raise PartitionRefused(f"the MPS daemon of {gpu} can't be started: {why}", DAEMON)
            shutil.rmtree(pipe, ignore_errors=True)
            (pipe / "log").mkdir(mode=0o700, parents=True)
        except OSError as problem:
            raise PartitionRefused(f"the MPS daemon of {gpu} can't be started: {problem}", DAEMON) from None

    def _ask(self, gpu: str, command: str) -> str | None:
        """What the daemon of a GPU answers; None where it does not."""
        done = self._control(gpu, [], f"{command}\n")
        return done.stdout if done is not None and done.returncode == 0 else None

    def _control(self, gpu: str, arguments: list[str], said: str) -> subprocess.CompletedProcess[str] | None:
        """The control program, run for a GPU; None where it is not here or takes too long."""
        pipe = self._folder / gpu
        # What it prints goes to a file: the daemon keeps what it inherits, and a pipe would never end.
        try:
            with (pipe / "said").open("w+") as out:
                done = subprocess.run(
                    [CONTROL, *arguments],
                    input=said,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=_environment(gpu, pipe),
                    timeout=ANSWER_S,
                    text=True,
                    check=False,
                )
                out.seek(0)
                return subprocess.CompletedProcess(done.args, done.returncode, out.read())
        except (OSError, subprocess.TimeoutExpired):
            return None

    def _pid(self, gpu: str) -> int | None:
        """The process of the daemon: of that name, with this pipe directory, so that no later process with
        the same number is taken for it."""
        pipe = self._folder / gpu
        try:
            pid = int((pipe / PID_FILE).read_text())
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if f"{PIPES}={pipe}".encode() in variables and _runs(pid) else None


def _environment(gpu: str, pipe: Path) -> dict[str, str]:
    """For a daemon that serves one GPU, and for those who speak to it."""
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CUDA_", "RAY_")) and name != MARKER
    }
    return {**plain, "CUDA_VISIBLE_DEVICES": gpu, PIPES: str(pipe), LOGS: str(pipe / "log")}


def _said(done: subprocess.CompletedProcess[str] | None, pipe: Path) -> str:
    """Why a daemon did not start, in its own words where it has some."""
    if done is None:
        return f"{CONTROL} is not here, or takes longer than {ANSWER_S:g} s"
    with suppress(OSError):
        lines = (pipe / "log" / "control.log").read_text().strip().splitlines()
        if lines:
            return lines[-1]
    return done.stdout.strip() or f"{CONTROL} -d ended with exit code {done.returncode}"


def _wait(pids: list[int]) -> bool:
    """Whether these processes are gone, at the latest after a while."""
    deadline = time.monotonic() + END_S
    while any(_runs(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _runs(pid: int) -> bool:
    fields = _stat(pid)
    return fields is not None and fields[0] not in "ZX"


def _parent(pid: int) -> int | None:
    fields = _stat(pid)
    return None if fields is None else int(fields[1])


def _family(pipe: Path) -> Iterator[int]:
    """The processes of a daemon: they have its pipe directory, and no lease, as its clients have."""
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        with suppress(OSError):
            variables = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
            ours = f"{PIPES}={pipe}".encode() in variables
            if ours and not any(each.startswith(f"{MARKER}=".encode()) for each in variables):
                yield int(name)


def _stat(pid: int) -> list[str] | None:
    """State, parent and so on of a process; None if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
