"""Runs the command of one run, outside of whatever started it: `python -I -S runner.py RUN_FOLDER`.

It stands alone on the standard library, so that the file can be sent to another machine, and it imports
little, so that it starts in a few hundredths of a second. Linux only. The files of a run folder:

    lock         locked (flock) by whoever prepares the run, then by its runner for as long as it lives
    launch.json  {"entrypoint": str | [str], "env": {}, "cwd": str, "mark": int}; there once the run is
                 prepared. In a container also "container": {"image": str, "there", "pull", "find", "remove":
                 [str]}, what the engine is asked beside the entrypoint, which is the engine's command then.
                 With a limit of the kernel "group": str, the control group that the command joins
    run.json     {"pid", "ticks", "boot", "started"}: the runner; there before the command starts
    stop.json    {"grace": seconds}: somebody wants the run to end; the runner gets SIGTERM after it
    exit.json    {"code", "started", "ended", "reason"}: the run has ended and its processes are gone;
                 the code is null where nobody knows it, because the runner itself was killed
    later.json   its image, or the port of its job, could not be had for now: the command never began
    output.log   what the command wrote to stdout and stderr, in order
    work/        its working directory

`started` and `ended` are milliseconds since 1970, `ticks` and `boot` the runner's start time in clock
ticks since that boot of the machine: together they tell it from a later process with the same id.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import signal
import sys
import time
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL where nobody said how many."""

LEFTOVER_GRACE = 2.0
"""The same for what the command leaves behind when it ends by itself."""

LOOK_AGAIN = 0.1
"""Seconds between two looks at a tree that is being ended: processes that are no child of the runner end
without a signal to it."""

RETRY = 1.0
"""Seconds until the exit is written again, or processes are looked for, when the system said no."""

EXIT_ROOM = 1024
"""Bytes that are set aside for the exit, so that a disk filled by the job doesn't lose its exit code."""

ENGINE_FAILED = 125
"""The exit code of docker, podman and nerdctl where they could not run a container at all."""

ENGINE_ANSWERS = 30.0
"""Seconds that an engine may take to find or to end a container, before it is asked again."""

LINE_LIMIT = 2048
"""The longest line of the output that is looked at, in bytes."""

STOPPED_EARLY = (128 + signal.SIGTERM, "stopped before it started")
"""Exit code and reason of a run that was stopped before its command began."""

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
AWAITED = {signal.SIGCHLD, signal.SIGTERM}


class Command:
    """What is to be run, as `launch.json` has it."""

    def __init__(self, folder: str) -> None:
        launch = read_json(folder, "launch.json")
        self.folder = folder
        self.entrypoint: str | list[str] = launch["entrypoint"]
        self.env: dict[str, str] = launch["env"]
        self.cwd: str = launch["cwd"]
        self.container: dict[str, Any] | None = launch.get("container")
        self.group: str | None = launch.get("group")
        # Whether only the command itself is told that the run is to end, and passes that on.
        self.group_only = self.container is not None

    def become(self, parent: int) -> None:
        """Turn this process into the command, as long as `parent` is there; where that can't be, say why in
        its output and end as a shell does, with 127 if there is no such command and 126 otherwise."""
        # A string is one argument of an explicit shell: no other shell, and no quoting, touches it.
        line = self.entrypoint
        arguments = ["/bin/sh", "-c", "--", line] if isinstance(line, str) else line
        self._join()
        try:
            os.chdir(self.cwd)
            if self.container is not None:
                self._bring_image(self.container, parent)
            os.execvpe(arguments[0], arguments, self.env)
        except FileNotFoundError:
            complain(f"can't run {arguments[0]!r}: there is no such command, or its interpreter is missing")
            os._exit(127)
        except (OSError, ValueError) as error:
            complain(f"can't run {arguments[0]!r}: {words(error)}")

    def _join(self) -> None:
        """Go into the control group that limits this run, or do not run: outside of it nothing would."""
        if self.group is not None:
            try:
                with open(os.path.join(self.group, "cgroup.procs"), "w") as procs:
                    procs.write("0")
            except OSError as error:
                complain(f"nothing would hold this to its share of the GPU: {self.group}: {words(error)}")
                os._exit(126)

    def _bring_image(self, container: dict[str, Any], parent: int) -> None:
        """See that the engine has the image; where it can't be had, say so and end. This takes long, and
        until it is done nothing tells whose process this is: so it ends with its runner."""
        import subprocess

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(ENGINE_FAILED)
        if not subprocess.run(container["there"], env=self.env, capture_output=True, check=False).returncode:
            return
        if status := subprocess.run(container["pull"], env=self.env, check=False).returncode:
            complain(f"the image {container['image']} can't be pulled: {last_line(self.folder)}")
            if status == os.EX_TEMPFAIL:
                write_json(self.folder, "later.json", {})
            os._exit(ENGINE_FAILED)


