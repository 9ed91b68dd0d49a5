"""What runs inside a Slurm job: `python -I -S batch.py RUN_FOLDER`, on the first of its nodes.

It stands alone beside runner.py, and does what that does, but stays where it was started, so that Slurm
counts the work and can signal it. Slurm may start a script again that runs or ran already; who comes second
ends at once, so that a command runs once. `launch.json` has more fields here: `nodes`; `inherit`, the
beginnings of names that the command gets as Slurm set them; `ranks`, the variables of each rank, where `@2@`
stands for the node of rank 2; `ray`; and `watch`, where nobody can signal the script, so that it looks for
`stop.json` itself.

With several nodes `batch.py --ranks RUN_FOLDER` has srun start `batch.py --rank RUN_FOLDER` on each; with
`ray` the command is the driver of a Ray on all of them (ray_nodes.py).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
if TYPE_CHECKING or __package__:
    from raysched.backends import runner
else:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import runner

LOCK_S = 20.0
"""Seconds for which whoever prepared the run may still hold its lock."""
BEGAN = "began.json"
"""The file with the number of the Slurm job that took the run."""
FAILED = "failed.json"
"""The file with the exit code of the first rank that failed."""
WATCH_S = 1.0
"""Time between two looks for `stop.json`."""
FORWARDED = {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGHUP, signal.SIGINT}


def main(folder: str) -> int:
    """Run the command to its end, and write down how it ended; 0 too where it was started before."""
    if not taken(folder) or runner.begun(folder):
        return 0
    try:
        runner.reserve_exit(folder)
        runner.write_json(folder, BEGAN, {"job": os.environ.get("SLURM_JOB_ID", "")})
        command = prepared(folder)
        output = runner.open_output(folder)
    except (OSError, ValueError, KeyError) as error:
        runner.complain(f"can't start the run in {folder!r}: {runner.words(error)}")
        return 1
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED | {signal.SIGCHLD})
    ctypes.CDLL(None).prctl(runner.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    pid = os.fork()
    if pid == 0:
        runner.become_runner()
        looked_after = runner.Runner(folder, command, output)
        looked_after.register()
        looked_after.run()
        os._exit(0)
    return guard(folder, pid, command.watch)


def taken(folder: str) -> bool:
    """Take the run's lock for as long as this process lives; false where another one has it to run it."""
    deadline = time.monotonic() + LOCK_S
    while runner.lock(folder) is None:
        if runner.begun(folder) or time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


class Command(runner.Command):
    """The command of a run; `watch` as in launch.json."""

    watch = False


def prepared(folder: str) -> Command:
    """The command with what Slurm set for it; for several nodes the one that starts it on each."""
    launch = runner.read_json(folder, "launch.json")
    command = Command(folder)
    command.env = environment(os.environ, launch)
    command.watch = bool(launch.get("watch"))
    python, here = [sys.executable, "-I", "-S", "-X", "utf8"], os.path.abspath(__file__)
    if launch.get("ray"):
        program = os.path.join(os.path.dirname(here), "ray_nodes.py")
        command.entrypoint, command.group_only = [*python, program, folder], True
    elif launch["nodes"] > 1:
        command.entrypoint = [*python, here, "--ranks", folder]
    if launch.get("ray") or launch["nodes"] > 1:
        command.env = {**os.environ, "RAYSCHED_RUN": launch["env"]["RAYSCHED_RUN"]}
    return command


def cores(slurm: Mapping[str, str]) -> list[str]:
    """What srun has to be told so that a task gets all cores that the job has on its node: it heeds what was
    asked of sbatch no more."""
    count = slurm.get("SLURM_CPUS_PER_TASK", "")
    return [f"--cpus-per-task={count}"] if count else []


def environment(slurm: Mapping[str, str], launch: Mapping[str, object]) -> dict[str, str]:
    """The variables of the launch over those of Slurm's that are inherited."""
    inherit, env = launch["inherit"], launch["env"]
    assert isinstance(inherit, list)
    assert isinstance(env, dict)
    return {**{name: value for name, value in slurm.items() if name.startswith(tuple(inherit))}, **env}


def ranks(folder: str) -> int:
    """Run the command once on each node, to the end; the exit code is that of the first one that failed by
    itself. srun ends the others for it, and would tell theirs."""
    import subprocess  # takes long to import, and few need it

    nodes = runner.read_json(folder, "launch.json")["nodes"]
    me = [sys.executable, "-I", "-S", "-X", "utf8", os.path.abspath(__file__), "--rank", folder]
    each = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    command = ["srun", *each, *cores(os.environ), "--kill-on-bad-exit=1", "--export=ALL", *me]
    with subprocess.Popen(command) as srun:
        for number in FORWARDED:  # the runner tells srun itself that the run is to end
            signal.signal(number, lambda got, _: None if got == signal.SIGTERM else srun.send_signal(got))
        code = srun.wait()
    with suppress(FileNotFoundError):
        code = runner.read_json(folder, FAILED)["code"]
    return code if code >= 0 else 128 - code


