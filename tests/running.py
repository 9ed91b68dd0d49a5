"""A real raysched for tests: its own Ray, its own folders, its own port; nothing is left of it afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raysched.client import Client

COMMAND_S = 180
"""How long a command may take on a busy machine before the test gives up."""
ENDED = ("succeeded", "failed", "cancelled")
Done = subprocess.CompletedProcess[str]
FOREIGN = ("RAY_", "RAYSCHED_", "PYTHONDONTWRITEBYTECODE", "CUDA_VISIBLE_DEVICES")

DEMANDS = """
import ray
from ray.autoscaler.v2.sdk import get_cluster_status
ray.init(address="auto", log_to_driver=False)
demands = get_cluster_status(ray.get_runtime_context().gcs_address).resource_demands
print([*demands.placement_group_demand, *demands.ray_task_actor_demand])
"""
"""Asks Ray's head what waits. `ray status` prints what another process, which may be late or dead, wrote down
last."""


class System:
    """One raysched. `simulate` are its GPUs, None for the real ones; `up` starts it."""

    def __init__(self, simulate: str | None) -> None:
        self.simulate = simulate
        # Ray's socket paths may have 107 characters, so the folder's path has to be short.
        self.folder = Path(tempfile.mkdtemp(prefix="rs-", dir="/tmp"))
        self.home = self.folder / "home"
        self.port = free_port()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        scripts = os.path.dirname(sys.executable)
        self.env = kept | {
            "RAYSCHED_HOME": str(self.home),
            "RAYSCHED_CONFIG": str(self.folder / "raysched.yaml"),
            "RAY_TMPDIR": str(self.folder),
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]),
        }
        config = f"gateway: {{port: {self.port}}}\n"
        (self.folder / "raysched.yaml").write_text(config, encoding="utf-8")

    # ------------------------------------------------------------ what tests do with it

    def cli(self, *args: str, check: bool = True, cwd: Path | None = None) -> Done:
        """Run `raysched ARGS`. With `check` it has to succeed."""
        return self.run(_script("raysched"), *args, check=check, cwd=cwd)

    def ray(self, *args: str, check: bool = True, cwd: Path | None = None) -> Done:
        """Run `ray ARGS` on its Ray, with the variable that `up` says it needs."""
        return self.run("env", "RAY_AUTH_MODE=token", _script("ray"), *args, check=check, cwd=cwd)

    def python(self, *args: str, check: bool = True, cwd: Path | None = None) -> Done:
        """Run `python ARGS` with its environment."""
        return self.run(sys.executable, *args, check=check, cwd=cwd)

    def run(self, *command: str, check: bool = True, cwd: Path | None = None) -> Done:
        """Run any command with its environment. With `check` it has to succeed."""
        done = subprocess.run(
            command,
            env=self.env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        said = f"{' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert not check or done.returncode == 0, said
        return done

    def json(self, *args: str, check: bool = True) -> Any:
        """What `raysched ARGS --json` prints."""
        return json.loads(self.cli(*args, "--json", check=check).stdout)

    def begin(self, *args: str) -> subprocess.Popen[str]:
        """Start `raysched ARGS` and leave it running."""
        return subprocess.Popen(
            [_script("raysched"), *args],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def up(self, *args: str) -> Any:
        """Start it; the answer of `raysched up --json`."""
        return self.json("up", *self.simulated, *args)

    def submit(self, name: str, entrypoint: str, **fields: Any) -> str:
        """Submit a job without a working directory; its id."""
        spec = {"name": name, "entrypoint": entrypoint, "working_dir": None, **fields}
        (job,) = self.client().submit([spec], [None])
        return job["id"]

    def ended(self, job: str) -> dict[str, Any]:
        """A job once it has ended."""

        def ended() -> dict[str, Any] | None:
            (found,) = self.client().job(job)
            return found if found["state"] in ENDED else None

        return wait_until(ended, f"{job} has ended")

    def until(self, job: str, state: str) -> None:
        """Return when a job is in that state."""
        wait_until(lambda: self.client().job(job)[0]["state"] == state, f"{job} is {state}")

    def output(self, job: str) -> str:
        """What a job has written so far."""
        return b"".join(self.client().logs(job)).decode()

    def configure(self, text: str) -> None:
        """Lines that its configuration has besides its own."""
        path = Path(self.env["RAYSCHED_CONFIG"])
        path.write_text(f"{path.read_text(encoding='utf-8')}{text}\n", encoding="utf-8")

    def client(self) -> Client:
        """A client of its gateway."""
        return Client(self.address, self.token)

    @property
    def simulated(self) -> list[str]:
        """The option of `up` that makes its GPUs up."""
        return [] if self.simulate is None else ["--simulate", self.simulate]

    @property
    def address(self) -> str:
        """The gateway's URL."""
        return self._access()["address"]

    @property
    def token(self) -> str:
        """The gateway's token."""
        return self._access()["token"]

    def _access(self) -> dict[str, str]:
        return json.loads((self.home / "gateway.json").read_text(encoding="utf-8"))

    def wait_for_no_demands(self) -> None:
        """Wait until nothing waits in Ray itself; prints what does where something goes on to."""
        said = ""

        def none() -> bool:
            nonlocal said
            said = self.run("env", "RAY_AUTH_MODE=token", sys.executable, "-c", DEMANDS).stdout
            return said == "[]\n"

        try:
            wait_until(none, "Ray waits for nothing")
        except AssertionError:
            print(said)
            for kind, state in (("tasks", "PENDING_NODE_ASSIGNMENT"), ("actors", "PENDING_CREATION")):
                print(self.ray("list", kind, "--detail", "--filter", f"state={state}").stdout)
            raise

    # ------------------------------------------------------------ its processes

    def processes(self, *words: str) -> dict[int, str]:
        """The command line of each process of it that has all the words in it, by process id."""
        found: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with suppress(OSError):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if line and self._is_mine(entry, line) and all(word in line for word in words):
                        found[int(entry.name)] = line.strip()
        return found

    def _is_mine(self, entry: Path, line: str) -> bool:
        """Every process of it has its folder in its environment or its command line, but for Ray's workers,
        which write over both: those are known by their session."""
        if str(self.folder) in line or str(self.folder).encode() in (entry / "environ").read_bytes():
            return True
        return os.getsid(int(entry.name)) in self._sessions()

    def _sessions(self) -> set[int]:
        with suppress(OSError, ValueError, TypeError):
            own = json.loads((self.home / "up.json").read_text(encoding="utf-8"))["own"]
            self._session = own["pid"]
        return {session} if (session := getattr(self, "_session", None)) else set()

    def kill_process(self, pid: int) -> None:
        """kill -9 one process of it."""
        os.kill(pid, signal.SIGKILL)

    def kill(self, *words: str) -> list[int]:
        """kill -9 its processes with these words in their command lines; their ids."""
        pids = list(self.processes(*words))
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return pids

    def close(self) -> None:
        """Take it down with all its jobs and delete its folder. Fails if a process is left."""
        try:
            if (self.home / "up.json").exists():
                self.cli("down", "--cancel")
            wait_until(lambda: not self.processes(), "its processes are gone", 60)
        finally:
            self.kill()
            shutil.rmtree(self.folder, ignore_errors=True)


def raylets(system: System) -> set[int]:
    """The processes that `ray start` starts on a node; all others there end with these."""
    return {pid for name in ("raylet/raylet", "log_monitor") for pid in system.processes(name)}


@contextmanager
def watched(policy: str) -> Iterator[System]:
    """A system with one GPU, and that policy, whose metrics are told each second."""
    system = System("1xA100-80GB")
    system.configure(policy)
    system.env["RAY_metrics_report_interval_ms"] = "1000"
    try:
        system.up()
        yield system
    finally:
        system.close()


def _script(name: str) -> str:
    """The installed command of that name."""
    return str(Path(sys.executable).with_name(name))


def free_port() -> int:
    """A port of the loopback on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def free_ports(count: int) -> int:
    """The first of so many free ports of the loopback, below those that Linux gives out."""
    start = 20_000 + os.getpid() * 16 % 10_000
    for first in [*range(start, 30_000, count), *range(20_000, start, count)]:
        if all(is_free(port) for port in range(first, first + count)):
            return first
    raise AssertionError("no free ports")


def is_free(port: int) -> bool:
    """Whether nobody listens on a port of the loopback."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def wait_until(true: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """What `true` returns as soon as that is something. Fails after the time."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(0.05)
    return found
