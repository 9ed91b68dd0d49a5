"""The runner and the run folder, on real processes."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from engines import need
from hypothesis import given, settings
from hypothesis import strategies as st

from raysched.backends import runner
from raysched.backends.base import EngineRefused
from raysched.backends.run_folder import RunFolder
from raysched.backends.runs import Runs, of_this_machine
from raysched.core.work import Launch, Run, Seen
from raysched.testing.conformance import LIMIT, alive, new_launch

TEXT = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    st.binary().map(lambda data: os.fsdecode(data.replace(b"\0", b""))),
)
NAME = st.text(st.characters(exclude_characters="\0=", exclude_categories=["Cs"]), min_size=1)

SHOW = """
import json, os, sys
env = {name.hex(): value.hex() for name, value in os.environb.items()}
print(json.dumps({"args": [os.fsencode(arg).hex() for arg in sys.argv[1:]], "env": env}))
"""


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    """The runs of a folder; what goes on at the end is ended."""
    runs = Runs(tmp_path / "runs", os.environ)
    yield runs
    end_all(runs)


def end_all(runs: Runs) -> None:
    for seen in runs.observe():
        runs.stop(seen.run, 0)
    wait_for(lambda: all(seen.state != "running" for seen in runs.observe()))


def wait_for(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < limit, "it does not happen"
        time.sleep(0.02)


def look(runs: Runs, launch: Launch) -> Seen | None:
    return next((seen for seen in runs.observe() if seen.run == launch.run), None)


def ended(runs: Runs, launch: Launch) -> Seen:
    """The run once it has ended."""
    wait_for(lambda: (seen := look(runs, launch)) is not None and seen.state != "running")
    seen = look(runs, launch)
    assert seen is not None
    return seen


def folder(runs: Runs, launch: Launch) -> Path:
    return runs.root / str(launch.run)


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# ---------------------------------------------------------------- texts


@settings(max_examples=25, deadline=None)
@given(args=st.lists(TEXT, max_size=5), env=st.dictionaries(NAME, TEXT, max_size=5))
def test_no_argument_and_no_variable_is_changed_on_its_way(args: list[str], env: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as root:
        runs = Runs(Path(root), os.environ)
        launch = new_launch([sys.executable, "-I", "-S", "-X", "utf8", "-c", SHOW, *args], env=env)
        runs.start(launch, None)
        assert ended(runs, launch).code == 0
        got = json.loads(runs.logs(launch.run, 0, 1 << 24))
    assert got["args"] == [os.fsencode(arg).hex() for arg in args]
    assert {os.fsencode(k).hex(): os.fsencode(v).hex() for k, v in env.items()}.items() <= got["env"].items()


@settings(max_examples=25, deadline=None)
@given(text=TEXT)
def test_no_command_line_is_changed_on_its_way(text: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        runs = Runs(Path(root), os.environ)
        launch = new_launch(f"printf %s {shlex.quote(text)}")
        runs.start(launch, None)
        assert ended(runs, launch).code == 0
        assert runs.logs(launch.run, 0, 1 << 24) == os.fsencode(text)


# ---------------------------------------------------------------- who may read it


def test_nobody_else_can_read_a_run(runs: Runs) -> None:
    launch = new_launch("true", env={"PASSWORD": "secret"})
    runs.start(launch, None)
    ended(runs, launch)
    assert runs.root.stat().st_mode & 0o077 == 0
    for path in [folder(runs, launch), *folder(runs, launch).iterdir()]:
        assert path.stat().st_mode & 0o077 == 0, path


# ---------------------------------------------------------------- faults


STARTER = """
import os, sys
from pathlib import Path
from raysched.backends.runs import Runs, of_this_machine
from raysched.core.lease import Place
from raysched.core.work import Launch, Run
launch = Launch(Run.parse(sys.argv[2]), "lease", Place("node-a", (), 0, 0), "", sys.argv[3], (), None)
runs = Runs(Path(sys.argv[1]), os.environ)
print("now", flush=True)
runs.start(launch, None)
"""


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.006, 0.01, 0.02, 0.03, 0.04, 0.06])
def test_a_run_runs_once_whenever_its_starter_is_killed(tmp_path: Path, runs: Runs, delay: float) -> None:
    mark = tmp_path / "starts"
    launch = new_launch(f"echo started >> {shlex.quote(str(mark))}")
    command = [sys.executable, "-c", STARTER, str(runs.root), str(launch.run), str(launch.entrypoint)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == b"now\n"
        time.sleep(delay)
        os.killpg(starter.pid, signal.SIGKILL)
    wait_for(lambda: runs.start(launch, None) or look(runs, launch) is not None)
    ended(runs, launch)
    assert mark.read_text() == "started\n"


def test_a_run_that_is_looked_at_while_it_starts_is_left_alone(runs: Runs) -> None:
    """Its runner writes down who it is between any two steps of whoever looks."""
    launches = [new_launch("sleep 0.1") for _ in range(20)]
    for launch in launches:
        folder(runs, launch).mkdir()
        started = threading.Event()
        onlooker = threading.Thread(target=look_on, args=(folder(runs, launch), launch.run, started))
        onlooker.start()
        runs.start(launch, None)
        started.set()
        onlooker.join()
    assert [ended(runs, launch).code for launch in launches] == [0] * len(launches)


def look_on(path: Path, run: Run, over: threading.Event) -> None:
    """Look at a run again and again, each time as one who has just come."""
    while not over.is_set():
        RunFolder(path, run).seen()


def test_a_command_that_can_not_join_its_group_does_not_run(runs: Runs, tmp_path: Path) -> None:
    """Outside of it nothing would hold it to its share."""
    launch = new_launch(f"touch {tmp_path / 'ran'}")
    folder = tmp_path / "runs" / str(launch.run)
    folder.mkdir()
    group = {"entrypoint": launch.entrypoint, "env": {}, "cwd": "/", "group": str(tmp_path / "gone")}
    (folder / "launch.json").write_text(json.dumps(group))
    runs.start(launch, None)
    assert ended(runs, launch).code == 126
    assert b"nothing would hold this to its share" in runs.logs(launch.run, 0, 1000)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("ends", [False, True])
def test_a_second_runner_of_a_run_does_nothing(runs: Runs, ends: bool) -> None:
    """Two starters may both have found that nobody had started the run yet."""
    launch = new_launch("echo started" + ("" if ends else "; exec sleep 600"))
    runs.start(launch, None)
    wait_for(lambda: runs.logs(launch.run, 0, 100) == b"started\n")
    first = runner.read_json(str(folder(runs, launch)), "run.json")
    if ends:
        ended(runs, launch)
        wait_for(lambda: runner.ticks(first["pid"]) != first["ticks"])  # it holds the folder's lock no more
    again = [sys.executable, "-I", "-S", runner.__file__, str(folder(runs, launch))]
    subprocess.run(again, check=True)
    assert runner.read_json(str(folder(runs, launch)), "run.json") == first
    runs.stop(launch.run, 0)
    ended(runs, launch)
    assert runs.logs(launch.run, 0, 100) == b"started\n"


def test_a_later_process_with_the_runners_id_is_not_taken_for_it(runs: Runs) -> None:
    launch = new_launch("exec sleep 600")
    runs.start(launch, None)
    mark = folder(runs, launch) / "run.json"
    os.kill(json.loads(mark.read_text())["pid"], signal.SIGKILL)
    with subprocess.Popen(["sleep", "600"]) as bystander:
        change(mark, pid=bystander.pid, ticks=1)  # a tick is long enough to be the same by chance
        again = Runs(runs.root, os.environ)
        again.stop(launch.run, 0)
        assert ended(again, launch).state == "lost"
        assert bystander.poll() is None
        bystander.kill()


def test_a_run_from_before_a_restart_of_the_machine_is_lost(runs: Runs) -> None:
    launch = new_launch("true")
    runs.start(launch, None)
    ended(runs, launch)
    (folder(runs, launch) / "exit.json").unlink()
    change(folder(runs, launch) / "run.json", boot="another")
    seen = ended(Runs(runs.root, os.environ), launch)
    assert (seen.state, seen.reason) == ("lost", "the machine was restarted")


@pytest.mark.parametrize("name", ["run.json", "exit.json"])
def test_a_damaged_file_is_a_lost_run_and_never_a_second_start(runs: Runs, name: str) -> None:
    launch = new_launch("echo started")
    runs.start(launch, None)
    ended(runs, launch)
    if name == "run.json":
        (folder(runs, launch) / "exit.json").unlink()
    (folder(runs, launch) / name).write_bytes(b"\0\0\0")
    again = Runs(runs.root, os.environ)
    again.start(launch, None)
    assert ended(again, launch).state == "lost"
    assert again.logs(launch.run, 0, 100) == b"started\n"


def test_a_stop_that_comes_while_the_run_is_being_started_is_not_lost(runs: Runs) -> None:
    """The starter was killed after it prepared the run; the stop comes before the runner registers."""
    launch = new_launch("echo started; exec sleep 600")
    runs.start(launch, None)
    runs.stop(launch.run, 0)
    ended(runs, launch)
    first = runner.read_json(str(folder(runs, launch)), "run.json")
    wait_for(lambda: runner.ticks(first["pid"]) != first["ticks"])  # it has let go of the folder's lock
    for name in ("run.json", "exit.json", "output.log"):
        (folder(runs, launch) / name).unlink()
    again = Runs(runs.root, os.environ)
    again.start(launch, None)
    seen = ended(again, launch)
    assert (seen.code, seen.reason) == (143, "stopped before it started")
    assert again.logs(launch.run, 0, 100) == b""


@pytest.mark.parametrize("then", ["start", "stop"])
def test_a_run_whose_folder_was_deleted_is_ended_and_not_started_again(runs: Runs, then: str) -> None:
    launch = new_launch("echo $$; exec sleep 600")
    runs.start(launch, None)
    wait_for(lambda: runs.logs(launch.run, 0, 100).endswith(b"\n"))
    pid = int(runs.logs(launch.run, 0, 100))
    shutil.rmtree(runs.root)
    assert runs.observe() == []
    runs.start(launch, None) if then == "start" else runs.stop(launch.run, 0)
    assert ended(runs, launch).state != "running"
    assert not alive([pid])
    assert runs.logs(launch.run, 0, 100) == b""


def test_what_else_lies_in_the_folder_is_passed_over(runs: Runs) -> None:
    for name in ("notes", "a.b.c", ".x.1.0", "job.01.0"):
        (runs.root / name).mkdir()
    assert runs.observe() == []
    runs.forget(frozenset({Run("a.b", 1, 0)}))
    assert (runs.root / "notes").is_dir()


def test_folders_that_a_job_made_read_only_are_forgotten_too(runs: Runs) -> None:
    launch = new_launch("mkdir -p a/b; touch a/b/c; chmod 555 a/b a; echo done")
    runs.start(launch, None)
    ended(runs, launch)
    runs.forget(frozenset({launch.run}))
    assert os.listdir(runs.root) == []


def test_a_run_is_forgotten_while_its_runner_is_just_ending(runs: Runs) -> None:
    launch = new_launch("true")
    runs.start(launch, None)
    ended(runs, launch)
    first = runner.read_json(str(folder(runs, launch)), "run.json")
    wait_for(lambda: runner.ticks(first["pid"]) != first["ticks"])
    held = runner.lock(str(folder(runs, launch)))  # as by a runner that has written the exit and still lives
    assert held is not None
    runs.forget(frozenset({launch.run}))
    assert runs.observe() == []
    runner.unlock(held)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "raysched-test", str(disk)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode != 0
    ):
        pytest.skip("a small file system can only be mounted by root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_an_exit_code_survives_a_full_disk(small_disk: Path) -> None:
    runs = Runs(small_disk / "runs", os.environ)
    launch = new_launch("cat /dev/zero > fill; echo full; exit 5")
    runs.start(launch, None)
    assert ended(runs, launch).code == 5


def test_a_start_on_a_full_disk_is_refused_for_now(small_disk: Path) -> None:
    runs = Runs(small_disk / "runs", os.environ)
    with suppress(OSError), open(small_disk / "fill", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    launch = new_launch("echo started")
    with pytest.raises(EngineRefused, match="No space") as refused:
        runs.start(launch, None)
    assert not refused.value.final
    (small_disk / "fill").unlink()
    runs.start(launch, None)
    assert ended(runs, launch).code == 0


def test_the_runner_needs_no_more_than_the_standard_library(tmp_path: Path) -> None:
    """The file alone, copied elsewhere, runs a run."""
    alone = shutil.copy(runner.__file__, tmp_path / "runner.py")
    home = tmp_path / "run"
    home.mkdir()
    (home / "launch.json").write_text(
        json.dumps({"entrypoint": "echo hello; exit 6", "env": {}, "cwd": str(tmp_path)})
    )
    subprocess.run([sys.executable, "-I", "-S", alone, str(home)], check=True)
    wait_for((home / "exit.json").exists)
    assert json.loads((home / "exit.json").read_text())["code"] == 6
    assert (home / "output.log").read_text() == "hello\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may raise a priority")
def test_a_run_has_the_priority_of_an_ordinary_process(tmp_path: Path) -> None:
    """Whoever starts it may be a worker of Ray, with niceness 15."""
    (tmp_path / "launch.json").write_text(json.dumps({"entrypoint": ["nice"], "env": {}, "cwd": "/"}))
    subprocess.run(["nice", "-n", "15", sys.executable, "-I", "-S", runner.__file__, tmp_path], check=True)
    wait_for((tmp_path / "exit.json").exists)
    assert (tmp_path / "output.log").read_text() == "0\n"


def test_a_folder_without_a_launch_is_said_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", runner.__file__, str(tmp_path / "nothing")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("raysched: can't start the run in ")
    assert done.stderr.count("\n") == 1


def test_a_run_whose_lease_is_over_never_starts(runs: Runs, tmp_path: Path) -> None:
    """A start that was under way while its lease was given back: the GPU is another's by now."""
    ran = tmp_path / "ran"
    launch = replace(new_launch(f"touch {ran}"), lease="job.1", run=Run("job", 1, 0))
    runs.end("job.1", 0)
    runs.start(launch, None)
    seen = ended(runs, launch)
    assert (seen.code, seen.reason) == (143, "its lease was given back before it started")
    assert not ran.exists()
    runs.forget(frozenset())
    assert os.listdir(runs.root / ".over") == ["job.1"]  # remembered for a while