class Child:
    """A process, leader of a session, that becomes a command once it may begin, or never if its parent ends
    first. Without a `command`: that of a folder not known yet. The descriptors `closed` are not for it."""

    def __init__(self, command: Command | None = None, closed: tuple[int, ...] = ()) -> None:
        self.parent = os.getpid()
        self.mark = {"pid": self.parent, "ticks": ticks(self.parent), "boot": boot()}  # as in run.json
        told, self._line = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                for descriptor in (*closed, self._line):
                    os.close(descriptor)
                self._wait(told, command)
            finally:
                os._exit(126)
        os.close(told)

    def _wait(self, told: int, command: Command | None) -> None:
        os.setsid()
        forget_signals()
        folder, _, begin = os.read(told, 1 << 16).partition(b"\0")
        if not folder:
            return
        command = command or Command(os.fsdecode(folder))
        output = open_output(command.folder)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if (begin or os.read(told, 1)) == b"+":
            os.close(told)
            command.become(self.parent)

    def prepare(self, folder: str) -> None:
        """Tell it the folder, to be ready to begin."""
        self._tell(os.fsencode(folder) + b"\0")

    def begin(self, now: bool) -> None:
        """Let the command begin, or else end at once without having begun."""
        if now:
            self._tell(b"+")
        os.close(self._line)

    def _tell(self, text: bytes) -> None:
        with suppress(BrokenPipeError):  # somebody has killed it
            os.write(self._line, text)


class Runner:
    """The process that looks after one run, from the start of its command until the last process of it is
    gone. Orphans of the run, those that called setsid included, become its children.

    What runs in a container may be no descendant of it: the engine is asked to end that.
    """

    def __init__(self, folder: str, command: Command, output: int, child: Child | None = None) -> None:
        self.folder = folder
        self.command = command
        self.output = output
        self.child = child or Child(command)
        self.child.prepare(folder)
        self.launched = False
        self.started = now()
        self.code: int | None = None
        self.reason = ""
        self.deadline: float | None = None

    def register(self) -> None:
        """Write down who this runner is. From here on the run has been started and never is again."""
        write_json(self.folder, "run.json", {**self.child.mark, "started": self.started})
        sync(self.folder)

    def run(self) -> None:
        """Run the command to its end, tell whoever waits that it has started, write the exit down."""
        if exists(self.folder, "stop.json"):
            self.code, self.reason = STOPPED_EARLY
        else:
            self.launched = True
        self.child.begin(self.launched)
        answer(b"+")
        for descriptor in (1, 2):
            os.dup2(self.output, descriptor)
        while self.code is None and self.deadline is None:
            self._wait(None)
        if self.deadline is None:
            self.deadline = time.monotonic() + LEFTOVER_GRACE
        self._end_processes()
        while self.launched and not self._end_container():
            self._wait(RETRY)
        self._write_exit()

    def _wait(self, seconds: float | None) -> None:
        """Until a child ends or a stop is asked for, at most `seconds`."""
        event = signal.sigwaitinfo(AWAITED) if seconds is None else signal.sigtimedwait(AWAITED, seconds)
        if event is not None and event.si_signo == signal.SIGTERM:
            self._stop()
        self._reap()

    def _stop(self) -> None:
        """Somebody wants the run to end. Asking again can shorten the grace and never lengthens it."""
        grace, reason = GRACE, "its runner was told to end"
        with suppress(OSError, ValueError):
            grace, reason = float(read_json(self.folder, "stop.json")["grace"]), "stopped"
        deadline = time.monotonic() + grace
        self.deadline = deadline if self.deadline is None else min(self.deadline, deadline)
        if self.code is None:
            self.reason = reason

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.child.pid and self.launched:
                code = os.waitstatus_to_exitcode(status)
                self.code = code if code >= 0 else 128 - code
                if self.code == ENGINE_FAILED and self.command.container and not self.reason:
                    self.reason = last_line(self.folder)

    def _end_processes(self) -> None:
        """SIGTERM to every process of the run, SIGKILL to what is left at the deadline.

        What starts after the SIGTERM is left alone until then: it may be saving the job's work. With a
        container the engine's command alone gets it, and passes it on: once, and to the first process there,
        as anybody who builds an image expects.
        """
        self._reap()
        for pid in self._told():
            kill(pid, signal.SIGTERM)
        while left := self._processes():
            if time.monotonic() >= (self.deadline or 0):
                self._end_container()
                for pid in left:
                    kill(pid, signal.SIGKILL)
            self._wait(LOOK_AGAIN)

    def _told(self) -> set[int]:
        """Those who are told that the run is to end."""
        found = self._processes()
        return {pid for pid in found if group(pid) == self.child.pid} if self.command.group_only else found

    def _processes(self) -> set[int]:
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return set()  # orphans become its children, so nothing is left: no need to look at all of /proc
        while True:
            try:
                return descendants({os.getpid()})
            except OSError:
                time.sleep(RETRY)  # the machine is out of files or memory: the run still has to end

    def _end_container(self) -> bool:
        """Whether the container is gone, if there is to be one; it is ended at once if not."""
        container = self.command.container
        return container is None or end_container(container, self.command.env, forget_signals)

    def _write_exit(self) -> None:
        exit = {"code": self.code, "started": self.started, "ended": now(), "reason": self.reason}
        while True:
            try:
                return write_exit(self.folder, exit)
            except FileNotFoundError:
                return None  # the run folder was deleted: nobody asks any more
            except OSError:
                time.sleep(RETRY)


