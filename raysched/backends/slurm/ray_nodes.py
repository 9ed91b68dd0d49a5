"""Ray inside a Slurm job: `python -I -S ray_nodes.py RUN_FOLDER`, under the runner on the first node.

It starts a head there and, by srun, a worker on each other node, waits until all are there, runs the command
as their driver and ends everything. It stands beside local_ray.py, batch.py and runner.py. With `ray: join`
all are workers of raysched's own Ray (`ENTRANCE`), labelled so that the ledger knows them, and leave it
before the job's time is over.

The first node's program holds the stdin of each `ray_nodes.py --worker RUN_FOLDER`, which ends once that is
closed.
"""

from __future__ import annotations

import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any
if TYPE_CHECKING or __package__:
    from raysched.backends import runner
    from raysched.backends.slurm import batch, local_ray
else:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import batch
    import local_ray
    import runner

END_S = 20.0
"""How long the workers may take to end once the command has."""
LOOK_S = 1.0
READY = b"raysched: ready\n"
ENTRANCE = "ray.json"
"""The file beside the run folders that says how to join raysched's own Ray: `address`, `token` (empty: it
asks for none), and `simulate`, the model of made-up GPUs."""
LEAVE_S = 60.0
"""When its time is over in so many seconds, nothing new starts on a node that joined; in half of that it
leaves if nothing runs there, in a quarter in any case. Of a short time it is a quarter (`core/lent.py`)."""
HEAD = ("--head", "--port=0", "--include-dashboard=false")


class ToldToEnd(Exception):
    """The job is to end before its command has begun."""


# ---------------------------------------------------------------- the first node


def main(folder: str) -> int:
    """Run the command of the run in `folder` on a Ray of its own, or on the nodes that join raysched's; its
    exit code, or 1 where Ray can't be started on all nodes."""
    local_ray.adopt_orphans()
    launch = runner.read_json(folder, "launch.json")
    joins = launch["ray"] == "join"
    driver = Driver(folder, time.monotonic() + launch["limit"] / 1000 if joins else None)
    driver.take_signals()
    temporary = local_ray.temporary_folder(folder)
    workers = None
    try:
        head = entrance(folder) if joins else {"address": "", "token": secrets.token_hex(32)}
        env = local_ray.environment(batch.environment(os.environ, launch), head["token"])
        role = local_ray.joining(head) if joins else [*HEAD, *local_ray.client_port()]
        address = local_ray.start(
            [*role, *local_ray.options(os.environ)], local_ray.unmarked(env) if joins else env, temporary
        )
        if launch["nodes"] > 1:
            runner.write_json(folder, "ray.json", {**head, "address": address})
            workers = start_workers(folder, launch["nodes"] - 1)
            wait_ready(workers, launch["nodes"] - 1)
        return driver.run(launch, {**env, "RAY_ADDRESS": address})
    except ToldToEnd:
        return 128 + signal.SIGTERM
    except local_ray.NoRay as error:
        runner.complain(str(error))
        return 1
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if workers is not None:
            dismiss(workers)
        if joins:
            local_ray.stay(folder)
        if workers is not None:
            await_end(workers, folder)
        local_ray.end()
        shutil.rmtree(temporary, ignore_errors=True)


def entrance(folder: str) -> dict[str, Any]:
    """How the run in `folder` joins raysched's own Ray. Raises NoRay."""
    try:
        return runner.read_json(os.path.dirname(folder), ENTRANCE)
    except (OSError, ValueError) as error:
        raise local_ray.NoRay(f"raysched's Ray can't be joined: {runner.words(error)}") from None


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
            if left < leave / 4 or (left < leave / 2 and not local_ray.tenants()):
                process.terminate()
                process.wait()
                return 0
            if not local_ray.runs():
                process.terminate()
                process.wait()
                raise local_ray.NoRay(f"raysched's Ray is gone, or has put {local_ray.here()} out")


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
            raise local_ray.NoRay(
                f"Ray started on {there + 1} of {count + 1} nodes: the output above says why"
            )
        there += line == READY


def dismiss(workers: subprocess.Popen[bytes]) -> None:
    """Have all workers end."""
    assert workers.stdin is not None
    with suppress(OSError):
        workers.stdin.close()


def await_end(workers: subprocess.Popen[bytes], folder: str) -> None:
    """Return when all workers have ended."""
    try:
        workers.wait(END_S + local_ray.patience(folder))
    except subprocess.TimeoutExpired:
        workers.kill()
        workers.wait()


# ---------------------------------------------------------------- another node


def worker(folder: str) -> int:
    """Join the Ray of the run's first node, until that program closes the stdin or Ray ends."""
    local_ray.adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    launch, head = runner.read_json(folder, "launch.json"), runner.read_json(folder, "ray.json")
    env = local_ray.environment(batch.environment(os.environ, launch), head["token"])
    temporary = local_ray.temporary_folder(folder)
    joins = launch["ray"] == "join"
    role = local_ray.joining(head) if joins else [f"--address={head['address']}"]
    try:
        local_ray.start(
            [*role, *local_ray.options(os.environ)], local_ray.unmarked(env) if joins else env, temporary
        )
        os.write(1, READY)
        while local_ray.runs():
            if select.select([0], [], [], LOOK_S)[0] and not os.read(0, 1024):
                if joins:
                    local_ray.stay(folder)
                return 0
        runner.complain(f"Ray on {local_ray.here()} has ended")
    except local_ray.NoRay as error:
        runner.complain(str(error))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        local_ray.end()
        shutil.rmtree(temporary, ignore_errors=True)
    return 1


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        sys.exit(worker(os.path.abspath(sys.argv[2])))
    sys.exit(main(os.path.abspath(sys.argv[1])))
