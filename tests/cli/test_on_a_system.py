"""The command line against a running system."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from pathlib import Path

import pytest
from running import Done, System, wait_until

from raysched.client import user

ESCAPE = "\x1b"
COLOUR = re.compile(r"\x1b\[[0-9;]*(3[0-7]|4[0-7]|9[0-7])[0-9;]*m")


def _file(folder: Path, text: str) -> str:
    path = folder / "job.yaml"
    path.write_text(f"working_dir: null\n{text}", encoding="utf-8")
    return str(path)


def _on_terminal(system: System, *arguments: str, columns: int = 80, **variables: str) -> str:
    """What a terminal of that width gets to see."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    kept = {name: value for name, value in system.env.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    env = kept | {"TERM": "xterm-256color"} | variables
    process = subprocess.Popen(["raysched", *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    seen = b""
    with open(ours, "rb", buffering=0) as screen:
        try:
            while piece := screen.read(1 << 16):
                seen += piece
        except OSError:
            # Linux says so when the last process has closed the terminal.
            pass
    assert process.wait() == 0
    return seen.decode()


def _cells(screen: str) -> list[str]:
    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).rstrip("\r") for line in screen.split("\n")]


def _ended(system: System, job: str) -> None:
    wait_until(
        lambda: system.client().job(job)[0]["state"] in ("succeeded", "failed", "cancelled"), "it ended"
    )


def test_follow_gives_the_output_byte_for_byte_and_the_exit_code(system: System, tmp_path: Path) -> None:
    """Case ui-02: nothing but the job's own bytes on stdout, and no escape codes on stderr."""
    file = _file(
        tmp_path,
        "entrypoint: printf '\\033[31mred\\033[0m\\377\\n'; exit 3\nresources: {gpu_fraction: 0.5}\n",
    )
    done = subprocess.run(
        ["raysched", "submit", file, "--follow"], env=system.env, capture_output=True, check=False
    )
    assert done.returncode == 3
    assert done.stdout == b"\x1b[31mred\x1b[0m\xff\n"
    assert not {0x1B, 0x0D, 0x08} & set(done.stderr)
    assert b"job running on " in done.stderr
    assert re.search(rb"job failed after \d+s: exit code 3\n$", done.stderr)


def test_follow_shows_every_attempt(system: System, tmp_path: Path) -> None:
    script = 'echo "attempt $RAYSCHED_ATTEMPT"; test "$RAYSCHED_ATTEMPT" = 3'
    file = _file(
        tmp_path, f"name: again\nentrypoint: '{script}'\nretries: 2\nresources: {{gpu_fraction: 0.5}}\n"
    )
    done = system.cli("submit", file, "--follow")
    assert done.stdout == "attempt 1\nattempt 2\nattempt 3\n"
    told = [line for line in done.stderr.splitlines() if "did not succeed" in line]
    assert told == [f"raysched: again attempt {n} did not succeed; it starts again" for n in (1, 2)]
    assert re.search(r"again succeeded after \d+s\n$", done.stderr)


def test_follow_of_an_array_marks_each_line_and_exits_as_the_first_that_failed(
    system: System, tmp_path: Path
) -> None:
    script = 'echo "trial $RAYSCHED_ARRAY_INDEX"; test "$RAYSCHED_ARRAY_INDEX" != 2 || exit 7'
    file = _file(
        tmp_path, f"name: trials\nentrypoint: '{script}'\narray: 4\nresources: {{gpu_fraction: 0.5}}\n"
    )
    done = system.cli("submit", file, "--follow", check=False)
    assert done.returncode == 7
    assert sorted(done.stdout.splitlines()) == [f"trials[{n}] | trial {n}" for n in range(4)]
    assert done.stderr.endswith("raysched: 4 jobs: 3 succeeded, 1 failed\n")


def test_follow_in_json_ends_with_the_jobs(system: System, tmp_path: Path) -> None:
    file = _file(tmp_path, "entrypoint: echo hidden\nresources: {gpus: 0}\n")
    answer = system.json("submit", file, "--follow")
    assert answer["simulated"] is True
    assert [job["state"] for job in answer["jobs"]] == ["succeeded"]


def test_a_followed_job_that_is_cancelled_exits_with_143(system: System, tmp_path: Path) -> None:
    file = _file(tmp_path, "name: endless\nentrypoint: sleep 600\nresources: {gpu_fraction: 0.25}\n")
    following = system.begin("submit", file, "--follow")
    wait_until(
        lambda: any(job["name"] == "endless" for job in system.client().jobs(state="running")), "it runs"
    )
    system.cli("cancel", "endless")
    out, told = following.communicate()
    assert (following.returncode, out) == (143, "")
    assert "endless cancelled" in told


