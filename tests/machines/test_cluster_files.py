"""The file of a cluster, its record, and a cluster of given machines while raysched is not up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raysched.errors import ConfigError, Conflict, NotFound, RayschedError
from raysched.machines import record
from raysched.machines.down import down
from raysched.machines.file import load
from raysched.machines.launcher import Launcher, resolve
from raysched.machines.up import host_name

LAB = {
    "cluster_name": "lab",
    "provider": {"type": "local", "head_ip": "127.0.0.1", "worker_ips": ["127.0.0.2", "127.0.0.3"]},
    "auth": {"ssh_user": "ana"},
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ray's provider keeps its state there too."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    return tmp_path


def written(home: Path, content: dict[str, Any]) -> Path:
    path = home / "cluster.yaml"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"docker": {"image": "a"}},
            "docker: not used by raysched; take it out, and say `image:` in the jobs",
        ),
        ({"provider": None}, "this is no cluster file of Ray"),
        ({"cluster_name": "a/b"}, "'a/b' is no name of a host"),
        ({"raysched": {"pyton": "a"}}, "raysched: pyton is none of ray, port, jump"),
        ({"raysched": {"ray": "yes"}}, "raysched.ray: must be true or false"),
        ({"raysched": {"cpus": "many"}}, "cpus: must be a number of cores"),
        ({"auth": {"ssh_proxy_command": "nc"}}, "auth.ssh_proxy_command: not used"),
    ],
)
def test_what_would_not_be_done_is_refused(home: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(written(home, LAB | change))
    assert str(home / "cluster.yaml") in str(error.value)
    assert said in str(error.value)


def test_setup_commands_are_those_of_the_file_and_none_of_rays(home: Path) -> None:
    more = {"setup_commands": ["one"], "worker_setup_commands": ["two"], "initialization_commands": ["zero"]}
    cluster = load(written(home, LAB | more | {"idle_timeout_minutes": 2}))
    assert cluster.setup == {"head": ["zero", "one"], "worker": ["zero", "one", "two"]}
    assert cluster.idle_s == 120


def test_what_ray_says_against_a_file_is_told(home: Path) -> None:
    with pytest.raises(RayschedError, match=r"the provider local of the cluster lab says no: .*head_ip"):
        resolve(load(written(home, LAB | {"provider": {"type": "local"}})))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Ray's provider leaves files to the collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_machines_are_found_again_by_their_tags_alone_and_made_once(home: Path) -> None:
    cluster = load(written(home, LAB)).write(home)
    launcher = Launcher(cluster)
    for (kind, type), count in launcher.wanted().items():
        launcher.make(kind, type, count)
    # Whoever made them died here: nothing but the record of what was asked for is left.
    found = Launcher(record.read(home, "lab")).found()
    assert sorted(each.id for each in found) == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    assert not any(each.ready for each in found)
    with pytest.raises(Conflict, match="raysched is not up, and jobs may run"):
        down(home, "lab", None, False, print)
    assert down(home, "lab", None, True, print) == 3
    assert launcher.found() == []
    with pytest.raises(NotFound, match="no cluster lab"):
        record.read(home, "lab")


def test_only_one_changes_a_cluster_at_a_time(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raysched.machines.down.PATIENCE_S", 0)
    replace(load(written(home, LAB)), hosts={"a": "lab-a"}).write(home)
    with record.exclusive(home, "lab"), pytest.raises(Conflict, match="somebody changes the cluster lab"):
        down(home, "lab", None, True, print)


def test_a_host_is_named_by_its_machine_whatever_that_is_called() -> None:
    assert host_name("gpus", "i-0abc") == "gpus-i-0abc"
    assert host_name("gpus", "a:b/c") == "gpus-a-b-c"
    assert len(host_name("gpus", "x" * 100)) == 63
