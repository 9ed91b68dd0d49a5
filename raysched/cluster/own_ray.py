"""The Ray that `up` starts where none is given: a session of its own, which ends whole and alone."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from raysched.backends import runner
from raysched.cluster.record import OwnRay
from raysched.errors import RayschedError, StorageError, Unreachable

MARK = "RAYSCHED_UP"
"""The variable that all processes of a Ray of ours inherit, and no job does."""
PORTS = {
    "port": 6379,
    "dashboard-port": 8265,
    "ray-client-server-port": 10001,
    "dashboard-agent-listen-port": 52365,
}
"""Ray's own choices, taken where all are free."""
STARTED = b"Ray runtime started"
START_S = 120.0
"""How long Ray may take to start on a busy machine."""
STOP_S = 20.0
"""How long Ray may take to end by itself before it is killed."""
KILL_S = 10.0


class RayLost(Unreachable):
    """Ray ended while it was starting, or just after, as where somebody was quicker at one of its ports: to
    be tried again at others."""

    @property
    def code(self) -> str:
        return "unreachable"


@dataclass(frozen=True, slots=True)
class Starting:
    """A Ray that was just started; `output` is the file with what it says."""

    own: OwnRay
    address: str
    dashboard: str
    output: Path
    process: subprocess.Popen[bytes]


