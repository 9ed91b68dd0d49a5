"""Ray inside a Slurm job: `python -I -S ray_nodes.py RUN_FOLDER`, under the runner on the first node.

It starts a head there and, by srun, a worker on each other node, waits until all are there, runs the command
as their driver and ends everything. It stands beside batch.py and runner.py. Nothing of it meets another Ray
on the same machine: every port is chosen by the system, the temporary folder and the token are the job's own.
With `ray: join` all are workers of raysched's own Ray (`ENTRANCE`), labelled so that the ledger knows them,
and leave it before the job's time is over.

The first node's program holds the stdin of each `ray_nodes.py --worker RUN_FOLDER`, which ends once that is
closed.
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
ENTRANCE = "ray.json"
"""The file beside the run folders that says how to join raysched's own Ray: `address`, `token` (empty: it
asks for none), and `simulate`, the model of made-up GPUs."""
LEAVE_S = 60.0
"""When its time is over in so many seconds, nothing new starts on a node that joined; in half of that it
leaves if nothing runs there, in a quarter in any case. Of a short time it is a quarter (`core/lent.py`)."""
STAY_S = 5.0
"""How long a node stays for what runs there when nobody said how long."""

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


class ToldToEnd(Exception):
    """The job is to end before its command has begun."""


# ---------------------------------------------------------------- the first node


def main(folder: str) -> int:
    """Run the command of the run in `folder` on a Ray of its own, or on the nodes that join raysched's; its
    exit code, or 1 where Ray can't be started on all nodes."""
    adopt_orphans()
    launch = runner.read_json(folder, "launch.json")
    joins = launch["ray"] == "join"
    driver = Driver(folder, time.monotonic() + launch["limit"] / 1000 if joins else None)
    driver.take_signals()
    temporary = temporary_folder(folder)
    workers = None
    try:
        head = entrance(folder) if joins else {"address": "", "token": secrets.token_hex(32)}
        env = ray_environment(batch.environment(os.environ, launch), head["token"])
        role = joining(head) if joins else [*HEAD, *client_port()]
        address = start_ray([*role, *local_options(os.environ)], unmarked(env) if joins else env, temporary)
        if launch["nodes"] > 1:
            runner.write_json(folder, "ray.json", {**head, "address": address})
            workers = start_workers(folder, launch["nodes"] - 1)
            wait_ready(workers, launch["nodes"] - 1)
        return driver.run(launch, {**env, "RAY_ADDRESS": address})
    except ToldToEnd:
        return 128 + signal.SIGTERM
    except NoRay as error:
        runner.complain(str(error))
        return 1
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if workers is not None:
            dismiss(workers)
        if joins:
            stay(folder)
        if workers is not None:
            await_end(workers, folder)
        end_ray()
        shutil.rmtree(temporary, ignore_errors=True)


def entrance(folder: str) -> dict[str, Any]:
    """How the run in `folder` joins raysched's own Ray. Raises NoRay."""
    try:
        return runner.read_json(os.path.dirname(folder), ENTRANCE)
    except (OSError, ValueError) as error:
        raise NoRay(f"raysched's Ray can't be joined: {runner.words(error)}") from None


class Driver:
    """The command, which runs once all nodes are there. SIGTERM comes to it from the runner itself; until it
    ends, Ray stays, so that it can save its work. `ends` is when its nodes have to be out of raysched's Ray,
    None where Ray is the job's own."""

    def __init__(self, folder: str, ends: float | None) -> None:
        self.folder = folder
        self.ends = ends
        self.began = time.monotonic()
        self.process: subprocess.Popen[bytes] | None = None

    def take_signals(self) -> None:
        """Pass on what Slurm signals."""
        for number in batch.FORWARDED:
            signal.signal(number, self._signalled)

    def _signalled(self, number: int, _: object) -> None:
        if number == signal.SIGTERM:
            if self.process is None:
                raise ToldToEnd
        elif self.process is not None:
            runner.kill(self.process.pid, number)

    def run(self, launch: Mapping[str, Any], env: Mapping[str, str]) -> int:
        """Run the command to its end; its exit code. One whose nodes' time is over has succeeded."""
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
        code = self.process.wait() if self.ends is None else self._wait(self.process, self.ends)
        return code if code >= 0 else 128 - code

    def _wait(self, process: subprocess.Popen[bytes], ends: float) -> int:
        """The exit code of the command, which has to go when the nodes do. Raises NoRay."""
        leave = min(LEAVE_S, (ends - self.began) / 4)
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(LOOK_S)
            left = ends - time.monotonic()
            if left < leave / 4 or (left < leave / 2 and not tenants()):
                process.terminate()
                process.wait()
                return 0
            if not ray_runs():
                process.terminate()
                process.wait()
                raise NoRay(f"raysched's Ray is gone, or has put {here()} out")


