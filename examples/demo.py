"""The main job from end to end: eight trainings share a GPU, four at a time. Run it with `make demo`.

It starts a raysched of its own, with its own Ray, in a temporary folder, submits hpo.yaml, shows the trials
while they run, and ends with a table. Nothing is left behind, also after Ctrl-C.
"""

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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.live import Live
from trials import Trial, change_line, progress_view, result_table, saving_lines

from raysched.client import Client, submit_file
from raysched.errors import RayschedError
from raysched.gpu.driver import open_driver

JOB_FILE = Path(__file__).with_name("hpo.yaml")
SIMULATED = "1xA100-80GB"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 130


class Failed(Exception):
    """The demo can't go on; the message says why."""


class System:
    """A raysched of this demo's own. Its folder, which every process of it has in its environment, tells
    them from all others on the machine."""

    def __init__(self, simulate: str | None) -> None:
        # Ray's socket paths may have 107 characters, so the folder's path has to be short.
        self.folder = Path(tempfile.mkdtemp(prefix="rsd-", dir="/tmp"))
        self._simulate = [] if simulate is None else ["--simulate", simulate]
        foreign = ("RAY_", "RAYSCHED_")
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith(foreign)} | {
            "RAYSCHED_HOME": str(self.folder / "home"),
            "RAYSCHED_CONFIG": str(self.folder / "raysched.yaml"),
            "RAY_TMPDIR": str(self.folder),
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
        }

    def up(self) -> Client:
        """Start it and return a client of it."""
        config = Path(self._environment["RAYSCHED_CONFIG"])
        config.write_text("gateway: {port: 0}\n", encoding="utf-8")  # any free one
        self._raysched("up", *self._simulate)
        access = json.loads((self.folder / "home" / "gateway.json").read_text(encoding="utf-8"))
        return Client(access["address"], access["token"])

    def down(self) -> None:
        """End all of it and delete the folder; silent where it never came up."""
        with suppress(Failed):
            self._raysched("down", "--cancel")
        deadline = time.monotonic() + 10
        while (left := self._processes()) and time.monotonic() < deadline:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        if left:
            raise Failed(f"processes {left} of the demo can't be ended; its files are in {self.folder}")
        shutil.rmtree(self.folder)

    def _raysched(self, *arguments: str) -> None:
        """Run the command line in a session of its own, so that Ctrl-C reaches it through us only."""
        command = [str(Path(sys.executable).with_name("raysched")), *arguments]
        process = subprocess.Popen(
            command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate()
        except BaseException:
            process.send_signal(signal.SIGINT)
            process.communicate()
            raise
        if process.returncode:
            raise Failed(f"`raysched {arguments[0]}` failed: {output.strip()}")

    def _processes(self) -> list[int]:
        """Every process that has the folder in its environment."""
        mark = f"RAYSCHED_HOME={self._environment['RAYSCHED_HOME']}".encode()
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with suppress(OSError):
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
        return found


@contextmanager
def running(simulate: str | None, console: Console) -> Iterator[Client]:
    """The client of a fresh system, which ends with the block, whatever happens in it."""
    system = System(simulate)
    try:
        console.print("Starting raysched and a Ray of its own ...")
        yield system.up()
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        with suppress(OSError, SystemExit):  # the terminal may be gone
            console.print("Shutting down ...")
        system.down()


def watch(client: Client, group: str, trials: list[Trial]) -> Iterator[list[Trial]]:
    """Ask for the trials again and again until all have ended; yields those whose state changed."""
    by_id = {trial.id: trial for trial in trials}
    while True:
        changed: list[Trial] = []
        for job in client.jobs(group=group):
            trial = by_id[job["id"]]
            before = trial.state
            trial.update(job)
            if trial.attempted and not trial.result:
                trial.output += b"".join(client.logs(trial.id, offset=len(trial.output)))
            if trial.state != before:
                changed.append(trial)
        yield changed
        if all(trial.over for trial in trials):
            return
        time.sleep(0.4)


def show(client: Client, group: str, trials: list[Trial], console: Console) -> None:
    """Follow the trials to their end: as a live picture on a terminal, as lines elsewhere."""
    if console.is_terminal and not console.is_dumb_terminal:
        with Live(progress_view(trials), console=console, refresh_per_second=8, transient=True) as live:
            for _ in watch(client, group, trials):
                live.update(progress_view(trials))
        return
    for changed in watch(client, group, trials):
        for trial in changed:
            if trial.state != "starting":
                console.print(change_line(trial))


def run(console: Console) -> int:
    """The whole demo; returns its exit code."""
    begun = time.monotonic()
    real = open_driver(None, socket.gethostname()).discover().gpus
    console.print(
        f"GPUs here: {len(real)} x {real[0].model}."
        if real
        else f"No GPU here: {SIMULATED} is simulated. Ray, the ledger and the trainings are real."
    )
    with running(None if real else SIMULATED, console) as client:
        jobs = submit_file(client, JOB_FILE)
        trials = [Trial(job["id"], job["display"]) for job in jobs]
        console.print(f"Submitted {JOB_FILE.name}: {len(trials)} trials, {jobs[0]['asks']} each.")
        show(client, jobs[0]["group"], trials, console)
    report(trials, max(1, len(real)), console)
    console.print(f"Nothing of it is left on this machine. The demo took {time.monotonic() - begun:.0f} s.")
    return 0 if all(trial.state == "succeeded" for trial in trials) else 1


def report(trials: list[Trial], gpus: int, console: Console) -> None:
    """The table at the end, and what sharing was worth."""
    console.print()
    console.print(result_table(trials))
    for trial in trials:
        if trial.state != "succeeded":
            console.print(f"{change_line(trial)}\n{trial.output.decode(errors='replace')}", markup=False)
    if all(trial.result for trial in trials):
        console.print()
        for line in saving_lines(trials, gpus, os.cpu_count() or 1):
            console.print(line, markup=False)
    console.print()


def interrupt(number: int, frame: FrameType | None) -> None:
    """Every signal that asks us to end takes the way of Ctrl-C."""
    raise KeyboardInterrupt


def main() -> int:
    """Run the demo; 130 if it was interrupted, 1 if it failed."""
    for number in SIGNALS:
        signal.signal(number, interrupt)
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    try:
        return run(console)
    except KeyboardInterrupt:
        console.print("Interrupted; everything that the demo started is gone.")
        return INTERRUPTED
    except (Failed, RayschedError) as error:
        console.print(f"The demo failed: {error}", markup=False)
        return 1


if __name__ == "__main__":
    sys.exit(main())
