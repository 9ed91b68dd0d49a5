"""Machines made on demand: a system that makes hosts with Ray's own cluster launcher, over real sshds."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from cloud import REGION, Cloud, cloud
from running import System, wait_until
from ssh_hosts import HostWorld, ip, world

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def hosts() -> Iterator[HostWorld]:
    with world() as made:
        yield made


@pytest.fixture(scope="module", name="cloud")
def _cloud() -> Iterator[Cloud]:
    with cloud() as made:
        yield made


@pytest.fixture(scope="module")
def system(_ray: None, hosts: HostWorld, cloud: Cloud) -> Iterator[System]:
    """It has no host at first."""
    running = System("1xA30")
    running.env |= {**cloud.env, "HOME": str(hosts.home)}
    running.env.pop("SSH_AUTH_SOCK", None)
    try:
        running.up()
        yield running
    finally:
        running.close()


def _cluster_file(
    system: System, hosts: HostWorld, name: str, own: Mapping[str, Any] = {}, /, **fields: Any
) -> str:
    """The file of a cluster whose machines have an L4 each, and these fields of raysched's."""
    own = {"python": "/usr/bin/python3", "simulate": "1xL4", "cpus": 4, **own}
    auth = {"ssh_user": "user", "ssh_private_key": str(hosts.key)}
    path = system.folder / f"{name}.yaml"
    path.write_text(json.dumps({"cluster_name": name, "auth": auth, "raysched": own, **fields}))
    return str(path)


def _given(hosts: HostWorld, *names: str) -> dict[str, Any]:
    """Ray's provider for machines that are there."""
    for name in names:
        hosts.add(name, alone=True)
    first, *others = (hosts.hosts[name].address for name in names)
    return {"type": "local", "head_ip": first, "worker_ips": others}


def _machines(system: System, name: str) -> dict[str, str]:
    """The hosts of a cluster and their states."""
    clusters = system.json("cluster", "status", check=False)["clusters"]
    (found,) = [each for each in clusters if each["name"] == name]
    return {each["host"]: each["state"] for each in found["machines"]}


def test_a_cluster_goes_up_after_a_crash_in_the_middle_runs_jobs_and_leaves_nothing(
    system: System, hosts: HostWorld, submit: Callable[..., str]
) -> None:
    """Ray's local provider. `cluster up` is killed while the machines are being set up."""
    go = hosts.folder / "go"
    file = _cluster_file(
        system,
        hosts,
        "lab",
        provider=_given(hosts, "delta", "epsilon"),
        setup_commands=[f"test -e {go} || sleep 600", "echo set up >> ~/marks"],
    )
    first = system.begin("cluster", "up", file)
    wait_until(lambda: len(hosts.processes("sleep", "600", "test -e")) >= 2, "both are being set up")
    first.kill()
    first.communicate()
    assert set(_machines(system, "lab").values()) == {"made"}
    go.touch()
    (made,) = system.json("cluster", "up", file)["clusters"]
    assert [each["state"] for each in made["machines"]] == ["ready", "ready"]
    assert system.cli("cluster", "up", file).stdout.count("ready") == 2  # again does no harm
    for name in ("delta", "epsilon"):
        marks = hosts.hosts[name].folder / "homes" / "user" / "marks"
        assert marks.read_text() == "set up\n"

    job = submit("hostname; exec sleep 4712", "L4")
    system.until(job, "running")
    refused = system.cli("cluster", "down", "lab", check=False)
    assert f"1 job runs on machines of lab ({job})" in refused.stderr
    assert refused.returncode == 82
    assert set(_machines(system, "lab").values()) == {"ready"}
    down = system.cli("cluster", "down", "lab", "--cancel", "--json")
    assert json.loads(down.stdout) == {"cluster": "lab", "ended": 2}
    assert "files stay on them, in ~/.local/state/raysched-host" in down.stderr
    wait_until(lambda: not hosts.processes("python3"), "no process of raysched is left there")
    assert system.ended(job)["state"] == "cancelled"
    assert {host["name"] for host in system.client().hosts()} == set()
    assert not hosts.processes("sleep 4712")
    assert system.cli("cluster", "status").stdout.startswith("no cluster")


