"""The tests that every backend passes.

A test module of a backend subclasses one of the two classes and says how to make the backend:

    class TestMine(ProcessConformance):
        @pytest.fixture
        def make(self, folder, base_env, packages):
            return lambda: MyBackend(...)

`make` may be called again and gives a new backend object on the same engine each time, as after a crash of
the backend actor. `BackendConformance` holds what any backend does. `ProcessConformance` adds what only real
processes can show; it runs where the processes are on this machine.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import shlex
import signal
import socket
import sys
import tarfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from raysched.backends.base import Backend, EngineRefused
from raysched.core.lease import Place
from raysched.core.work import Launch, Run, Seen

LIMIT = 60.0
"""Seconds after which something that was to happen is said not to happen. Nothing is timed by it."""

LASTS = "exec sleep 600"
"""A command that goes on until it is stopped."""

PLACE = Place("node-a", (), 0, 0)
"""A lease's place without any GPU, for backends that don't look at it."""

T = TypeVar("T")


def new_launch(
    entrypoint: str | Sequence[str],
    place: Place = PLACE,
    env: Mapping[str, str] | None = None,
    package: str | None = None,
) -> Launch:
    """A launch of a job that no test has used before."""
    run = Run(f"job-{uuid.uuid4().hex[:12]}", 1, 0)
    command = entrypoint if isinstance(entrypoint, str) else tuple(entrypoint)
    variables = tuple((env or {}).items())
    return Launch(run, f"lease-{run.job}", place, "conformance", command, variables, package)


class Hands:
    """A backend in the hands of a test: plain calls, and waiting for what is to happen."""

    def __init__(self, make: Callable[[], Backend], place: Place) -> None:
        self.make = make
        self.place = place
        self._loop = asyncio.new_event_loop()
        self._started: dict[Run, Launch] = {}
        self.backend = make()

    def do(self, work: Awaitable[T]) -> T:
        """The result of one call of a backend."""
        return self._loop.run_until_complete(work)

    def restart(self) -> None:
        """Go on with a new backend object, as after a crash: the old one is not closed."""
        self.backend = self.make()

    def launch(
        self,
        entrypoint: str | Sequence[str],
        env: Mapping[str, str] | None = None,
        package: str | None = None,
    ) -> Launch:
        """A launch of a new job at the place of the test."""
        return new_launch(entrypoint, self.place, env, package)

    def start(self, entrypoint: str | Sequence[str] | Launch, env: Mapping[str, str] | None = None) -> Run:
        """Start a launch, or a new job with this entrypoint."""
        launch = entrypoint if isinstance(entrypoint, Launch) else self.launch(entrypoint, env)
        self._started[launch.run] = launch
        self.do(self.backend.start(launch))
        return launch.run

    def stop(self, run: Run, grace: float = LIMIT) -> None:
        """Begin to end a run."""
        self.do(self.backend.stop(run, grace))

    def seen(self, run: Run) -> Seen | None:
        """The run as the backend sees it now."""
        found = [seen for seen in self.do(self.backend.observe()) if seen.run == run]
        assert len(found) <= 1, f"one run is seen {len(found)} times: {found}"
        return found[0] if found else None

    def until(self, run: Run, state: str) -> Seen:
        """The run once it is in this state."""
        limit = time.monotonic() + LIMIT
        while (seen := self.seen(run)) is None or seen.state != state:
            if time.monotonic() > limit:
                pytest.fail(f"{run} is not {state} but {seen}; its output: {self.output(run)!r}")
            self.do(self.backend.changed(0.5))
        return seen

    def until_output(self, run: Run, text: bytes) -> bytes:
        """The run's output once it contains `text`."""
        limit = time.monotonic() + LIMIT
        while text not in (output := self.output(run)):
            if time.monotonic() > limit:
                pytest.fail(f"{run} did not write {text!r} but {output!r}")
            time.sleep(0.02)
        return output

    def until_pids(self, run: Run, count: int) -> list[int]:
        """The process ids that the run writes, one a line, once there are so many."""
        limit = time.monotonic() + LIMIT
        while len(lines := self.output(run).splitlines(keepends=True)) < count or not lines[-1].endswith(
            b"\n"
        ):
            if time.monotonic() > limit:
                pytest.fail(f"{run} did not write {count} process ids but {lines}")
            time.sleep(0.02)
        return [int(line) for line in lines]

    def output(self, run: Run) -> bytes:
        """All output of the run so far."""
        output = b""
        while part := self.do(self.backend.logs(run, len(output), 1 << 20)):
            output += part
        return output

    def run(self, entrypoint: str | Sequence[str] | Launch, env: Mapping[str, str] | None = None) -> str:
        """The output of a command that ends with code 0."""
        run = self.start(entrypoint, env)
        seen = self.until(run, "exited")
        output = self.output(run).decode("utf-8", "surrogateescape")
        assert seen.code == 0, output
        return output

    def close(self) -> None:
        """End what the test started."""
        for run in self._started:
            self.stop(run, 0)
        for seen in self.do(self.backend.observe()):
            if seen.run in self._started and seen.state == "running":
                self.until(seen.run, "exited")
        self.do(self.backend.close())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


