"""Ray inside a Slurm job: `python -I -S ray_nodes.py RUN_FOLDER`, under the runner on the first node.

It starts a head there and, by srun, a worker on each other node, waits until all are there, runs the command
as their driver and ends everything. It stands beside batch.py and runner.py. Nothing of it meets another Ray
on the same machine: every port is chosen by the system, the temporary folder and the token are the job's own.

The head's program holds the stdin of each `ray_nodes.py --worker RUN_FOLDER`, which ends once that is closed.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any
if TYPE_CHECKING or __package__:
    from raysched.backends import runner
    from raysched.backends.slurm import batch
else:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import batch
    import runner

START_S = 300.0
"""How long `ray start` may take on a node."""
TRIES = 3
"""How often it is tried: on a busy node Ray gives itself up after 30 s."""
END_S = 20.0
"""How long the workers may take to end once the command has."""
RAY_END_S = 5.0
"""How long Ray's processes may take to end by themselves before they are killed."""
LOOK_S = 1.0
READY = b"raysched: ready\n"
LONGEST = 40
"""The longest path of Ray's temporary folder: below it are sockets, whose paths may have 107 characters."""
LEAST_STORE = 80 << 20
"""Ray's object store takes no less, in bytes."""

ALWAYS = (
    "--disable-usage-stats",
    "--node-manager-port=0",
    "--object-manager-port=0",
    "--min-worker-port=0",
    "--max-worker-port=0",
    "--dashboard-agent-listen-port=0",
    "--dashboard-agent-grpc-port=0",
    "--metrics-export-port=0",
    "--runtime-env-agent-port=0",
)
HEAD = ("--head", "--port=0", "--include-dashboard=false")


class NoRay(Exception):
    """Ray can't be started; the message says why."""


# ---------------------------------------------------------------- the first node


def main(folder: str) -> int:
    """Run the command of the run in `folder` on a Ray of its own; its exit code, or 1 where Ray can't be
    started on all nodes."""
    adopt_orphans()
    launch = runner.read_json(folder, "launch.json")
    env = ray_environment(batch.environment(os.environ, launch), secrets.token_hex(32))
    driver = Driver()
    driver.take_signals()
    temporary = temporary_folder(folder)
    workers = None
    try:
        address = start_ray([*HEAD, *client_port(), *local_options(os.environ)], env, temporary)
        if launch["nodes"] > 1:
            runner.write_json(folder, "ray.json", {"address": address, "token": env["RAY_AUTH_TOKEN"]})
            workers = start_workers(folder, launch["nodes"] - 1)
            wait_ready(workers, launch["nodes"] - 1, driver)
        return driver.run(launch, {**env, "RAY_ADDRESS": address})
    except NoRay as error:
        runner.complain(str(error))
        return 1
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if workers is not None:
            end_workers(workers)
        end_ray()
        shutil.rmtree(temporary, ignore_errors=True)


class Driver:
    """The command, which runs once all nodes are there. SIGTERM comes to it from the runner itself; until it
    ends, Ray stays, so that it can save its work."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.told = False

    def take_signals(self) -> None:
        """Pass on what Slurm signals."""
        for number in batch.FORWARDED:
            signal.signal(number, self._signalled)

    def _signalled(self, number: int, _: object) -> None:
        if number == signal.SIGTERM:
            self.told = True
        elif self.process is not None:
            runner.kill(self.process.pid, number)

    def run(self, launch: Mapping[str, Any], env: Mapping[str, str]) -> int:
        """Run the command to its end; its exit code."""
        if self.told:
            return 128 + signal.SIGTERM
        line = launch["entrypoint"]
        arguments = ["/bin/sh", "-c", "--", line] if isinstance(line, str) else line
        try:
            self.process = subprocess.Popen(arguments, cwd=launch["cwd"], env=dict(env))
        except FileNotFoundError:
            runner.complain(f"can't run {arguments[0]!r}: there is no such command")
            return 127
        except OSError as error:
            runner.complain(f"can't run {arguments[0]!r}: {runner.words(error)}")
            return 126
        code = self.process.wait()
        return code if code >= 0 else 128 - code


def start_workers(folder: str, count: int) -> subprocess.Popen[bytes]:
    """Start Ray on the other nodes, `count` of them."""
    me = [sys.executable, "-I", "-S", "-X", "utf8", os.path.abspath(__file__), "--worker", folder]
    where = ["--relative=1", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", "--overlap"]
    command = ["srun", *where, *batch.cores(os.environ), "--kill-on-bad-exit=0", "--export=ALL", *me]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)


def wait_ready(workers: subprocess.Popen[bytes], count: int, driver: Driver) -> None:
    """Return once Ray runs on `count` nodes, or the run is to end. Raises NoRay."""
    assert workers.stdout is not None
    there = 0
    while there < count and not driver.told:
        if not select.select([workers.stdout], [], [], LOOK_S)[0]:
            continue
        line = workers.stdout.readline()
        if not line:
            raise NoRay(f"Ray started on {there + 1} of {count + 1} nodes: the output above says why")
        there += line == READY


def end_workers(workers: subprocess.Popen[bytes]) -> None:
    """Have all workers end, and return when they have."""
    assert workers.stdin is not None
    with suppress(OSError):
        workers.stdin.close()
    try:
        workers.wait(END_S)
    except subprocess.TimeoutExpired:
        workers.kill()
        workers.wait()


# ---------------------------------------------------------------- another node


def worker(folder: str) -> int:
    """Join the Ray of the run's first node, until that program closes the stdin or Ray ends."""
    adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    launch, head = runner.read_json(folder, "launch.json"), runner.read_json(folder, "ray.json")
    env = ray_environment(batch.environment(os.environ, launch), head["token"])
    temporary = temporary_folder(folder)
    try:
        start_ray([f"--address={head['address']}", *local_options(os.environ)], env, temporary)
        os.write(1, READY)
        while ray_runs():
            if select.select([0], [], [], LOOK_S)[0] and not os.read(0, 1024):
                return 0
        runner.complain(f"Ray on {here()} has ended")
    except NoRay as error:
        runner.complain(str(error))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_ray()
        shutil.rmtree(temporary, ignore_errors=True)
    return 1


