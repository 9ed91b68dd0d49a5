"""`raysched up` and `raysched down`, on a real Ray."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import System, wait_until

from raysched.cluster import own_ray

pytestmark = pytest.mark.ray
MakeSystem = Callable[..., System]


def state(system: System, job: str) -> str:
    return system.client().job(job)[0]["state"]


def runs(system: System, job: str) -> bool:
    return state(system, job) == "running"


def until(file: Path) -> str:
    """A command line that ends well once the file is there."""
    return f"while ! test -e {file}; do sleep 0.1; done; echo ended well"


def test_the_files_of_a_running_system_are_its_owners_alone(system: System) -> None:
    for name in ("gateway.json", "up.json"):
        assert stat.S_IMODE((system.home / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(system.home.stat().st_mode) == 0o700


def test_a_second_up_is_refused_and_names_the_first(system: System) -> None:
    done = system.cli("up", "--json", check=False)
    assert done.returncode == 83
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "already_up"
    assert system.address in error["message"]


def test_a_second_state_folder_does_not_take_over_the_same_ray(
    system: System, make_system: MakeSystem
) -> None:
    ray = json.loads((system.home / "up.json").read_text())["ray"]
    other = make_system(None)
    stranger = other.cli("up", "--address", ray, check=False)
    assert stranger.returncode == 69
    assert "does not accept the token" in stranger.stderr
    other.env["RAY_AUTH_TOKEN_PATH"] = system.env["RAY_AUTH_TOKEN_PATH"]
    done = other.cli("up", "--address", ray, check=False)
    assert done.returncode == 83
    assert not (other.home / "up.json").exists()
    assert system.client().status()["nodes"] == 1


def test_a_busy_port_is_named_and_nothing_is_started(make_system: MakeSystem) -> None:
    system = make_system()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", system.port))
        taken.listen()
        done = system.cli("up", *system.simulated, check=False)
    assert done.returncode == 84
    assert str(system.port) in done.stderr
    assert "gateway.port" in done.stderr
    assert not system.processes()


def test_a_port_that_was_taken_meanwhile_is_named(system: System) -> None:
    """Between the look at the port and the gateway's start: the answer comes from somebody else."""
    done = system.python("-c", WAIT_FOR_ANOTHER, json.loads((system.home / "up.json").read_text())["ray"])
    assert f"another program has taken {system.address}: end it, or name another --port" in done.stdout


WAIT_FOR_ANOTHER = """
import json, os, sys
from raysched.cluster import system
from raysched.errors import Unreachable
system.READY_S = 0
system.connect(sys.argv[1])
address = json.load(open(os.environ["RAYSCHED_HOME"] + "/gateway.json"))["address"]
try:
    system.wait_ready(address, "the token of this one")
except Unreachable as error:
    print(error)
"""


def test_a_ray_that_was_there_is_used_and_left_as_it_was(make_system: MakeSystem) -> None:
    system = make_system(None)
    system.folder.joinpath("ray-files").mkdir()
    starting = own_ray.spawn(system.folder / "ray-files", 1, system.env)
    try:
        own_ray.wait_started(starting)
        refused = system.cli("up", "--simulate", "9xA30", "--address", starting.address, check=False)
        assert refused.returncode == 78
        assert "--num-gpus=9" in refused.stderr
        answer = system.up()
        assert (answer["gpus"], answer["simulated"]) == (0, False)
        assert answer["ray"]["address"].endswith(starting.address.rpartition(":")[2])
        assert not answer["ray"]["started"]
        job = system.submit("cpu", "sleep 1000", resources={"gpus": 0, "cpus": 1})
        wait_until(lambda: runs(system, job), "the job runs")
        assert system.json("down", "--cancel")["ray"] == "left"
        for what, state_there in (("actors", "ALIVE"), ("placement-groups", "CREATED")):
            listed = system.ray("list", what, "--format=json", "--filter", f"state={state_there}")
            assert listed.stdout.strip() == "No resource in the cluster"
        assert own_ray.alive(starting.own)
    finally:
        own_ray.stop(starting.own)
        starting.process.wait()


@pytest.mark.parametrize(
    ("args", "code", "word"),
    [
        (["--simulate", "2xNOPE"], 78, "NOPE"),
        (["--address", "127.0.0.1:1"], 69, "127.0.0.1:1"),
    ],
)
def test_what_up_can_not_use_is_named(make_system: MakeSystem, args: list[str], code: int, word: str) -> None:
    system = make_system(None)
    done = system.cli("up", *args, check=False)
    assert done.returncode == code
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert not system.processes()


def test_a_state_folder_that_can_not_be_made_is_named(make_system: MakeSystem) -> None:
    system = make_system()
    file = system.folder / "file"
    file.write_text("")
    system.env["RAYSCHED_HOME"] = str(file / "home")
    done = system.cli("up", check=False)
    assert done.returncode == 74
    assert str(file / "home") in done.stderr


def test_down_without_up_says_so(make_system: MakeSystem) -> None:
    done = make_system().cli("down", check=False)
    assert done.returncode == 69
    assert "not up" in done.stderr


