"""How `up` starts a Ray of its own."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from running import System, wait_until

from raysched.cluster import own_ray


def test_ray_gets_an_interpreter_without_a_space_in_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray splits its workers' command lines at spaces, and a checkout may lie in `My Projects`."""
    checkout = tmp_path / "My Projects" / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(checkout)], check=True)
    monkeypatch.setattr(sys, "executable", str(checkout / "bin" / "python"))
    monkeypatch.setattr(sys, "prefix", str(checkout))
    for _ in range(2):
        python = own_ray._python(tmp_path)
        assert " " not in python
        shown = subprocess.run([python, "-c", "print('runs')"], capture_output=True, text=True, check=True)
        assert shown.stdout == "runs\n"


def test_the_usual_ports_are_taken_all_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another Ray that is starting has some of its ports already, and will take the others in a moment."""
    usual = own_ray._free_ports(usual=False)
    monkeypatch.setattr(own_ray, "PORTS", usual)
    assert own_ray._free_ports(usual=True) == usual
    with socket.create_server(("127.0.0.1", usual["port"])):
        assert not set(usual.values()) & set(own_ray._free_ports(usual=True).values())


def _gcs_port(system: System) -> int:
    return int(json.loads((system.home / "up.json").read_text())["ray"].rpartition(":")[2])


@pytest.fixture
def taken(system: System, monkeypatch: pytest.MonkeyPatch) -> int:
    """The GCS port of another Ray, which is taken for a free one where the usual ports are wanted."""
    port = _gcs_port(system)
    choose = own_ray._free_ports
    monkeypatch.setattr(
        own_ray, "_free_ports", lambda usual: choose(False) | ({"port": port} if usual else {})
    )
    return port


@pytest.mark.ray
@pytest.mark.parametrize("token", ["the other's", "its own"])
def test_a_port_that_another_ray_took_is_noticed(
    system: System, make_system: Callable[..., System], taken: int, token: str
) -> None:
    ours = make_system()
    if token == "the other's":
        ours.env["RAY_AUTH_TOKEN_PATH"] = system.env["RAY_AUTH_TOKEN_PATH"]
    starting = own_ray.spawn(ours.folder, 2, ours.env)
    try:
        with pytest.raises(own_ray.RayLost):
            own_ray.wait_started(starting)
    finally:
        own_ray.stop(starting.own)
        starting.process.wait()
    assert not own_ray.processes(starting.own)


@pytest.mark.ray
def test_up_tries_other_ports_where_another_ray_took_them(
    system: System, make_system: Callable[..., System]
) -> None:
    ours = make_system()
    port = _gcs_port(system)
    up = (
        "import sys\n"
        "from raysched.cli.main import main\n"
        "from raysched.cluster import own_ray\n"
        "choose = own_ray._free_ports\n"
        f"own_ray._free_ports = lambda usual: choose(False) | ({{'port': {port}}} if usual else {{}})\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    answer = json.loads(ours.python("-c", up, "up", *ours.simulated, "--json").stdout)
    assert not answer["ray"]["address"].endswith(f":{port}")
    assert ours.client().status()["nodes"] == 1
    assert system.client().status()["nodes"] == 1


@pytest.mark.ray
def test_up_tries_again_where_its_ray_is_lost(make_system: Callable[..., System]) -> None:
    """Ray ends a process that has lost its GCS for a minute; `up` cleans up and starts another Ray."""
    ours = make_system()
    up = ours.begin("up", *ours.simulated, "--json")
    wait_until((ours.home / "up.log").exists, "the first Ray runs")
    lost = ours.kill("gcs_server")
    output, errors = up.communicate(timeout=180)
    assert up.returncode == 0, output + errors
    assert "rpc_client" not in errors
    assert ours.client().status()["nodes"] == 1
    assert lost
    assert not set(lost) & set(ours.processes())