# ---------------------------------------------------------------- containers


def end_container(
    container: Mapping[str, Any], env: Mapping[str, str], before: Callable[[], None] | None = None
) -> bool:
    """End the container of a run at once, if it is there; false where the engine does not say that it is
    gone, so that this has to be done again. `before` is called in each process that is started."""
    try:
        if found := _ask(container["find"], env, before):
            _ask(container["remove"], env, before)
            found = _ask(container["find"], env, before)
    except FileNotFoundError:
        return True  # no engine any more
    return found == b""


def _ask(
    command: list[str], env: Mapping[str, str], before: Callable[[], None] | None = None
) -> bytes | None:
    """What a command of the engine prints; None where it fails or hangs."""
    import subprocess

    with suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=ENGINE_ANSWERS,
            check=False,
            preexec_fn=before,
        )
        return done.stdout.strip() if done.returncode == 0 else None
    return None


# ---------------------------------------------------------------- files of the run folder


def read_json(folder: str, name: str) -> Any:
    """The content of a file of the run folder. Raises OSError, or ValueError if it is no JSON."""
    with open(os.path.join(folder, name), encoding="utf-8") as file:
        return json.load(file)


def write_json(folder: str, name: str, content: Mapping[str, object]) -> None:
    """Write a file of the run folder so that it is there whole or not at all, whoever is killed. A power cut
    leaves it, or nothing, or a damaged one; but what was there at a `sync` of the folder is not gone."""
    path = os.path.join(folder, name)
    with open(path + ".new", "wb", opener=private) as file:
        file.write(json.dumps(content).encode())
    os.rename(path + ".new", path)


def sync(folder: str) -> None:
    """Return when a power cut can't undo any more which files there are in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_exit(folder: str, exit: Mapping[str, object]) -> None:
    """Write `exit.json` into the room that `reserve_exit` set aside: whole, even after a power cut, or not
    at all."""
    path = os.path.join(folder, "exit.json")
    descriptor = os.open(path + ".new", os.O_WRONLY | os.O_CREAT, 0o600)
    with open(descriptor, "wb") as file:
        file.write(json.dumps(exit).encode().ljust(EXIT_ROOM))
        file.flush()
        os.fsync(descriptor)
    os.rename(path + ".new", path)
    sync(folder)


def reserve_exit(folder: str) -> None:
    """Set room aside for `exit.json`. Raises OSError where the disk is full."""
    with open(os.path.join(folder, "exit.json.new"), "wb", opener=private) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, EXIT_ROOM)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            file.write(b" " * EXIT_ROOM)
            file.flush()
            os.fsync(file.fileno())


def private(path: str, flags: int) -> int:
    """An opener for files that only their owner may read."""
    return os.open(path, flags, 0o600)


def open_output(folder: str) -> int:
    """A descriptor that appends to the output of a run."""
    return os.open(os.path.join(folder, "output.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def exists(folder: str, name: str) -> bool:
    """Whether the run folder has this file."""
    return os.path.exists(os.path.join(folder, name))


def last_line(folder: str) -> str:
    """The last line of the output, without the marks of who said it; empty where there is none."""
    lines: list[bytes] = []
    with suppress(OSError), open(os.path.join(folder, "output.log"), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - LINE_LIMIT))
        lines = [line for line in file.read().split(b"\n") if line.strip()]
    said = lines[-1].decode("utf-8", "replace").strip() if lines else ""
    return said.removeprefix("raysched: ").removeprefix("Error: ")


def begun(folder: str) -> bool:
    """Whether the run was ever started, or has ended without having been."""
    return exists(folder, "run.json") or exists(folder, "exit.json")


def lock(folder: str) -> int | None:
    """Lock the run folder and return the descriptor that holds the lock; None if somebody else has it."""
    descriptor = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def unlock(descriptor: int) -> None:
    """Release the lock, even where a process that is just being forked has the descriptor too."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