def test_output_goes_on_over_a_killed_gateway(system: System, tmp_path: Path) -> None:
    file = _file(tmp_path, "name: steady\nentrypoint: for i in $(seq 60); do echo $i; sleep 0.1; done\n")
    with system.begin("submit", file, "--follow") as following:
        assert following.stdout is not None
        assert following.stderr is not None
        first = following.stdout.readline()
        assert system.kill("ray::Gateway")
        # `communicate` would pass over what came along with the first line.
        rest, told = following.stdout.read(), following.stderr.read()
    assert following.returncode == 0
    assert (first + rest).split() == [str(n) for n in range(1, 61)]
    assert "taking it up again" in told


def test_a_waiting_job_says_why_and_how_it_would_start(system: System, tmp_path: Path) -> None:
    holder = system.submit("holder", "sleep 600", resources={"gpu_fraction": 0.5})
    wants = system.submit("wants-both", "true", resources={"gpus": 2})
    try:
        done = system.cli("queue")
        assert re.search(rf"wants-both +{wants} +2 GPUs +\d+s +1 of 2 whole GPUs free; .*holder", done.stdout)
        assert done.stderr == "raysched: the GPUs are simulated\n"
        assert "smallest change  gpus: 1 would start now" in system.cli("explain", wants).stdout
        screen = _cells(_on_terminal(system, "queue", columns=80))
        assert max(map(len, screen)) <= 80
        assert any(wants in line for line in screen)
    finally:
        system.cli("cancel", wants)
        system.cli("cancel", holder)
        _ended(system, holder)


def test_nothing_starts_on_a_cordoned_node_until_it_is_used_again(system: System) -> None:
    [node] = system.client().gpus()["nodes"]
    assert f"{node['name']} is cordoned" in system.cli("node", "cordon", node["name"]).stdout
    job = system.submit("later", "true", resources={"gpu_fraction": 0.5})
    try:
        assert system.json("gpus")["nodes"][0]["cordoned"] is True
        why = system.json("explain", job)["why"]
        assert (
            why
            == f"nothing new starts on {node['name']}: cordoned until `raysched node uncordon {node['name']}`"
        )
    finally:
        assert system.cli("node", "uncordon", node["name"]).stdout == f"{node['name']} is used again\n"
    _ended(system, job)
    assert system.client().job(job)[0]["state"] == "succeeded"


def test_a_drained_node_is_left_and_what_left_starts_again_once_it_may(system: System) -> None:
    [node] = system.client().gpus()["nodes"]
    name = node["name"]
    moves = system.submit("moves", "sleep 600", resources={"gpu_fraction": 0.25})
    stays = system.submit("stays", "sleep 600", resources={"gpu_fraction": 0.25}, preemptible=False)
    try:
        for job in (moves, stays):
            system.until(job, "running")
        plan = system.cli("node", "drain", name, "--plan").stdout
        assert plan.startswith(f"{name}: 1 would leave, 1 would stay\n")
        done = system.cli("node", "drain", name, "--timeout", "0s", check=False)
        assert done.returncode == 1
        wait_until(lambda: [one["job"] for one in system.client().drain(name)["left"]] == [stays], "it left")
        assert system.client().job(moves)[0]["reason"].endswith(f"({name} is drained by {user()})")
        system.cli("cancel", stays)
        assert system.cli("node", "drain", name).stdout == f"{name} is drained: nobody is left\n"
    finally:
        system.cli("node", "uncordon", name)
    system.until(moves, "running")
    assert system.client().job(moves)[0]["attempt"] == 2
    system.cli("cancel", moves)
    _ended(system, moves)


def test_a_node_that_is_not_known_can_not_be_drained(system: System) -> None:
    done = system.cli("node", "drain", "nowhere", check=False)
    assert (done.returncode, done.stdout) == (81, "")
    assert "no node nowhere: `raysched gpus` lists those that are known" in done.stderr


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("command", [["gpus"], ["status"], ["status", "--all"], ["queue"]])
def test_no_line_is_longer_than_the_terminal(system: System, command: list[str], columns: int) -> None:
    """Case ui-01."""
    screen = _cells(_on_terminal(system, *command, columns=columns))
    assert max(map(len, screen)) <= columns


