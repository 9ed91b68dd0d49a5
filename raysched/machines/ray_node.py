"""Ray on a machine that was made, as a node of raysched's own Ray: run there, over SSH, as

    python -m raysched.machines.ray_node join FOLDER     # how to join comes as JSON on stdin
    python -m raysched.machines.ray_node leave FOLDER

Joining where that was done, and leaving where it was not, is silent; either may die at any line and be asked
again. What was started is noted in FOLDER before it is.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from raysched.actors.names import NODE_LABEL, SIMULATE_LABEL
from raysched.backends import runner
from raysched.backends.slurm.local_ray import ALWAYS, LEAST_STORE
from raysched.backends.slurm.local_ray import environment as ray_environment
from raysched.cluster import own_ray
from raysched.cluster.record import OwnRay, write_private
from raysched.errors import RayschedError
from raysched.folders import NODE_FOLDER
from raysched.gpu.simulated import parse_simulation

NAME = "ray.json"
START_S = 150.0
"""How long Ray may take to start on a busy machine."""


@dataclass(frozen=True, slots=True)
class Joined:
    """The Ray that was started here: `own` with pid 0 where nobody lived to note it, the GCS that it joins
    and the folder of its own files."""

    own: OwnRay
    address: str
    temporary: str


def join(folder: Path, told: Mapping[str, Any]) -> None:
    """Be a node of the Ray at `told["address"]`. Raises RayschedError with what Ray says."""
    before = _read(folder)
    if before is not None and before.address == told["address"] and own_ray.alive(before.own):
        return
    leave(folder)
    # Below it are sockets, whose paths may have 107 characters.
    temporary = tempfile.mkdtemp(prefix="rs-ray-", dir="/tmp")
    mark = secrets.token_hex(8)
    joined = Joined(OwnRay(0, 0, runner.boot(), mark), told["address"], temporary)
    _write(folder, joined)
    with open(folder / "ray.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *_options(told, temporary)],
            cwd="/",
            env=_environment(told["token"], mark, temporary, folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    own = OwnRay(process.pid, runner.ticks(process.pid) or 0, runner.boot(), mark)
    _write(folder, replace(joined, own=own))
    try:
        _wait_started(process, folder / "ray.log")
    except RayschedError:
        leave(folder)
        raise


def leave(folder: Path) -> None:
    """Be no node any more, and return when nothing of that Ray is left. Raises RayschedError."""
    joined = _read(folder)
    if joined is None:
        return
    own_ray.stop(joined.own)
    shutil.rmtree(joined.temporary, ignore_errors=True)
    (folder / NAME).unlink(missing_ok=True)


def _read(folder: Path) -> Joined | None:
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Joined(OwnRay(**content.pop("own")), **content)


def _write(folder: Path, joined: Joined) -> None:
    write_private(folder / NAME, asdict(joined))


def _options(told: Mapping[str, Any], temporary: str) -> list[str]:
    """How this machine joins, for `ray start`."""
    labels = {NODE_LABEL: told["name"]}
    options = ["--block", "--log-style=record", f"--address={told['address']}", f"--temp-dir={temporary}/ray"]
    options += [f"--node-ip-address={_own_address(told['address'])}", *ALWAYS]
    if told["simulate"]:
        labels[SIMULATE_LABEL] = told["simulate"]
        options.append(f"--num-gpus={len(parse_simulation(told['simulate']))}")
    if told["cpus"] is not None:
        options.append(f"--num-cpus={told['cpus']}")
    if told["memory"] is not None:
        store = max(LEAST_STORE, told["memory"] * 3 // 10)
        options += [f"--object-store-memory={store}", f"--memory={max(1, told['memory'] - store)}"]
    return [*options, "--labels=" + ",".join(f"{name}={value}" for name, value in labels.items())]


def _own_address(head: str) -> str:
    """The address of this machine on the way to the head, which need not be the one that SSH goes to."""
    host, _, port = head.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host.strip("[]"), int(port)))
            return probe.getsockname()[0]
    except OSError as error:
        raise RayschedError(f"there is no way to raysched's Ray at {head}: {runner.words(error)}") from None


def _environment(token: str, mark: str, temporary: str, folder: Path) -> dict[str, str]:
    env = ray_environment(os.environ, token)
    scratch = Path(temporary) / "tmp"
    scratch.mkdir()
    own = {own_ray.MARK: mark, "TMPDIR": str(scratch), "RAY_USAGE_STATS_ENABLED": "0"}
    env.setdefault("RAY_raylet_start_wait_time_s", f"{START_S:.0f}")  # else a busy machine gives up sooner
    here = os.path.dirname(sys.executable)
    path = os.pathsep.join([here, env.get("PATH", os.defpath)])
    return {**env, **own, "PATH": path, NODE_FOLDER: str(folder / "node")}


def _wait_started(process: subprocess.Popen[bytes], log: Path) -> None:
    """Raises RayschedError with what Ray says where it does not start."""
    deadline = time.monotonic() + START_S
    while own_ray.STARTED not in log.read_bytes():
        if process.poll() is not None:
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            said = lines[-1].strip() if lines else "it said nothing"
            raise RayschedError(f"Ray did not start: {said} (see {log})")
        if time.monotonic() > deadline:
            raise RayschedError(f"Ray did not start within {START_S:.0f} s")
        time.sleep(0.1)


def main() -> int:
    """Join or leave, and say on stderr why that can't be."""
    verb, folder = sys.argv[1], Path(sys.argv[2]).expanduser()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(folder / "ray.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one that was cut off may still be at it
        try:
            join(folder, json.load(sys.stdin)) if verb == "join" else leave(folder)
        except RayschedError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