def rank(folder: str) -> int:
    """Run the command on one of the nodes of a job with several; its exit code, which is written down where
    it is the first one that is not 0. Slurm signals the command itself."""
    told: list[int] = []
    for number in FORWARDED:
        signal.signal(number, lambda got, _: told.append(got))
    pid = os.fork()
    if pid == 0:
        os._exit(become(folder))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = code if code >= 0 else 128 - code
    if code != 0 and signal.SIGTERM not in told:
        with suppress(OSError), open(os.path.join(folder, FAILED), "x", opener=runner.private) as file:
            file.write(f'{{"code": {code}}}')
    return code


def become(folder: str) -> int:
    """Become the command; the exit code where that can't be."""
    import re  # takes long to import, and few need it

    launch = runner.read_json(folder, "launch.json")
    command = runner.Command(folder)
    here = os.environ["SLURM_PROCID"]
    names = hosts(os.environ.get("SLURM_JOB_NODELIST", ""))
    command.env = environment(os.environ, launch)
    for name, value in launch["ranks"][int(here)].items():
        command.env[name] = re.sub("@([0-9]+)@", lambda found: names[int(found[1])], value)
    runner.forget_signals()
    line = command.entrypoint
    arguments = ["/bin/sh", "-c", "--", line] if isinstance(line, str) else line
    try:
        os.chdir(command.cwd)
        os.execvpe(arguments[0], arguments, command.env)
    except FileNotFoundError:
        runner.complain(f"can't run {arguments[0]!r}: there is no such command")
        return 127
    except (OSError, ValueError) as error:
        runner.complain(f"can't run {arguments[0]!r}: {runner.words(error)}")
        return 126


def hosts(nodes: str) -> list[str]:
    """The names that a node list of Slurm's stands for, as Slurm says."""
    import subprocess

    command = ["scontrol", "show", "hostnames", nodes]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()


def guard(folder: str, pid: int, watch: bool) -> int:
    """Wait for the runner, pass on what Slurm signals; where it was killed, end what is left of the run."""
    wishes = Wishes(folder)
    while True:
        number = wishes.next() if watch else signal.sigwait(FORWARDED | {signal.SIGCHLD})
        if number == signal.SIGCHLD:
            if reaped(pid):
                break
        elif number == signal.SIGTERM:
            runner.kill(pid, signal.SIGTERM)
        else:
            for child in children(pid):
                runner.kill(child, number)
    if not runner.exists(folder, "exit.json"):
        began = runner.exists(folder, "run.json")
        started = runner.read_json(folder, "run.json")["started"] if began else None
        end_all()
        killed = {"code": None, "started": started, "ended": runner.now(), "reason": "its runner was killed"}
        runner.write_exit(folder, killed)
    return 0


class Wishes:
    """What the guard of the run in `folder` waits for, where nobody can signal it: its signals, and a new
    `stop.json`, which counts as SIGTERM."""

    def __init__(self, folder: str) -> None:
        self.path = os.path.join(folder, "stop.json")
        self.seen = 0

    def next(self) -> int:
        """The next one, once it is there."""
        while True:
            found = signal.sigtimedwait(FORWARDED | {signal.SIGCHLD}, WATCH_S)
            if found is not None:
                return found.si_signo
            with suppress(OSError):
                written = os.stat(self.path).st_mtime_ns
                if written != self.seen:
                    self.seen = written
                    return signal.SIGTERM


def reaped(pid: int) -> bool:
    """Take note of every child that ended; whether the runner is among them."""
    found = False
    while True:
        try:
            gone, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        if gone == 0:
            return found
        found = found or gone == pid


def children(pid: int) -> list[int]:
    """The processes that a process started itself."""
    stats = ((each, runner.process(each)) for each in runner.processes())
    return [each for each, stat in stats if stat is not None and stat[1] == pid]


def end_all() -> None:
    """kill -9 everything below this process, and return once it is gone."""
    while left := {each for each in runner.descendants({os.getpid()}) if runner.ticks(each) is not None}:
        for each in left:
            runner.kill(each, signal.SIGKILL)
        reaped(0)
        time.sleep(0.02)


if __name__ == "__main__":
    if sys.argv[1] in ("--ranks", "--rank"):
        sys.exit({"--ranks": ranks, "--rank": rank}[sys.argv[1]](os.path.abspath(sys.argv[2])))
    sys.exit(main(os.path.abspath(sys.argv[1])))