def test_colour_is_for_terminals_that_want_it(system: System) -> None:
    """Case ui-02."""
    assert COLOUR.search(_on_terminal(system, "gpus"))
    assert not COLOUR.search(_on_terminal(system, "gpus", NO_COLOR="1"))
    assert ESCAPE not in _on_terminal(system, "gpus", TERM="dumb")


def test_on_a_dumb_terminal_progress_is_lines(system: System, tmp_path: Path) -> None:
    """Case ui-02."""
    file = _file(tmp_path, "name: plain\nentrypoint: sleep 1\narray: 3\nresources: {gpu_fraction: 0.25}\n")
    screen = _on_terminal(system, "submit", file, "--follow", TERM="dumb")
    assert ESCAPE not in screen
    assert _cells(screen)[-2] == "raysched: 3 jobs: 3 succeeded"


def test_on_a_terminal_the_live_table_leaves_the_output_alone(system: System, tmp_path: Path) -> None:
    file = _file(tmp_path, "name: live\nentrypoint: echo kept\narray: 3\nresources: {gpu_fraction: 0.25}\n")
    screen = _on_terminal(system, "submit", file, "--follow")
    assert ESCAPE in screen
    assert all(f"live[{n}] | kept" in screen for n in range(3))


def test_times_are_the_same_instant_in_every_zone(system: System) -> None:
    """Case ui-03."""
    job = system.submit("timed", "true", resources={"gpus": 0})
    _ended(system, job)
    wait_until(lambda: system.client().job(job)[0]["lease"]["state"] == "released", "its lease is released")

    def status(zone: str, *more: str) -> Done:
        return system.run("env", f"TZ={zone}", "raysched", "status", job, *more)

    assert status("Asia/Kolkata", "--json").stdout == status("America/New_York", "--json").stdout
    assert re.search(r"submitted +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+05:30", status("Asia/Kolkata").stdout)


def test_a_plan_changes_nothing(system: System, tmp_path: Path) -> None:
    file = _file(
        tmp_path, "name: planned\nentrypoint: 'true'\nresources: {gpu_fraction: 0.25, isolation: soft}\n"
    )
    before = system.json("status")["jobs"]
    assert "soft, by variables" in system.cli("plan", file).stdout
    assert [plan["outcome"] for plan in system.json("plan", file)["jobs"]] == ["starts"]
    assert system.json("status")["jobs"] == before


def test_a_plan_of_the_impossible_exits_as_the_submission_does(system: System, tmp_path: Path) -> None:
    file = _file(tmp_path, "name: huge\nentrypoint: 'true'\nresources: {gpus: 64}\n")
    assert system.cli("plan", file, check=False).returncode == 80
    done = system.cli("submit", file, check=False)
    assert (done.returncode, done.stdout) == (80, "")
    assert done.stderr.startswith("error: ")


def test_a_plan_refuses_the_working_directory_that_the_submission_does(
    system: System, tmp_path: Path
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("entrypoint: 'true'\nworking_dir: nowhere\n", encoding="utf-8")
    planned, submitted = (system.cli(command, str(file), check=False) for command in ("plan", "submit"))
    assert (planned.returncode, planned.stderr) == (submitted.returncode, submitted.stderr)
    assert "nowhere is not a folder" in planned.stderr


def test_output_of_an_attempt_or_a_node_that_was_not_is_refused(system: System) -> None:
    job = system.submit("once", "true", resources={"gpus": 0})
    _ended(system, job)
    for option, words in (("--attempt", "no attempt 2"), ("--rank", "no node 2")):
        done = system.cli("logs", job, option, "2", check=False)
        assert (done.returncode, done.stdout) == (81, "")
        assert words in done.stderr


def test_a_file_may_come_from_stdin(system: System) -> None:
    spec = "name: piped\nentrypoint: echo through\nworking_dir: null\nresources: {gpus: 0}\n"
    done = subprocess.run(
        ["raysched", "submit", "-", "--follow"],
        input=spec,
        env=system.env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "through\n"


def test_completion_knows_the_jobs(system: System) -> None:
    job = system.submit("completed", "true", resources={"gpus": 0})
    words = {"_TYPER_COMPLETE_ARGS": "raysched status compl", "_RAYSCHED_COMPLETE": "complete_zsh"}
    shown = subprocess.run(
        ["raysched"], env=system.env | words, capture_output=True, text=True, check=True
    ).stdout
    assert "completed" in shown
    _ended(system, job)