def test_the_end_of_a_lease_ends_its_runs_and_no_other(runs: Runs) -> None:
    ours = replace(new_launch("sleep 600"), lease="job.1", run=Run("job", 1, 0))
    other = replace(new_launch("sleep 600"), lease="job.10", run=Run("job", 10, 0))
    for launch in (ours, other):
        runs.start(launch, None)
    runs.end("job.1", 0)
    states = {seen.run: seen.state for seen in runs.observe()}
    assert states == {ours.run: "exited", other.run: "running"}


def test_a_run_is_not_taken_for_dead_where_no_file_can_be_opened(runs: Runs) -> None:
    launch = new_launch("exec sleep 600")
    runs.start(launch, None)
    before = runs.observe()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, most[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            runs.observe()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
    assert runs.observe() == before
    assert before[0].state == "running"


OTHER = """
import os, sys
from pathlib import Path
from raysched.backends.runs import Runs, of_this_machine
print(Runs(of_this_machine(Path(sys.argv[1])), os.environ).observe())
"""


def test_machines_with_one_home_leave_the_runs_of_each_other_alone(tmp_path: Path) -> None:
    need(os.geteuid() == 0 and shutil.which("unshare"), "be root")
    runs = Runs(of_this_machine(tmp_path), os.environ)
    launch = new_launch("exec sleep 600")
    runs.start(launch, None)
    apart = ["unshare", "--uts", "--pid", "--fork", "--mount-proc"]
    look = ["sh", "-c", 'hostname other; exec "$@"', "sh", sys.executable, "-c", OTHER, str(tmp_path)]
    done = subprocess.run([*apart, *look], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert [seen.state for seen in runs.observe()] == ["running"]
    end_all(runs)


def test_runs_of_a_version_that_had_all_in_one_folder_are_found(tmp_path: Path) -> None:
    old = Runs(tmp_path, os.environ)
    launch = new_launch("exec sleep 600")
    old.start(launch, None)
    assert [seen.run for seen in Runs(of_this_machine(tmp_path), os.environ).observe()] == [launch.run]
    end_all(old)


def test_a_machine_whose_name_looks_like_a_run_finds_its_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename="10.0.0.1"))
    folder = of_this_machine(tmp_path)
    folder.mkdir()
    assert of_this_machine(tmp_path) == folder != tmp_path