def test_machines_in_a_cloud_are_made_used_and_ended_when_idle(
    system: System, hosts: HostWorld, cloud: Cloud, submit: Callable[..., str]
) -> None:
    """Ray's provider for AWS, and moto's EC2, whose machines have the addresses of hosts of ours."""
    for name in ("zeta", "eta"):
        hosts.add(name, alone=True)
    subnet = cloud.subnet(f"{hosts.net}.0/24")

    def type_of(name: str, size: str, **fields: Any) -> dict[str, Any]:
        address = hosts.hosts[name].address
        network = {"SubnetIds": [subnet], "PrivateIpAddress": address, "KeyName": "ours"}
        return {"node_config": {"InstanceType": size, "ImageId": "ami-1", **network}, **fields}

    head, worker = type_of("zeta", "m5.large"), type_of("eta", "g4dn.xlarge", min_workers=1)
    head["node_config"]["IamInstanceProfile"] = cloud.profile("ours")
    provider = {"type": "aws", "region": REGION, "availability_zone": f"{REGION}a", "use_internal_ips": True}
    fields = {
        "provider": provider,
        "max_workers": 1,
        "head_node_type": "head",
        "available_node_types": {"head": head, "gpu": worker},
    }
    file = _cluster_file(system, hosts, "gpus", **fields)
    (made,) = system.json("cluster", "up", file)["clusters"]
    assert {each["type"]: each["state"] for each in made["machines"]} == {"head": "ready", "gpu": "ready"}
    assert cloud.machines() == {"running": 2}
    job = submit("hostname", "L4")
    assert system.ended(job)["exit_code"] == 0

    file = _cluster_file(system, hosts, "gpus", idle_timeout_minutes=0.02, **fields)
    system.cli("cluster", "up", file)
    assert cloud.machines() == {"running": 2}, "none is made that is there"
    wait_until(lambda: cloud.machines() == {"terminated": 2}, "the idle ones are ended", 120)
    wait_until(lambda: {host["name"] for host in system.client().hosts()} == set(), "they are no hosts")
    assert cloud.groups() == {"ray-autoscaler-gpus"}
    assert system.json("cluster", "down", "gpus") == {"cluster": "gpus", "ended": 0}
    assert cloud.groups() == set()


@pytest.mark.timeout(600)  # Ray starts there twice, which takes long on a busy machine
def test_a_made_machine_joins_ray_is_one_node_and_leaves_it_before_it_ends(
    system: System, hosts: HostWorld, submit: Callable[..., str]
) -> None:
    """A real raylet on the host, which shares nothing with this machine but the files."""
    theta = hosts.add("theta", alone=True)
    ip("-n", theta.space, "route", "add", "default", "via", f"{hosts.net}.1")  # to whatever Ray says it is
    provider = {"type": "local", "head_ip": theta.address, "worker_ips": []}
    own = {"ray": True, "python": sys.executable, "simulate": "1xH100-80GB", "memory": "4GB"}
    file = _cluster_file(system, hosts, "rays", own, provider=provider)
    first = system.begin("cluster", "up", file)
    wait_until(lambda: theta.processes("ray_node", "join"), "it is about to join")
    first.kill()
    first.communicate()
    (made,) = system.json("cluster", "up", file)["clusters"]
    (machine,) = made["machines"]
    assert (machine["state"], machine["backends"]) == ("ready", ["ray", "vm"]), machine
    name = machine["host"]

    half = {"gpu_fraction": 0.5}
    told = 'echo "$(hostname) $CUDA_VISIBLE_DEVICES"; exec sleep 4714'
    jobs = [submit(told, "H100", resources=half, backend=backend) for backend in ("ray", "vm")]
    lines = {wait_until(lambda job=job: system.output(job), f"{job} runs") for job in jobs}
    (node,) = [node for node in system.client().gpus()["nodes"] if node["name"] == name]
    assert lines == {f"theta {node['gpus'][0]['uuid']}\n"}
    assert len(node["gpus"][0]["tenants"]) == 2
    refused = system.cli("cluster", "down", "rays", check=False)
    assert "2 jobs run on machines of rays" in refused.stderr
    for job in jobs:
        system.client().cancel(job)

    idle = _cluster_file(system, hosts, "rays", own, provider=provider, idle_timeout_minutes=0.02)
    system.cli("cluster", "up", idle)
    wait_until(lambda: not _nodes_named(system, name), "it is idle, and no node any more", 120)
    wait_until(lambda: _machines(system, "rays") == {}, "and ended", 120)
    assert not theta.processes("ray")

    file = _cluster_file(system, hosts, "rays", own, provider=provider)  # it is idle for a moment
    system.cli("cluster", "up", file)
    job = submit(told, "H100", backend="ray")
    wait_until(lambda: system.output(job), "it runs")
    system.cli("cluster", "down", "rays", "--cancel")
    assert system.ended(job)["state"] == "cancelled"
    assert not _nodes_named(system, name)
    wait_until(lambda: not theta.processes("python"), "nothing of raysched or Ray is left there")


def _nodes_named(system: System, name: str) -> list[dict[str, Any]]:
    return [node for node in system.client().gpus()["nodes"] if node["name"] == name]