# ---------------------------------------------------------------- processes


def process(pid: int) -> tuple[str, int, int] | None:
    """State, parent and start time in clock ticks of a process, from /proc/PID/stat; None if it is gone,
    or not ours to see. Raises OSError where nothing can be read now (too many open files): a process that
    can't be seen for a moment is not one that is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()  # the name before it may hold anything
    return fields[0].decode(), int(fields[1]), int(fields[19])


def ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if it is gone, or dead and not yet reaped."""
    stat = process(pid)
    return None if stat is None or stat[0] in "ZX" else stat[2]


def descendants(roots: set[int]) -> set[int]:
    """All processes below `roots`, without these."""
    children: dict[int, list[int]] = {}
    for pid in processes():
        stat = process(pid)
        if stat is not None:
            children.setdefault(stat[1], []).append(pid)
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        below = children.get(waiting.pop(), ())
        waiting += [pid for pid in below if pid not in found]
        found.update(below)
    return found - roots


def processes() -> list[int]:
    """The ids of all processes of this machine."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def group(pid: int) -> int | None:
    """The process group of a process; None if it is gone."""
    with suppress(ProcessLookupError):
        return os.getpgid(pid)
    return None


def kill(pid: int, number: int) -> None:
    """Send a signal; a process that is gone, or that became another user's, is passed over."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def boot() -> str:
    """The id of this boot of the machine."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def forget_signals() -> None:
    """Give every signal its default meaning again: what is ignored or blocked is inherited by commands."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def become_runner() -> None:
    """Be a process that can be a runner. Raises OSError where the system does not let it adopt orphans."""
    forget_signals()
    forget_worker()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError("the system doesn't let the runner adopt orphans")


def forget_worker() -> None:
    """Be an ordinary process again, where the system allows it: Ray's workers have niceness 15 and are the
    first that the kernel kills when memory runs out."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("0")


# ---------------------------------------------------------------- the start


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def words(error: Exception) -> str:
    """An error without its number."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def complain(text: str) -> None:
    """One line on stderr."""
    answer(f"raysched: {text}\n".encode("utf-8", "surrogateescape"))


def answer(text: bytes) -> None:
    """Write to stderr, whether or not anybody still reads it."""
    with suppress(OSError):
        os.write(2, text)


def detach() -> int | None:
    """Fork twice into a session of its own. Returns None in the process that was started; and in the one
    that started it, its exit status: 0 as soon as the other wrote `+` to its stderr."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        os.wait()
        said = os.read(reader, 1024)
        if said == b"+":
            return 0
        answer(said or b"raysched: the runner ended at once\n")
        return 1
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (writer, 1), (writer, 2)):
        os.dup2(source, target)
    for descriptor in (reader, writer, nothing):
        os.close(descriptor)
    return become_runner()


def main(folder: str, child: Child | None = None) -> int | None:
    """Start the run in `folder` and leave it to itself: in this process where it has a `child` ready for its
    command, else in one of its own. 0: it runs, or was started before; 1: it can't be started, and stderr
    says why; None: this process was its runner, and it has ended."""
    try:
        if lock(folder) is None or begun(folder):
            return 0
        command = Command(folder)
        reserve_exit(folder)
        output = open_output(folder)
        status = detach() if child is None else None
        if status is not None:
            return status
        if child is not None and os.waitpid(child.pid, os.WNOHANG)[0]:
            child = None  # somebody has killed it
        runner = Runner(folder, command, output, child)
        runner.register()
    except (OSError, ValueError, KeyError) as error:
        complain(f"can't start the run in {folder!r}: {words(error)}")
        return 1
    return runner.run()


if __name__ == "__main__":
    sys.exit(main(os.path.abspath(sys.argv[1])))