class BackendConformance:
    """What any backend does."""

    @pytest.fixture
    def make(self) -> Callable[[], Backend]:
        """Makes the backend; to be overridden."""
        raise NotImplementedError("say how to make the backend")

    @pytest.fixture
    def place(self) -> Place:
        """The place of the leases."""
        return PLACE

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Where the backend may keep its runs: a path with characters that need care."""
        return tmp_path / "it's my (runs) $HOME"

    @pytest.fixture
    def packages(self, tmp_path: Path) -> Path:
        """Where packed working directories lie."""
        path = tmp_path / "packages"
        path.mkdir()
        return path

    @pytest.fixture
    def base_env(self) -> dict[str, str]:
        """The variables that jobs inherit, among them some that they must not."""
        outside = {"STAGE": "outside", "CUDA_VISIBLE_DEVICES": "7", "NVIDIA_VISIBLE_DEVICES": "7"}
        return {**os.environ, **outside, "RAY_JOB_ID": "01000000", "RAYSCHED_ARRAY_INDEX": "5"}

    @pytest.fixture
    def hands(self, make: Callable[[], Backend], place: Place) -> Iterator[Hands]:
        """The backend."""
        hands = Hands(make, place)
        yield hands
        hands.close()

    def test_a_run_that_was_not_started_is_not_seen(self, hands: Hands) -> None:
        assert hands.seen(hands.launch(LASTS).run) is None

    def test_a_started_run_is_seen_running(self, hands: Hands) -> None:
        seen = hands.until(hands.start(LASTS), "running")
        assert seen.started is not None
        assert (seen.ended, seen.code) == (None, None)

    def test_a_stopped_run_has_ended(self, hands: Hands) -> None:
        run = hands.start(LASTS)
        hands.stop(run)
        seen = hands.until(run, "exited")
        assert seen.code == 128 + signal.SIGTERM
        assert seen.ended is not None

    def test_starting_what_runs_is_silent(self, hands: Hands) -> None:
        launch = hands.launch(LASTS)
        hands.start(launch)
        first = hands.until(launch.run, "running")
        hands.start(launch)
        assert hands.seen(launch.run) == first

    def test_starting_what_has_ended_is_silent(self, hands: Hands) -> None:
        launch = hands.launch(LASTS)
        hands.start(launch)
        hands.stop(launch.run)
        first = hands.until(launch.run, "exited")
        hands.restart()
        hands.start(launch)
        assert hands.seen(launch.run) == first

    def test_stopping_what_has_ended_is_silent(self, hands: Hands) -> None:
        run = hands.start(LASTS)
        hands.stop(run)
        first = hands.until(run, "exited")
        hands.stop(run)
        assert hands.seen(run) == first

    def test_a_run_stopped_before_its_start_never_starts(self, hands: Hands) -> None:
        launch = hands.launch(LASTS)
        hands.stop(launch.run)
        assert hands.until(launch.run, "exited").code == 128 + signal.SIGTERM
        hands.start(launch)
        assert hands.seen(launch.run) == hands.until(launch.run, "exited")

    def test_a_new_backend_adopts_what_runs_and_what_has_ended(self, hands: Hands) -> None:
        going, gone = hands.start(LASTS), hands.start(LASTS)
        hands.stop(gone)
        before = hands.until(going, "running"), hands.until(gone, "exited")
        hands.restart()
        assert (hands.seen(going), hands.seen(gone)) == before
        hands.stop(going)
        hands.until(going, "exited")

    def test_forgetting_keeps_what_is_not_named_and_what_runs(self, hands: Hands) -> None:
        going, other, ended = (hands.start(LASTS) for _ in range(3))
        for run in (other, ended):
            hands.stop(run)
            hands.until(run, "exited")
        for _ in range(2):
            hands.do(hands.backend.forget(frozenset({ended, going})))
            assert hands.seen(ended) is None
            assert hands.output(ended) == b""
        hands.until(other, "exited")
        hands.until(going, "running")

    def test_an_unknown_run_has_no_output(self, hands: Hands) -> None:
        assert hands.do(hands.backend.logs(hands.launch(LASTS).run, 5, 100)) == b""

    def test_waiting_for_a_change_ends_after_its_time(self, hands: Hands) -> None:
        hands.start(LASTS)
        for _ in range(3):
            hands.do(hands.backend.changed(0.01))


class ProcessConformance(BackendConformance):
    """What real processes show."""

    # ------------------------------------------------------------ how it ends

    @pytest.mark.parametrize(
        ("entrypoint", "code"),
        [
            ("true", 0),
            ("exit 3", 3),
            ("exit 255", 255),
            ("kill -9 $$", 137),
            ("no-such-command-here", 127),
            (["no-such-command-here"], 127),
            (["/etc/passwd"], 126),
            (["/no/such/path", "x"], 127),
        ],
    )
    def test_the_exit_code_arrives(self, hands: Hands, entrypoint: str | list[str], code: int) -> None:
        run = hands.start(entrypoint)
        seen = hands.until(run, "exited")
        assert seen.code == code
        assert seen.started is not None
        assert seen.ended is not None
        assert seen.started <= seen.ended

    def test_a_command_that_is_not_there_is_named_in_the_output(self, hands: Hands) -> None:
        run = hands.start(["no-such-command-here"])
        hands.until(run, "exited")
        lines = hands.output(run).decode().splitlines()
        assert len(lines) == 1
        assert "no-such-command-here" in lines[0]

    def test_a_change_is_announced_when_a_run_ends(self, hands: Hands) -> None:
        run = hands.start("sleep 0.3; exit 4")
        while (seen := hands.seen(run)) is None or seen.state in ("queued", "running"):
            hands.do(hands.backend.changed(LIMIT))
        assert seen.code == 4

    # ------------------------------------------------------------ what it writes

    def test_stdout_and_stderr_arrive_in_order(self, hands: Hands) -> None:
        assert hands.run("for i in 1 2 3; do echo out $i; echo err $i >&2; done").splitlines() == [
            f"{name} {i}" for i in (1, 2, 3) for name in ("out", "err")
        ]

    def test_output_is_read_in_parts_from_any_offset(self, hands: Hands) -> None:
        run = hands.start("printf 0123456789")
        hands.until(run, "exited")
        parts = [hands.do(hands.backend.logs(run, offset, 4)) for offset in (0, 4, 8, 10, 99, 1 << 70)]
        assert parts == [b"0123", b"4567", b"89", b"", b"", b""]

    def test_output_is_there_while_the_run_goes_on(self, hands: Hands) -> None:
        run = hands.start("echo ready; exec sleep 600")
        assert hands.until_output(run, b"ready\n") == b"ready\n"
        hands.until(run, "running")

    def test_output_is_bytes_of_any_kind_and_length(self, hands: Hands) -> None:
        run = hands.start("printf '\\000\\377\\303'; head -c 20000000 /dev/zero")
        hands.until(run, "exited")
        output = hands.output(run)
        assert len(output) == 20_000_003
        assert output.startswith(b"\x00\xff\xc3\x00")

    # ------------------------------------------------------------ what it gets

    def test_several_commands_are_one_shell_script(self, hands: Hands) -> None:
        """Case spec-07."""
        run = hands.start(
            'echo "one $STAGE"; echo two && echo "three ; four"\nhostname\nexit 3\n', {"STAGE": "inside"}
        )
        assert hands.until(run, "exited").code == 3
        lines = hands.output(run).decode().splitlines()
        assert lines == ["one inside", "two", "three ; four", socket.gethostname()]

    def test_a_list_is_run_without_a_shell(self, hands: Hands) -> None:
        """Case spec-07."""
        assert hands.run(["echo", "$STAGE; echo x"]) == "$STAGE; echo x\n"

    def test_the_shell_is_sh_whatever_the_login_shell(self, hands: Hands) -> None:
        """Case vm-03."""
        script = """X="a b"; export X\nprintf '%s\\n' "${X:-none}" "$HOME_SET" "$(( 2 + 3 ))"\n"""
        env = {"HOME_SET": "it's {set} ~ $y", "SHELL": "/usr/bin/fish"}
        assert hands.run(script, env).splitlines() == ["a b", "it's {set} ~ $y", "5"]

    def test_a_command_line_that_begins_with_a_dash_is_no_option(self, hands: Hands) -> None:
        run = hands.start("-c 'exit 0'")
        assert hands.until(run, "exited").code == 127

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "a  b",
            "it's",
            'say "x"',
            "$HOME `id` \\",
            "two\nlines\n",
            "naïve 東京 🚀",
            "\udcff\x01",
            "*?[a]",
        ],
    )
    def test_texts_arrive_byte_for_byte(self, hands: Hands, text: str) -> None:
        show = (
            "import os, sys; sys.stdout.buffer.write(os.fsencode(sys.argv[1]) + b'|' + os.environb[b'TEXT'])"
        )
        assert (
            hands.run([sys.executable, "-I", "-X", "utf8", "-c", show, text], {"TEXT": text})
            == f"{text}|{text}"
        )

    def test_the_lease_decides_the_devices_and_names_the_run(self, hands: Hands) -> None:
        launch = hands.launch("env", {"CUDA_VISIBLE_DEVICES": "GPU-1"})
        env = dict(line.split("=", 1) for line in hands.run(launch).splitlines() if "=" in line)
        assert env["CUDA_VISIBLE_DEVICES"] == "GPU-1"
        assert env["RAYSCHED_LEASE"] == launch.lease
        assert env["RAYSCHED_RUN"] == str(launch.run)
        inherited = {"NVIDIA_VISIBLE_DEVICES", "RAY_JOB_ID", "RAYSCHED_ARRAY_INDEX"}
        assert not inherited & env.keys()
        assert env["STAGE"] == "outside"

    def test_python_is_the_one_that_raysched_runs_in(self, hands: Hands) -> None:
        assert hands.run("python -c 'import sys; print(sys.prefix)'") == sys.prefix + "\n"

    def test_standard_input_is_empty(self, hands: Hands) -> None:
        assert hands.run("cat") == ""

    def test_signals_that_raysched_ignores_reach_the_job(self, hands: Hands) -> None:
        run = hands.start("kill -INT $$; kill -PIPE $$; echo not ended")
        assert hands.until(run, "exited").code == 128 + signal.SIGINT

    def test_the_working_directory_arrives(self, hands: Hands, packages: Path) -> None:
        """Case vm-04."""
        files = {
            "main file.py": b'print(open("it\'s data/na\xc3\xafve file.txt").read(), end="")',
            "it's data/naïve file.txt": b"arrived\n",
        }
        launch = hands.launch(["python", "main file.py"], package=pack(packages, files))
        assert hands.run(launch) == "arrived\n"

    def test_without_a_package_the_working_directory_is_empty_and_the_job_may_write(
        self, hands: Hands
    ) -> None:
        assert hands.run("ls -A; touch made && ls") == "made\n"

    def test_a_package_that_is_not_there_is_refused_for_good(self, hands: Hands) -> None:
        launch = hands.launch("true", package="0" * 64)
        with pytest.raises(EngineRefused) as refused:
            hands.start(launch)
        assert refused.value.final
        assert hands.seen(launch.run) is None

    def test_a_damaged_package_is_refused_for_good(self, hands: Hands, packages: Path) -> None:
        (packages / "bad.tar.gz").write_bytes(b"this is no archive")
        launch = hands.launch("true", package="bad")
        with pytest.raises(EngineRefused) as refused:
            hands.start(launch)
        assert refused.value.final
        assert hands.seen(launch.run) is None

    # ------------------------------------------------------------ how it is stopped

    def test_a_job_may_end_by_itself_within_the_grace(self, hands: Hands) -> None:
        save = "sleep 0.3; echo saved; exit 7"  # processes of the job's own last work are left alone
        run = hands.start(f"trap '{save}' TERM; echo ready; while :; do sleep 0.05; done")
        hands.until_output(run, b"ready\n")
        hands.stop(run)
        assert hands.until(run, "exited").code == 7
        assert hands.output(run).endswith(b"saved\n")

    def test_what_ignores_sigterm_is_killed_after_the_grace(self, hands: Hands) -> None:
        """Case ray-03: children in sessions of their own are gone too."""
        stubborn = "trap '' TERM; echo $$; while :; do sleep 0.05; done"
        run = hands.start(f"setsid env -i sh -c {shlex.quote(stubborn)} & {stubborn}")
        pids = hands.until_pids(run, 2)
        hands.stop(run, 0.2)
        assert hands.until(run, "exited").code == 128 + signal.SIGKILL
        assert not alive(pids)

    def test_stopping_again_does_not_prolong_the_grace(self, hands: Hands) -> None:
        run = hands.start("trap '' TERM; echo ready; while :; do sleep 0.05; done")
        hands.until_output(run, b"ready\n")
        hands.stop(run, LIMIT * 10)
        hands.stop(run, 0.1)
        hands.stop(run, LIMIT * 10)
        assert hands.until(run, "exited").code == 128 + signal.SIGKILL

    def test_what_a_command_leaves_behind_is_gone_when_it_has_ended(self, hands: Hands) -> None:
        """Case ray-03."""
        run = hands.start("sleep 600 & echo $!; env -i setsid sleep 600 & echo $!; exit 5")
        assert hands.until(run, "exited").code == 5
        assert not alive(hands.until_pids(run, 2))

    # ------------------------------------------------------------ faults

    def test_concurrent_starts_run_it_once(self, hands: Hands, tmp_path: Path) -> None:
        mark = tmp_path / "starts"
        launch = hands.launch('echo started >> "$MARK"', {"MARK": str(mark)})
        others = [hands.make() for _ in range(3)]

        async def start_all() -> None:
            await asyncio.gather(*(each.start(launch) for each in (hands.backend, *others)))

        hands.do(start_all())
        hands.start(launch)
        hands.until(launch.run, "exited")
        assert mark.read_text() == "started\n"

    def test_a_run_whose_runner_was_killed_is_lost_and_its_processes_gone(self, hands: Hands) -> None:
        """Case ray-03: the command's parent is the runner."""
        run = hands.start("echo $PPID; echo $$; setsid sleep 600 & echo $!; wait")
        runner, *pids = hands.until_pids(run, 3)
        os.kill(runner, signal.SIGKILL)
        lost = hands.until(run, "lost")
        assert lost.code is None
        assert lost.reason
        assert not alive(pids)
        hands.restart()
        assert hands.seen(run) == lost

    def test_a_lost_run_is_not_started_again(self, hands: Hands) -> None:
        launch = hands.launch("echo $PPID; exec sleep 600")
        run = hands.start(launch)
        (runner,) = hands.until_pids(run, 1)
        os.kill(runner, signal.SIGKILL)
        hands.start(launch)
        hands.until(run, "lost")
        hands.start(launch)
        hands.until(run, "lost")
        assert len(hands.output(run).splitlines()) == 1


def alive(pids: Sequence[int]) -> list[int]:
    """Those of the processes that still run; one that is dead and not yet reaped by its parent doesn't."""
    return [pid for pid in pids if _state(pid) not in ("", "Z", "X")]


def _state(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat[stat.rindex(")") + 2]


def pack(packages: Path, files: Mapping[str, bytes]) -> str:
    """Put a packed working directory with these files into the folder of packages; return its digest."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    data = buffer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    (packages / f"{digest}.tar.gz").write_bytes(data)
    return digest
