"""A real PostgreSQL for tests: a server of their own, on a socket and a port of its own, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path

from engines import need
from running import free_port, wait_until

INSTALL = "apt-get install --no-install-recommends postgresql"


def programs() -> Path | None:
    """The folder of the newest PostgreSQL's programs, where one is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    elsewhere = shutil.which("initdb")
    return Path(elsewhere).resolve().parent if elsewhere else None


class Postgres:
    """One server. It never runs as root, which it refuses."""

    def __init__(self) -> None:
        folder = programs()
        need(folder, INSTALL)
        assert folder is not None
        self._programs = folder
        # Under root another user runs it, who must be able to get there.
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self.data = self.folder / "data"
        self.port = free_port()
        self.user, self._as_user = _user()
        shutil.chown(self.folder, self.user)
        self._run("initdb", "-D", str(self.data), "-A", "trust", "--no-sync", "-E", "UTF8", "--no-locale")
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = f"-p {self.port} -c unix_socket_directories={self.folder} -c listen_addresses=127.0.0.1"
        log = str(self.folder / "log")
        self._run("pg_ctl", "-w", "-D", str(self.data), "-l", log, "-o", options, "start")

    def stop(self) -> None:
        """Stop it as an operator does, at once."""
        self._run("pg_ctl", "-w", "-D", str(self.data), "-m", "fast", "stop")

    def kill(self) -> None:
        """kill -9 the server and all that belongs to it."""
        server = int((self.data / "postmaster.pid").read_text().split()[0])
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(server)], capture_output=True, text=True, check=False
        )
        processes = [server, *map(int, children.stdout.split())]
        for pid in processes:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: all(_dead(pid) for pid in processes), "the server is gone")
        # Where nobody collects the dead, as in some containers, the next server would take it for alive.
        (self.data / "postmaster.pid").unlink()
        (self.folder / f".s.PGSQL.{self.port}.lock").unlink()

    def database(self) -> str:
        """The URL of a new, empty database."""
        name = f"db_{uuid.uuid4().hex[:12]}"
        self.sql(f"create database {name}")
        return self.url(name)

    def url(self, name: str) -> str:
        """The URL of a database."""
        return f"postgresql://{self.user}@127.0.0.1:{self.port}/{name}"

    def sql(self, statement: str, name: str = "postgres") -> str:
        """Run a statement in a database; what it prints."""
        return self._run(
            "psql", "-qtAX", "-v", "ON_ERROR_STOP=1", "-d", self.url(name), "-c", statement
        ).strip()

    def cut(self) -> None:
        """End every connection to it, as a firewall or an operator may."""
        self.sql(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where pid <> pg_backend_pid() and backend_type = 'client backend'"
        )

    def close(self) -> None:
        """End it; nothing of it is left."""
        if (self.data / "postmaster.pid").exists():
            self._run("pg_ctl", "-w", "-D", str(self.data), "-m", "immediate", "stop")
        shutil.rmtree(self.folder)

    def _run(self, program: str, *arguments: str) -> str:
        path = shutil.which(program, path=f"{self._programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
        # Into files, not pipes: the server that pg_ctl starts would keep those open.
        with tempfile.TemporaryFile("w+") as out:
            done = subprocess.run(
                [*self._as_user, str(path), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd="/",
                check=False,
            )
            out.seek(0)
            said = out.read()
        log = self.folder / "log"
        told = log.read_text()[-1000:] if program == "pg_ctl" and log.exists() else ""
        assert done.returncode == 0, f"{program} {' '.join(arguments)}: {said}{told}"
        return said


def _user() -> tuple[str, list[str]]:
    """Who runs the server, and what makes a command run as that user."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name, []
    try:
        name = pwd.getpwnam("postgres").pw_name
    except KeyError:
        name = "nobody"
    group = str(pwd.getpwnam(name).pw_gid)
    return name, ["setpriv", f"--reuid={name}", f"--regid={group}", "--clear-groups"]


def _dead(pid: int) -> bool:
    """Whether a process is gone, or only waits for its parent to notice."""
    try:
        return "(zombie)" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
