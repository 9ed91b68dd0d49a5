"""Ray on one node of a Slurm job, from its start to its end, for ray_nodes.py, beside which it stands.

Nothing of it meets another Ray on the same machine: every port is chosen by the system, the temporary folder
and the token are the job's own.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
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
RAY_END_S = 5.0
"""How long Ray's processes may take to end by themselves before they are killed."""
LONGEST = 40
"""The longest path of Ray's temporary folder: below it are sockets, whose paths may have 107 characters."""
LEAST_STORE = 80 << 20
"""Ray's object store takes no less, in bytes."""
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


class NoRay(Exception):
    """Ray can't be started; the message says why."""


def adopt_orphans() -> None:
    """What Ray leaves to itself becomes a child of this process, so that it can be ended."""
    ctypes.CDLL(None).prctl(runner.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def environment(env: Mapping[str, str], token: str) -> dict[str, str]:
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


def options(env: Mapping[str, str]) -> list[str]:
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


def start(options: Sequence[str], env: Mapping[str, str], temporary: str) -> str:
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
        end()
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


def runs() -> bool:
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


def end() -> None:
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
