"""One run on this machine, as the files of its folder tell it.

Nothing about a run lives in memory alone: whoever opens the folder, at any time and any number at a time,
sees the same run, so that a backend which was killed adopts its runs by looking at them.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGTERM

from raysched.backends import runner
from raysched.backends.base import EngineRefused
from raysched.backends.containers import in_container
from raysched.backends.environment import environment
from raysched.backends.leftovers import end_leftovers, leftovers
from raysched.backends.nursery import Nursery, runner_command, runner_environment
from raysched.backends.run_files import RunFiles
from raysched.backends.working_dir import make_working_dir
from raysched.core.meeting import meeting_port
from raysched.core.work import Launch, Run, Seen
from raysched.errors import RayschedError
from raysched.gpu import limits

OVER = ".over"
"""The folder, beside those of runs, with an empty file for each lease that is over."""


@dataclass(frozen=True, slots=True)
class RunnerMark:
    """A runner as `run.json` names it: process id, start time in clock ticks since `boot`, and when the
    run started in ms since 1970."""

    pid: int
    ticks: int
    boot: str
    started: int

    @property
    def alive(self) -> bool:
        """Whether this very runner runs, not a later process with its id."""
        return runner.ticks(self.pid) == self.ticks and runner.boot() == self.boot


class RunFolder(RunFiles):
    """The folder of a run of this machine. Where there is a `nursery`, it starts the runner."""

    def __init__(self, path: Path, run: Run, nursery: Nursery | None = None) -> None:
        super().__init__(path, run)
        self._nursery = nursery
        self._runner: RunnerMark | None = None
        self._mark = 0

    def start(
        self, launch: Launch, base_env: Mapping[str, str], package: Path | None, new: bool = False
    ) -> None:
        """Prepare the run and start its runner; return once it has registered. Silent where the run was
        started or stopped before, and where somebody else is just starting it.

        `package` is the packed working directory; `new` says that no process of the run can be there. Raises
        EngineRefused where the package can't be used (final) or the run can't be started now.
        """
        with self.preparing() as mine:
            if not mine or (not new and self._was_deleted()) or self._is_over(launch.lease):
                return
            _check_daemon(launch)
            if self._can_not_meet(launch):
                return
            self._prepare(launch, base_env, package)
        self._start_runner()

    @property
    def runner(self) -> RunnerMark | None:
        """Who looks after the run; None before it was started."""
        if self._runner is None and (content := self.read("run.json")):
            self._runner = RunnerMark(**content)
        return self._runner

    def seen(self) -> Seen | None:
        """What became of the run; None if it was not started. What a killed runner left behind is ended
        here, and the run is lost once that is gone."""
        if not self.begun:  # asked first: a run that starts just now has no runner that died
            return None
        # The exit is read again after the runner is found dead: it may have written it in between.
        seen = self._exit() or self._running() or self._exit() or self._bury()
        return replace(seen, mark=self.mark) if seen is not None else None

    @property
    def mark(self) -> int:
        """That of the launch by which the run was prepared; 0 where nobody knows it."""
        self._mark = self._mark or (self.read("launch.json") or {}).get("mark", 0)
        return self._mark

    def stop(self, grace: float) -> bool:
        """Begin to end the run, with `grace` seconds between SIGTERM and SIGKILL; silent where it has ended.

        A run that was not started never will be: it counts as ended by SIGTERM, and true is returned.
        """
        if not self.ask_to_stop(grace):
            return False
        # Whatever happens at the same time: a starting runner looks for stop.json after it registered.
        if (mark := self.runner) is not None:
            if mark.alive:
                runner.kill(mark.pid, SIGTERM)
            return False
        with self.locked() as mine:
            if not mine or self.begun or self._was_deleted():
                return False
            self.never_start()
            return True

    def delete(self) -> None:
        """Delete the folder, unless the run goes on or is just being started."""
        with suppress(FileNotFoundError), self.locked() as mine:
            # A runner that has written the exit has the lock until it is gone, a moment later.
            if mine or self.ended:
                self.remove()

    # ------------------------------------------------------------ start

    def _was_deleted(self) -> bool:
        """Whether the run goes on although somebody deleted its folder: it is ended then, and lost."""
        if self.prepared or not leftovers(self.run):
            return False
        end_leftovers(self.run)
        self.write_exit(None, None, "its folder was deleted")
        return True

    def _is_over(self, lease: str) -> bool:
        """Whether the lease was given back before its run started: then it never will."""
        over = (self.path.parent / OVER / lease).exists()
        if over:
            self.never_start("its lease was given back before it started")
        return over

    def _can_not_meet(self, launch: Launch) -> bool:
        """Whether the port at which the ranks of a job are to meet here is in use: then its command never
        begins, and the job's next attempt has another port, for all of its ranks."""
        port, env = meeting_port(self.run.job, self.run.attempt), dict(launch.env)
        meet = env.get("RAYSCHED_NUM_NODES", "1") != "1" and env.get("MASTER_PORT") == str(port)
        in_use = self.run.rank == 0 and meet and _in_use(port)
        if in_use:
            self.write("later.json", {})
            reason = f"port {port}, at which its ranks were to meet, is in use on this node"
            self.write_exit(runner.ENGINE_FAILED, None, reason)
        return in_use

    def _prepare(self, launch: Launch, base_env: Mapping[str, str], package: Path | None) -> None:
        if self.prepared:
            return
        work = self.path / "work"
        make_working_dir(work, package)
        content: dict[str, object] = {"mark": launch.mark}
        if launch.image is not None:
            content.update(in_container(launch, base_env, work))
        else:
            env = environment(launch, base_env)
            content.update(entrypoint=launch.entrypoint, env=env, cwd=str(work))
        if launch.limited:
            content["group"] = str(_group(launch))
        self.write("launch.json", content)

    def _start_runner(self) -> None:
        started = self._nursery.start(str(self.path)) if self._nursery is not None else None
        code, told = started or self._run_runner()
        if code != 0:
            said = told.decode("utf-8", "replace").strip().removeprefix("raysched: ")
            raise EngineRefused(said or f"the runner ended with code {code}")

    def _run_runner(self) -> tuple[int, bytes]:
        done = subprocess.run(
            [*runner_command(), str(self.path)],
            env=runner_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        return done.returncode, done.stderr

    # ------------------------------------------------------------ observe

    def _running(self) -> Seen | None:
        mark = self.runner
        return Seen(self.run, "running", mark.started) if mark is not None and mark.alive else None

    def _exit(self) -> Seen | None:
        content = self.read("exit.json")
        if content is None:
            return None
        code: int | None = content.get("code")
        state = "lost" if code is None else "exited"
        later = code == runner.ENGINE_FAILED and runner.exists(str(self.path), "later.json")
        if later:
            state = "taken"
        reason = content.get("reason", f"{self.path / 'exit.json'} is damaged")
        return Seen(self.run, state, content.get("started"), content.get("ended"), code, reason, not later)

    def _bury(self) -> Seen | None:
        """The end of a run whose runner is gone: end what is left, then write down that it is lost."""
        if not self.begun:  # any more: its folder was deleted
            return None
        mark = self.runner
        started = mark.started if mark else None
        rebooted = mark is None or mark.boot != runner.boot()  # only a power cut damages run.json
        reason = "the machine was restarted" if rebooted else "its runner was killed"
        if not end_leftovers(self.run) or not self._end_container():
            return Seen(self.run, "running", started, reason=f"{reason}; what is left of it is being ended")
        with self.locked() as mine:
            if not mine:  # somebody else is just writing it down
                return self._exit() or Seen(self.run, "running", started, reason=reason)
            if (written := self._exit()) is not None:  # and by now has
                return written
            with suppress(OSError):
                self.write_exit(None, started, reason)
        return self._exit() or Seen(self.run, "lost", started, runner.now(), reason=reason)

    def _end_container(self) -> bool:
        """Whether the container of a run without a runner is gone, and it is ended if not."""
        launch = self.read("launch.json") or {}
        if "container" not in launch:
            return True
        # Looked at again afterwards: a process that the engine had just begun to start was not seen before.
        return runner.end_container(launch["container"], launch["env"]) and end_leftovers(self.run)


def _group(launch: Launch) -> Path:
    """The control group in which the kernel holds a launch to its memory. Raises EngineRefused."""
    try:
        return limits.hold(launch.lease, {slice.gpu: slice.memory for slice in launch.place.slices})
    except RayschedError as error:
        raise EngineRefused(str(error)) from error


def _in_use(port: int) -> bool:
    """Whether another program listens at a port of this machine."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False


def _check_daemon(launch: Launch) -> None:
    """A CUDA program that does not find its MPS daemon runs without, and nothing would say so. Raises
    EngineRefused."""
    env = dict(launch.env)
    pipe = env.get("CUDA_MPS_PIPE_DIRECTORY", "")
    if env.get("RAYSCHED_SHARING") == "mps" and not os.path.exists(os.path.join(pipe, "control")):
        raise EngineRefused(f"the MPS daemon of its GPU is gone: nothing listens in {pipe}")
