"""The commands about machines that are made on demand: cluster up, status, down."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raysched.cli.options import AsJson
from raysched.cli.output import Output, note
from raysched.cli.vm_commands import AcceptNew
from raysched.client import Client, Json
from raysched.errors import NotFound, Unreachable
from raysched.folders import state_folder

if TYPE_CHECKING:
    from raysched.machines.launcher import Machine
    from raysched.machines.record import Cluster

app = typer.Typer(
    name="cluster",
    help="Make machines with Ray's cluster launcher: up, status, down.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def complete_cluster(incomplete: str) -> list[str]:
    """Names of clusters for the shell."""
    from raysched.machines import record

    return [name for name in record.names(state_folder()) if name.startswith(incomplete)]


@app.command()
def up(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The cluster, as a YAML file of Ray's.")],
    accept_new: AcceptNew = False,
    as_json: AsJson = False,
) -> int:
    """Make the machines that a file names, and use them as hosts, or as nodes of Ray too.

    Those that are there are found again, so it can be run any number of times. The exit code is 1 if one
    can't be used yet.
    """
    from raysched.machines.file import load
    from raysched.machines.up import up as make
    from raysched.machines.up import wait_joined

    asked, client, output = load(file), Client.from_environment(), Output(as_json)
    client.status()  # before anything is made that costs
    cluster, machines = make(state_folder(), asked, client, accept_new, note)
    for host in cluster.hosts.values():
        client.check_host(host, accept_new=accept_new)
    if cluster.ray:
        cluster = wait_joined(state_folder(), cluster, client, note)
    shown = [_shown(cluster, machines, client)]
    return _answer(output, shown, client)


@app.command()
def status(as_json: AsJson = False) -> int:
    """Show the clusters that were made here, and their machines.

    The exit code is 1 if one can't be used.
    """
    from raysched.machines import record
    from raysched.machines.launcher import Launcher

    home = state_folder()
    clusters = [record.read(home, name) for name in record.names(home)]
    client = _client() if clusters else None
    shown = [_shown(cluster, Launcher(cluster).found(), client) for cluster in clusters]
    return _answer(Output(as_json), shown, client)


@app.command()
def down(
    name: Annotated[
        str, typer.Argument(metavar="CLUSTER", help="Its name.", autocompletion=complete_cluster)
    ],
    cancel: Annotated[bool, typer.Option("--cancel", help="End the jobs that run on its machines.")] = False,
    as_json: AsJson = False,
) -> None:
    """End all machines of a cluster, and what was made around them.

    While jobs run there, or may do so as raysched is not up, this is refused without --cancel.
    """
    from rich.text import Text

    from raysched.backends.ssh.boot import FOLDER
    from raysched.machines import record
    from raysched.machines.down import down as end

    home, output = state_folder(), Output(as_json)
    if name not in record.names(home):
        raise NotFound(f"no cluster {name}: `raysched cluster status` shows those that there are")
    cluster = record.read(home, name)
    given = cluster.host.get("folder") or FOLDER if cluster.asked["provider"]["type"] == "local" else ""
    ended = end(home, name, _client(), cancel, note)
    many = "1 machine has" if ended == 1 else f"{ended} machines have"
    output.answer({"cluster": name, "ended": ended}, [Text(f"{name} is down: {many} ended")])
    if given:
        note(f"the machines themselves were given: raysched's files stay on them, in {given}")


def _client() -> Client | None:
    """The running raysched; None where it is not up."""
    try:
        client = Client.from_environment()
        client.status()
    except Unreachable:
        note("raysched is not up: nothing is known of the jobs on these machines")
        return None
    return client


def _shown(cluster: Cluster, machines: list[Machine], client: Client | None) -> Json:
    """A cluster as it is told."""
    hosts = {host["name"]: host for host in client.hosts()} if client else {}
    nodes = {node["name"]: node for node in client.gpus()["nodes"]} if client else {}
    return {
        "name": cluster.name,
        "provider": cluster.asked["provider"]["type"],
        "ray": cluster.ray,
        "idle_timeout_s": cluster.idle_s,
        "machines": [_machine(cluster, each, hosts, nodes) for each in machines],
    }


def _machine(cluster: Cluster, machine: Machine, hosts: dict[str, Json], nodes: dict[str, Json]) -> Json:
    from raysched.machines.up import host_name

    name = host_name(cluster.name, machine.id)
    host, node = hosts.get(name), nodes.get(name)
    told = {"state": "set up" if machine.ready else "made", "reason": "", "jobs": 0}
    if host is not None:
        told = {field: host[field] for field in told}
    if name in cluster.refused:
        told |= {"state": "out", "reason": cluster.refused[name]}
    backends = node["backends"] if node is not None and node["alive"] else []
    place = {"id": machine.id, "type": machine.type, "address": machine.address, "host": name}
    return {**place, "backends": backends, **told}


def _answer(output: Output, clusters: list[Json], client: Client | None) -> int:
    from raysched.cli.cluster_lines import cluster_lines

    output.answer({"clusters": clusters}, cluster_lines(clusters, output.width))
    return int(any(each["state"] == "out" for cluster in clusters for each in cluster["machines"]))
