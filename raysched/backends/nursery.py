"""A process that stands ready to become runners, so that a start need not wait for a Python to start.

It is `nurse.py SOCKET`. For each start it is sent the run folder, and a socket that is the stderr
of what it forks; that one does what `runner.py FOLDER` does, and says `+` or why not. Without it, or when it
was killed, runners start as ever.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

from raysched.backends import nurse, runner

ANSWER_S = 60.0
"""How long a start may take that ends in nothing: the disk hangs."""


class Nursery:
    """Starts runners, from any thread. `command` is that of `nurse.py`, without its socket."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self._command = command
        self._env = env
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, folder: str) -> tuple[int, bytes] | None:
        """Start the runner of a run folder; its exit status, as of a runner that detached itself, and what it
        said. None: it is not known whether it started, and starting it in another way does no harm."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            ours.settimeout(ANSWER_S)
            try:
                with theirs:
                    self._send(folder, theirs.fileno())
                said = ours.recv(1 << 16)
            except OSError:
                return None
        if said == b"+":
            return 0, b""
        return (1, said) if said else None

    def _send(self, folder: str, descriptor: int) -> None:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._open()
            assert self._socket is not None
            socket.send_fds(self._socket, [folder.encode("utf-8", "surrogateescape")], [descriptor])

    def _open(self) -> None:
        self.close()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = theirs.fileno()
            self._process = subprocess.Popen(
                [*self._command, str(number)],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[number],
            )

    def close(self) -> None:
        """End it; the runners that it started go on."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __del__(self) -> None:
        self.close()


def of_this_python() -> Nursery:
    """A nursery whose runners are started as those that `RunFolder` starts itself."""
    return Nursery(_isolated(nurse.__file__), runner_environment())


def runner_command() -> list[str]:
    """The command line of a runner, but for its folder."""
    return _isolated(runner.__file__)


def _isolated(file: str) -> list[str]:
    """Runs a file isolated (-I), without site packages (-S), text as UTF-8 whatever the locale."""
    return [sys.executable, "-I", "-S", "-X", "utf8", file]


def runner_environment() -> dict[str, str]:
    """Its environment: not the marker of a lease, by which the processes of a lease are found and ended."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAYSCHED_")}