@pytest.mark.parametrize(
    ("number", "connected"), [(signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGTERM, True)]
)
def test_an_interrupted_up_leaves_nothing(
    make_system: MakeSystem, number: signal.Signals, connected: bool
) -> None:
    """While Ray starts, and while the system is being made on it."""
    system = make_system()
    up = system.begin("up", *system.simulated)
    reached = (system.home / "up.log").exists if connected else lambda: system.processes("gcs_server")
    wait_until(reached, "Ray starts")
    os.kill(up.pid, number)
    output, errors = up.communicate(timeout=120)
    assert up.returncode == 130, output + errors
    assert "Traceback" not in errors
    assert not (system.home / "up.json").exists()
    wait_until(lambda: not system.processes(), "nothing is left")


def test_up_ends_what_an_up_that_was_killed_had_started(make_system: MakeSystem) -> None:
    system = make_system()
    up = system.begin("up", *system.simulated)
    wait_until(lambda: system.processes("gcs_server"), "Ray starts")
    up.kill()
    up.communicate()
    before = set(system.processes("gcs_server"))
    assert system.json("down")["ray"] in ("died", "stopped")
    wait_until(lambda: not before & set(system.processes()), "the first Ray is gone")


@pytest.fixture(scope="module")
def lasting(_ray: None) -> Iterator[System]:
    """A system that the three tests below start, kill and take down, one after the other. (That `up` goes on
    after all of Ray was killed: `system/test_killed.py`.)"""
    made = System("2xA100-80GB")
    try:
        yield made
    finally:
        made.close()


def up(lasting: System) -> System:
    """It is up, as the test before left it or started now."""
    if not (lasting.home / "up.json").exists():
        lasting.up()
    return lasting


def test_jobs_go_on_over_down_keep_and_the_next_up_finds_them(lasting: System) -> None:
    system = lasting
    answer = system.up()
    assert answer["simulated"]
    assert (answer["nodes"], answer["gpus"]) == (1, 2)
    assert answer["ray"]["started"]
    token = system.token
    go = system.folder / "go"
    kept = [system.submit(backend, until(go), backend=backend) for backend in ("vm", "ray")]
    wait_until(lambda: all(runs(system, job) for job in kept), "the jobs run")
    assert sorted(system.json("down", "--keep")["kept"]) == ["ray", "vm"]
    assert not system.processes("gcs_server")
    system.up()
    assert system.token == token
    assert all(runs(system, job) for job in kept)
    go.touch()
    for job in kept:
        wait_until(lambda job=job: state(system, job) == "succeeded", "the job ends")
        assert b"".join(system.client().logs(job)) == b"ended well\n"
        assert system.client().job(job)[0]["attempt"] == 1


def test_up_makes_actors_that_are_dead_again(lasting: System, tmp_path: Path) -> None:
    system = up(lasting)
    first = json.loads((system.home / "up.json").read_text())
    script = tmp_path / "kill.py"
    script.write_text(
        "import ray\n"
        "ray.init(namespace='raysched', log_to_driver=False)\n"
        "for name in ('gateway', 'ledger'):\n"
        "    ray.kill(ray.get_actor(name), no_restart=True)\n"
    )
    system.python(str(script))
    again = system.up()
    assert again["ray"]["address"] == first["ray"]
    assert system.client().status()["nodes"] == 1


def test_down_refuses_while_jobs_run_and_ends_them_when_told(lasting: System) -> None:
    system = up(lasting)
    job = system.submit("busy", "sleep 1000")
    waits = system.submit("waits", "sleep 1000", resources={"gpus": 2})
    wait_until(lambda: runs(system, job), "the job runs")
    refused = system.cli("down", check=False)
    assert refused.returncode == 82
    assert "busy" in refused.stderr
    assert "waits" not in refused.stderr
    assert runs(system, job)
    assert state(system, waits) == "waiting"
    assert sorted(system.json("down", "--cancel")["cancelled"]) == ["busy", "waits"]
    wait_until(lambda: not system.processes(), "nothing is left")
    assert not (system.home / "up.json").exists()


def test_the_scripts_of_ray_jobs_use_our_python_and_find_the_gateway(system: System, tmp_path: Path) -> None:
    (tmp_path / "look.py").write_text(
        "import ray\nray.init()\nprint('GPUs:', ray.cluster_resources()['GPU'])\n"
    )
    for command in (["python", "look.py"], ["raysched", "status"]):
        done = system.ray("job", "submit", "--working-dir", str(tmp_path), "--", *command)
        assert "GPUs: 2" in done.stdout or "2 GPUs" in done.stdout, done.stdout + done.stderr


def test_doctor_finds_a_running_system_well(system: System) -> None:
    checks = {check["name"]: check for check in system.json("doctor", check=False)["checks"]}
    for name in ("python", "ray package", "state folder", "ray", "gateway", "clock"):
        assert checks[name]["ok"], checks[name]
    assert system.address in checks["gateway"]["detail"]


def test_doctor_names_a_busy_port_and_a_dead_ray(make_system: MakeSystem) -> None:
    system = make_system()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", system.port))
        taken.listen()
        done = system.cli("doctor", "--json", check=False)
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1
    assert not checks["gateway"]["ok"]
    assert str(system.port) in checks["gateway"]["hint"]
