"""The command as a whole process: help, errors, exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import samples
import typer.main
from scripted import Step, answer, pieces, scripted

from raysched.cli.main import PANELS, app, name_of
from raysched.errors import NotFound, Refused, SpecError, Unauthorized, Unreachable

COMMANDS = [name_of(command) for commands in PANELS.values() for command in commands]
STATUS = answer(samples.status())


def _run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY", "COLUMNS"))}
    command = [sys.executable, "-c", "from raysched.cli.entry import run; run()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=kept | variables)


def _against(*steps: Step, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    with scripted(*steps) as server:
        return _run(*arguments, RAYSCHED_ADDRESS=server.address, RAYSCHED_TOKEN="secret")


def test_help_has_each_command_on_one_line_of_80_cells() -> None:
    lines = _run("--help", COLUMNS="80").stdout.splitlines()
    assert all(len(line) <= 80 and "..." not in line for line in lines if not line.startswith("Usage"))
    for name in COMMANDS:
        assert any(re.match(rf"  {name} +[A-Z].*\.$", line) for line in lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_json_and_help_on_every_option(name: str) -> None:
    """And so does each command of a group."""
    named = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    for command in getattr(named, "commands", {"": named}).values():
        assert "--json" in [option for parameter in command.params for option in parameter.opts]
        assert all(parameter.help for parameter in command.params)


def test_without_a_command_the_help_is_shown() -> None:
    assert _run().stdout == _run("--help").stdout


def test_an_unknown_command_is_a_usage_error_with_a_suggestion() -> None:
    done = _run("stats")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: No such command 'stats'. Did you mean 'status'? See `raysched --help`.\n"


def test_an_unknown_option_is_a_usage_error_in_json_too() -> None:
    done = _run("status", "--jason", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "usage"


def test_not_being_up_is_one_sentence_and_its_own_exit_code(tmp_path: Path) -> None:
    done = _run("status", RAYSCHED_HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (Unreachable.exit_code, "")
    assert done.stderr.startswith("error: raysched is not up here")
    assert len(done.stderr.splitlines()) == 1


def test_an_error_in_json_is_on_stdout(tmp_path: Path) -> None:
    done = _run("queue", "--json", RAYSCHED_HOME=str(tmp_path))
    assert (done.returncode, done.stderr) == (Unreachable.exit_code, "")
    assert json.loads(done.stdout)["error"]["code"] == "unreachable"


def test_a_wrong_token_has_its_own_exit_code() -> None:
    assert _against(answer({}, "403 Forbidden"), arguments=["queue"]).returncode == Unauthorized.exit_code


def test_an_unknown_job_has_its_own_exit_code() -> None:
    error = answer({"error": {"code": "not_found", "message": "no job x"}}, "404 Not Found")
    done = _against(error, arguments=["status", "x"])
    assert (done.returncode, done.stderr) == (NotFound.exit_code, "error: no job x\n")


def test_all_problems_of_a_file_are_listed(tmp_path: Path) -> None:
    """Case spec-05: the line and the field are named, and nothing is submitted."""
    file = tmp_path / "twice.yaml"
    file.write_text(
        "name: twice\nentrypoint: x\nresources:\n  gpu_memory: 8GB\n  gpu_memory: 40GB\n  gpus: all\n"
    )
    done = _run("submit", str(file), RAYSCHED_ADDRESS="http://127.0.0.1:1")
    assert done.returncode == SpecError.exit_code
    assert "twice.yaml:5" in done.stderr
    assert "gpu_memory" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_fault_of_ours_shows_no_traceback_unless_asked_for() -> None:
    broken = answer({"nodes": 3})
    done = _against(broken, arguments=["gpus"])
    assert done.returncode == 70
    assert re.fullmatch(
        r"error: raysched itself failed \(.+\); set RAYSCHED_DEBUG=1 to see where\n", done.stderr
    )


def test_in_a_pipe_there_are_no_escape_codes_and_no_cut_ids() -> None:
    """Cases ui-01 and ui-02."""
    jobs = [samples.job(display="x" * 60), *samples.array(["running"] * 3)]
    done = _against(STATUS, answer({"jobs": jobs}), STATUS, arguments=["status"])
    assert all(job["id"] in done.stdout for job in jobs)
    assert not {"\x1b", "\r", "\b", "…"} & set(done.stdout + done.stderr)


def test_json_is_the_answer_of_the_api_and_says_whether_gpus_are_simulated() -> None:
    simulated = answer(samples.status() | {"simulated": True})
    done = _against(answer({"waiting": [samples.waiting()]}), simulated, arguments=["queue", "--json"])
    assert json.loads(done.stdout) == {"simulated": True, "waiting": [samples.waiting()]}


def test_in_text_a_notice_says_that_gpus_are_simulated() -> None:
    simulated = answer(samples.status() | {"simulated": True})
    done = _against(answer({"waiting": []}), simulated, arguments=["queue"])
    assert (done.stdout, done.stderr) == ("nothing waits\n", "raysched: the GPUs are simulated\n")


def test_output_is_printed_byte_for_byte() -> None:
    """Case ui-02: a job that prints colours keeps them."""
    coloured = b"\x1b[31mred\x1b[0m\r\xff\n"
    with scripted(answer({"jobs": [samples.job()]}), pieces(coloured)) as server:
        command = [sys.executable, "-c", "from raysched.cli.entry import run; run()", "logs", "embed"]
        env = {**os.environ, "RAYSCHED_ADDRESS": server.address, "RAYSCHED_TOKEN": "x"}
        assert subprocess.run(command, capture_output=True, check=True, env=env).stdout == coloured


def test_the_output_of_an_array_is_marked() -> None:
    jobs = samples.array(["succeeded", "succeeded"])
    done = _against(answer({"jobs": jobs}), pieces(b"a\nb"), pieces(b"c\n"), arguments=["logs", "hpo"])
    assert done.stdout == "hpo[0] | a\nhpo[0] | b\nhpo[1] | c\n"


def test_ctrl_c_while_the_command_is_being_imported_shows_no_traceback() -> None:
    begin = (
        "import os, signal, sys\n"
        "from raysched.cli.entry import run\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'typer':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "run()"
    )
    done = subprocess.run(
        [sys.executable, "-c", begin, "--help"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_ctrl_c_while_an_object_is_finalised_ends_the_command_all_the_same() -> None:
    """Python drops an exception that comes there: the command would go on, for ever if it follows a job."""
    begin = (
        "import os, signal, sys, time\n"
        "from raysched.cli import entry, main\n"
        "class Stream:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "def forever():\n"
        "    Stream()\n"
        "    time.sleep(600)\n"
        "main.app.command()(forever)\n"
        "entry.run()"
    )
    done = subprocess.run(
        [sys.executable, "-c", begin, "forever"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_reader_that_has_enough_is_no_error() -> None:
    shell = f"{sys.executable} -c 'from raysched.cli.entry import run; run()' schema | head -n 1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_a_plan_that_is_refused_exits_as_a_refusal(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("entrypoint: 'true'\n")
    refused = answer({"jobs": [samples.plan(outcome="refused", why="no node has a GPU", places=[])]})
    done = _against(refused, STATUS, arguments=["plan", str(file)])
    assert done.returncode == Refused.exit_code
    assert "no node has a GPU" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_completion(shell: str) -> None:
    done = _run(
        "--show-completion", shell, SHELL=f"/bin/{shell}", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )
    assert "raysched" in done.stdout