# ---------------------------------------------------------------- Ray on this node


def adopt_orphans() -> None:
    """What Ray leaves to itself becomes a child of this process, so that it can be ended."""
    ctypes.CDLL(None).prctl(runner.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def ray_environment(env: Mapping[str, str], token: str) -> dict[str, str]:
    """The variables of Ray and of the command: who has not this token speaks to no process of it."""
    kept = {name: value for name, value in env.items() if not name.startswith(("RAY_ADDRESS", "RAY_AUTH_"))}
    return {**kept, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


def temporary_folder(folder: str) -> str:
    """A new folder for Ray's files on this node, for this run and this user alone: what Ray makes of its own
    folder, below, everybody may read."""
    own = hashlib.sha256(f"{folder} {here()}".encode()).hexdigest()[:12]
    path = os.path.join(os.environ.get("TMPDIR") or "/tmp", f"rs-ray-{own}")
    if len(path) > LONGEST or not os.path.isdir(os.path.dirname(path)):
        path = f"/tmp/rs-ray-{own}"
    shutil.rmtree(path, ignore_errors=True)
    os.mkdir(path, 0o700)
    return path


def local_options(env: Mapping[str, str]) -> list[str]:
    """What of this node is the job's, for `ray start`."""
    visible = [one for one in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    options = [f"--num-gpus={len(visible)}"]
    cpus = env.get("SLURM_CPUS_ON_NODE", "")
    if cpus.isdigit():
        options.append(f"--num-cpus={cpus}")
    if memory := memory_on_node(env):
        options.append(f"--object-store-memory={max(LEAST_STORE, memory * 3 // 10)}")
    if address := own_address():
        options.append(f"--node-ip-address={address}")
    return options


def client_port() -> list[str]:
    """The one port of Ray's that the system can't choose as it is taken. Nobody needs what listens there."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return [f"--ray-client-server-port={probe.getsockname()[1]}"]


def memory_on_node(env: Mapping[str, str]) -> int:
    """The job's memory on this node in bytes; 0 where Slurm does not tell."""
    whole, each = env.get("SLURM_MEM_PER_NODE", ""), env.get("SLURM_MEM_PER_CPU", "")
    cpus = env.get("SLURM_CPUS_ON_NODE", "")
    if whole.isdigit():
        return int(whole) << 20
    return (int(each) * int(cpus)) << 20 if each.isdigit() and cpus.isdigit() else 0


def own_address() -> str:
    """The address by which the other nodes know this one: that of the name that Slurm gives it; empty where
    only Ray can find one."""
    with suppress(OSError):
        found = socket.gethostbyname(here())
        return "" if found.startswith("127.") else found
    return ""


def here() -> str:
    """Slurm's name of this node."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def start_ray(options: Sequence[str], env: Mapping[str, str], temporary: str) -> str:
    """Start Ray on this node; the address of its head. Raises NoRay."""
    program = shutil.which("ray", path=env.get("PATH"))
    if program is None:
        raise NoRay(f"there is no `ray` in the job's PATH on {here()}: install Ray there, or set PATH in env")
    own, said = os.path.join(temporary, "ray"), os.path.join(temporary, "start.log")
    for _ in range(TRIES):
        command = [program, "start", f"--temp-dir={own}", *ALWAYS, *options]
        if started(command, env, said):
            with open(os.path.join(own, "ray_current_cluster"), encoding="utf-8") as file:
                return file.read().strip()
        end_ray()
        shutil.rmtree(own, ignore_errors=True)
    with open(said, encoding="utf-8", errors="replace") as log:
        sys.stderr.write(log.read())
        sys.stderr.flush()
    raise NoRay(f"Ray can't be started on {here()}: the output above says why")


def started(command: Sequence[str], env: Mapping[str, str], said: str) -> bool:
    """Whether `ray start` could; `said` is the file for its words."""
    with open(said, "wb", opener=runner.private) as log:
        starting = subprocess.Popen(
            command,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with suppress(subprocess.TimeoutExpired):
            starting.wait(START_S)
    return starting.returncode == 0


def ray_runs() -> bool:
    """Whether the Ray of this node is still there."""
    return any(name(pid) == "raylet" for pid in runner.descendants({os.getpid()}))


def name(pid: int) -> str:
    """The name of a process that lives; else empty."""
    with suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
        return file.read().strip() if runner.ticks(pid) is not None else ""
    return ""


def end_ray() -> None:
    """End all of Ray on this node, and return when it is gone."""
    number, deadline = signal.SIGTERM, time.monotonic() + RAY_END_S
    told: set[int] = set()
    while left := {pid for pid in runner.descendants({os.getpid()}) if runner.ticks(pid) is not None}:
        if time.monotonic() > deadline:
            number, told = signal.SIGKILL, set()
        for pid in left - told:
            runner.kill(pid, number)
        told |= left
        batch.reaped(0)
        time.sleep(0.05)


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        sys.exit(worker(os.path.abspath(sys.argv[2])))
    sys.exit(main(os.path.abspath(sys.argv[1])))