def start_workers(folder: str, count: int) -> subprocess.Popen[bytes]:
    """Start Ray on the other nodes, `count` of them."""
    me = [sys.executable, "-I", "-S", "-X", "utf8", os.path.abspath(__file__), "--worker", folder]
    where = ["--relative=1", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", "--overlap"]
    command = ["srun", *where, *batch.cores(os.environ), "--kill-on-bad-exit=0", "--export=ALL", *me]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)


def wait_ready(workers: subprocess.Popen[bytes], count: int) -> None:
    """Return once Ray runs on `count` nodes. Raises NoRay."""
    assert workers.stdout is not None
    there = 0
    while there < count:
        line = workers.stdout.readline()
        if not line:
            raise NoRay(f"Ray started on {there + 1} of {count + 1} nodes: the output above says why")
        there += line == READY


def dismiss(workers: subprocess.Popen[bytes]) -> None:
    """Have all workers end."""
    assert workers.stdin is not None
    with suppress(OSError):
        workers.stdin.close()


def await_end(workers: subprocess.Popen[bytes], folder: str) -> None:
    """Return when all workers have ended."""
    try:
        workers.wait(END_S + patience(folder))
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
    joins = launch["ray"] == "join"
    role = joining(head) if joins else [f"--address={head['address']}"]
    try:
        start_ray([*role, *local_options(os.environ)], unmarked(env) if joins else env, temporary)
        os.write(1, READY)
        while ray_runs():
            if select.select([0], [], [], LOOK_S)[0] and not os.read(0, 1024):
                if joins:
                    stay(folder)
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
    return {**kept, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else kept


def unmarked(env: Mapping[str, str]) -> dict[str, str]:
    """The variables without the marks of the job: others work on its nodes, under leases of their own."""
    return {name: value for name, value in env.items() if name not in ("RAYSCHED_LEASE", "RAYSCHED_RUN")}


def joining(head: Mapping[str, Any]) -> list[str]:
    """How this node joins raysched's Ray, for `ray start`: the ledger knows it by its labels."""
    lease = os.environ.get("RAYSCHED_RUN", "").rpartition(".")[0]
    labels = {"node": f"{here()}-{lease}", "lease": lease}
    if head.get("simulate"):
        labels["simulate"] = f"{len(visible(os.environ))}x{head['simulate']}"
    told = ",".join(f"raysched.io/{name}={value}" for name, value in labels.items())
    return [f"--address={head['address']}", f"--labels={told}"]


def visible(env: Mapping[str, str]) -> list[str]:
    """The GPUs of this node that are the job's."""
    return [one for one in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]


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
    options = [f"--num-gpus={len(visible(env))}"]
    cpus = env.get("SLURM_CPUS_ON_NODE", "")
    if cpus.isdigit():
        options.append(f"--num-cpus={cpus}")
    if memory := memory_on_node(env):
        store = max(LEAST_STORE, memory * 3 // 10)
        options += [f"--object-store-memory={store}", f"--memory={max(1, memory - store)}"]
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


def tenants() -> bool:
    """Whether anything below this process works under another lease than the job's own."""
    own = os.environ.get("RAYSCHED_RUN", "").rpartition(".")[0].encode()
    found = (lease(pid) for pid in runner.descendants({os.getpid()}))
    return any(one not in (b"", own) for one in found)


def lease(pid: int) -> bytes:
    """The lease under which a process works; empty where it has none, or is gone."""
    with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
        found = (one for one in file.read().split(b"\0") if one.startswith(b"RAYSCHED_LEASE="))
        return next(found, b"").partition(b"=")[2]
    return b""


def patience(folder: str) -> float:
    """How long a node may stay for what runs there, in seconds: half the grace of whoever ended the job."""
    with suppress(OSError, ValueError, KeyError):
        return runner.read_json(folder, "stop.json")["grace"] / 2
    return STAY_S


def stay(folder: str) -> None:
    """Return when nothing works under a lease here any more, which the ledger ends once the job stops."""
    deadline = time.monotonic() + patience(folder)
    while tenants() and time.monotonic() < deadline:
        batch.reaped(0)
        time.sleep(0.1)


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
