"""The commands about the machines that SSH reaches: vm add, list, check, remove."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from raysched.cli.options import AsJson
from raysched.cli.output import Output, note
from raysched.client import Client, Json
from raysched.errors import RayschedError, Unreachable

app = typer.Typer(
    name="vm",
    help="Use machines over SSH: add, list, check and remove them.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

AT_ONCE = 16
"""How many hosts are checked at a time."""


def complete_host(incomplete: str) -> list[str]:
    """Names of hosts for the shell; none where raysched does not answer."""
    try:
        hosts = Client.from_environment(notice=lambda _: None).hosts()
    except RayschedError:
        return []
    return sorted(host["name"] for host in hosts if host["name"].startswith(incomplete))


HostName = Annotated[
    str, typer.Argument(metavar="HOST", help="The host's name.", autocompletion=complete_host)
]
AcceptNew = Annotated[
    bool,
    typer.Option("--accept-new", help="Add the key of a host that is not known yet to the known hosts."),
]


def _text(metavar: str, help: str) -> Any:
    return typer.Option(metavar=metavar, help=help)


@app.command()
def add(
    host: Annotated[str, typer.Argument(metavar="HOST", help="Its name as a node, and its address.")],
    address: Annotated[str | None, _text("ADDRESS", "Its address, where that is not its name.")] = None,
    user: Annotated[str | None, _text("USER", "The account there.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, metavar="PORT", help="Its SSH port.")] = None,
    key: Annotated[str | None, _text("FILE", "The private key.")] = None,
    jump: Annotated[str | None, _text("HOSTS", "Hosts to go through, with commas between.")] = None,
    python: Annotated[str | None, _text("PATH", "Python 3.10 or later there.")] = None,
    folder: Annotated[str | None, _text("PATH", "Where raysched keeps its files there.")] = None,
    simulate: Annotated[str | None, _text("GPUS", "Make up GPUs there, such as 2xA100-80GB.")] = None,
    cpus: Annotated[str | None, _text("CORES", "How many cores may be given away.")] = None,
    memory: Annotated[str | None, _text("SIZE", "How much memory may be given away, such as 64GB.")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A label that jobs can ask for; may be given several times."),
    ] = None,
    accept_new: AcceptNew = False,
    as_json: AsJson = False,
) -> int:
    """Use a machine over SSH, and say whether it can be reached.

    What is not given comes from the SSH configuration of whoever started raysched. The exit code is 1 if the
    host can't be used yet; it is tried again all the time.
    """
    given = {
        "address": address,
        "user": user,
        "port": port,
        "key": key,
        "jump": jump,
        "python": python,
        "folder": folder,
        "simulate": simulate,
        "cpus": cpus,
        "memory": memory,
        "labels": dict(_pair(text) for text in label) if label else None,
    }
    client, output = Client.from_environment(), Output(as_json)
    client.add_host({"name": host, **{name: value for name, value in given.items() if value is not None}})
    return _check(client, output, [host], accept_new)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"--label {text}: write NAME=VALUE")
    return name, value


@app.command("list")
def list_hosts(as_json: AsJson = False) -> None:
    """Show the machines that SSH reaches, and why one can't be used."""
    from raysched.cli.vm_lines import host_lines

    client, output = Client.from_environment(), Output(as_json)
    hosts = client.hosts()
    output.answer({"hosts": hosts}, host_lines(hosts, output.width), client)


@app.command()
def check(
    hosts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[HOST]...", help="Hosts; all if none is named.", autocompletion=complete_host
        ),
    ] = None,
    accept_new: AcceptNew = False,
    as_json: AsJson = False,
) -> int:
    """Connect to hosts anew and say whether each can be used.

    Where raysched is not up, to those of the configuration. The exit code is 1 if one can't.
    """
    output = Output(as_json)
    try:
        client = Client.from_environment(notice=lambda _: None)
        names = hosts or [host["name"] for host in client.hosts()]
    except Unreachable:
        if "RAYSCHED_ADDRESS" in os.environ:
            raise
        return _check_without(hosts or [], output, accept_new)
    return _check(client, output, names, accept_new)


def _check_without(names: list[str], output: Output, accept_new: bool) -> int:
    """Check hosts of the configuration: nobody else knows of any now."""
    from raysched.cluster.inventory import check as look
    from raysched.specs.config import load_config

    note("raysched is not up: these are the hosts of the configuration")
    return _told(look(load_config(), names, accept_new), output)


def _check(client: Client, output: Output, names: list[str], accept_new: bool) -> int:
    from concurrent.futures import ThreadPoolExecutor

    def one(name: str) -> Json:
        return client.check_host(name, accept_new=accept_new)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        checks = list(pool.map(one, names))
    return _told(checks, output, client)


def _told(checks: list[Json], output: Output, client: Client | None = None) -> int:
    from raysched.cli.vm_lines import check_lines

    output.answer({"checks": checks}, check_lines(checks, output.width), client)
    return int(not all(check["ok"] for check in checks))


@app.command()
def remove(host: HostName, as_json: AsJson = False) -> None:
    """Use a machine no more, once nothing runs there.

    Nothing new starts there until then.
    """
    from rich.text import Text

    client, output = Client.from_environment(), Output(as_json)
    left = client.remove_host(host)
    jobs = next((each["jobs"] for each in left if each["name"] == host), None)
    many = f"{jobs} job has" if jobs == 1 else f"{jobs} jobs have"
    held = "is removed" if jobs is None else f"is cordoned, and removed once its {many} ended"
    output.answer({"hosts": left}, [Text(f"{host} {held}")], client)