def spawn(folder: Path, gpus: int | None, environment: Mapping[str, str], *, usual: bool = True) -> Starting:
    """Begin to start Ray on this machine, with `gpus` made-up GPUs or, for None, those that Ray finds, at its
    usual ports where they are free and wanted. It goes on when this process ends."""
    mark = secrets.token_hex(8)
    ports = _free_ports(usual)
    output = folder / "ray.log"
    command = [_python(folder), "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += ["--dashboard-host=127.0.0.1", "--log-style=record", "--disable-usage-stats"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    command += [] if gpus is None else [f"--num-gpus={gpus}"]
    env = _environment(environment, mark, hide=gpus is not None)
    with output.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    own = OwnRay(process.pid, runner.ticks(process.pid) or 0, runner.boot(), mark)
    dashboard = f"http://127.0.0.1:{ports['dashboard-port']}"
    return Starting(own, f"127.0.0.1:{ports['port']}", dashboard, output, process)


def wait_started(starting: Starting) -> None:
    """Return once Ray runs. Raises RayLost with what Ray said, and Unreachable where it takes too long."""
    deadline = time.monotonic() + START_S
    while STARTED not in starting.output.read_bytes():
        _check(starting)
        if time.monotonic() > deadline:
            raise Unreachable(f"Ray did not start in {START_S:.0f} s: see {starting.output}")
        time.sleep(0.1)


def _check(starting: Starting) -> None:
    """Raises RayLost for a Ray that will not run."""
    if _lost_store(starting.own):
        raise RayLost(f"Ray did not start: its GCS ended (see {starting.output})")
    if starting.process.poll() is not None:
        raise RayLost(f"Ray did not start: {_last_line(starting.output)} (see {starting.output})")


def _lost_store(own: OwnRay) -> bool:
    """Whether Ray's GCS is dead. If another Ray took its port, `ray start` may use that one's GCS, and wait
    for it in vain when that goes, without a look at its own child."""
    stats = {pid: runner.process(pid) for pid in runner.processes()}
    dead = [pid for pid, stat in stats.items() if stat is not None and stat[:2] == ("Z", own.pid)]
    return any(_name(pid) == "gcs_server" for pid in dead)


def _name(pid: int) -> str:
    """The name of a process, which it keeps when it is dead; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def alive(own: OwnRay) -> bool:
    """Whether this very Ray's first process runs, not a later process with its id."""
    return runner.ticks(own.pid) == own.ticks and runner.boot() == own.boot


def processes(own: OwnRay) -> list[int]:
    """Whatever is left of that Ray: its session, and what has its mark. Nothing after a reboot."""
    if runner.boot() != own.boot:
        return []
    mark = f"{MARK}={own.mark}".encode()
    return [pid for pid in runner.processes() if _belongs(pid, own, mark)]


def stop(own: OwnRay) -> None:
    """End that Ray and return when all of it is gone; silent where it is. Raises RayschedError if something
    can't be ended."""
    if alive(own):
        runner.kill(own.pid, signal.SIGTERM)
        _wait_gone(own, STOP_S)
    for pid in processes(own):
        runner.kill(pid, signal.SIGKILL)
    if left := _wait_gone(own, KILL_S):
        raise RayschedError(
            f"processes {left} of Ray can't be ended: end them by hand, or restart the machine"
        )
    shutil.rmtree(_scratch(own.mark), ignore_errors=True)


def _scratch(mark: str) -> Path:
    """The folder for temporary files of that Ray's processes, some of which leave theirs behind."""
    return Path(tempfile.gettempdir()) / f"raysched-{mark}"


def _wait_gone(own: OwnRay, seconds: float) -> list[int]:
    """What is left after that time; nothing as soon as nothing is."""
    deadline = time.monotonic() + seconds
    while (left := processes(own)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _belongs(pid: int, own: OwnRay, mark: bytes) -> bool:
    """A session keeps its number as long as it has a member, so one that is older than its leader is not
    ours; a child of Ray that began its own session still has the mark."""
    started = runner.ticks(pid)
    if started is None or started < own.ticks:
        return False
    with suppress(OSError):
        if os.getsid(pid) == own.pid:
            return True
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False


# ------------------------------------------------------------ what it is started with


def _python(folder: Path) -> str:
    """This interpreter, by a path without a space: Ray splits the command lines of its workers there."""
    if " " not in sys.executable:
        return sys.executable
    link = folder / "python"
    link.unlink(missing_ok=True)
    link.symlink_to(sys.prefix)
    return str(link / "bin" / Path(sys.executable).name)


def _environment(base: Mapping[str, str], mark: str, hide: bool) -> dict[str, str]:
    """The variables of Ray: `python` is ours for scripts of `ray job submit`. The real GPUs' variable is left
    out where the GPUs are made up, as Ray would count what it names."""
    unwanted = {"RAY_ADDRESS", "RAYSCHED_LEASE", "RAYSCHED_RUN"} | (
        {"CUDA_VISIBLE_DEVICES"} if hide else set()
    )
    env = {name: value for name, value in base.items() if name not in unwanted}
    here = os.path.dirname(sys.executable)
    env["PATH"] = os.pathsep.join([here, env.get("PATH", os.defpath)])
    env[MARK] = mark
    env.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    env.setdefault("RAY_TMPDIR", tempfile.gettempdir())  # where Ray's own commands look for it
    scratch = _scratch(mark)
    scratch.mkdir(mode=0o700)
    env["TMPDIR"] = str(scratch)
    # Ray listens on every interface, and who may speak to it may run what they like.
    if env.setdefault("RAY_AUTH_MODE", "token").lower() == "token":
        ensure_token(env)
    return env


def ensure_token(env: Mapping[str, str]) -> None:
    """Make Ray's token where there is none, in the file where Ray's own commands look for it, readable by its
    owner only. Raises StorageError."""
    if has_token(env):
        return
    path = token_path(env)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        with suppress(FileExistsError):  # somebody else was quicker
            os.link(aside, path)
    except OSError as error:
        raise StorageError(f"Ray's token can't be written to {path}: {runner.words(error)}") from None
    finally:
        aside.unlink(missing_ok=True)


def token_path(env: Mapping[str, str]) -> Path:
    """The file with the token of this user's Ray clusters."""
    given = env.get("RAY_AUTH_TOKEN_PATH")
    return Path(given).expanduser() if given else Path.home() / ".ray" / "auth_token"


def has_token(env: Mapping[str, str]) -> bool:
    """Whether there is a token with which Ray's clients can prove that they are this user's."""
    return bool(env.get("RAY_AUTH_TOKEN")) or token_path(env).exists()


def local_address() -> str | None:
    """The HOST:PORT of the Ray that was last started on this machine, as Ray's own commands find it."""
    try:
        return _address_file().read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def forget_address(address: str) -> None:
    """Take a Ray of ours that is gone out of that place. Ray writes the node's address there, whichever name
    it is reached by, so the port tells."""
    named = local_address()
    if named is not None and named.rpartition(":")[2] == address.rpartition(":")[2]:
        _address_file().unlink(missing_ok=True)


def _address_file() -> Path:
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return Path(folder) / "ray" / "ray_current_cluster"


def _free_ports(usual: bool) -> dict[str, int]:
    """A free port for each of `PORTS`: the usual ones if none is taken. One that is taken tells of another
    Ray, which may be about to take the others, and a Ray dies of that even after it has started."""
    with ExitStack() as held:
        if usual:
            with suppress(OSError):
                return {name: _hold(port, held) for name, port in PORTS.items()}
        return {name: _hold(0, held) for name in PORTS}


def _hold(port: int, held: ExitStack) -> int:
    """Keep `port` from others; 0 is one that the system gives: those lie above the ports of Ray's workers.
    Raises OSError where it is taken."""
    probe = held.enter_context(socket.socket())
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(("", port))
    return probe.getsockname()[1]


def _last_line(output: Path) -> str:
    lines = output.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"
