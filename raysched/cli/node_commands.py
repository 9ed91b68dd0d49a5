"""The commands about nodes, whichever backend reaches them: node cordon, uncordon, drain, label."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.text import Text

from raysched.cli.options import AsJson
from raysched.cli.output import Output, note
from raysched.client import Client, Json
from raysched.errors import RayschedError, SpecError

POLL_S = 0.5

app = typer.Typer(
    name="node",
    help="Take nodes out of use, and back: cordon, drain, label.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def complete_node(incomplete: str) -> list[str]:
    """Names of nodes for the shell; none where raysched does not answer."""
    try:
        nodes = Client.from_environment(notice=lambda _: None).gpus()["nodes"]
    except RayschedError:
        return []
    return sorted(node["name"] for node in nodes if node["name"].startswith(incomplete))


NodeName = Annotated[
    str,
    typer.Argument(
        metavar="NODE", help="The node's name, as `raysched gpus` shows it.", autocompletion=complete_node
    ),
]
Force = Annotated[bool, typer.Option("--force", help="End pods too that nothing makes again.")]
EmptyDir = Annotated[
    bool,
    typer.Option("--delete-emptydir-data", help="End pods too whose data in an emptyDir is lost."),
]


@app.command()
def cordon(node: NodeName, as_json: AsJson = False) -> None:
    """Start nothing new on a node; what runs there goes on."""
    client, output = Client.from_environment(), Output(as_json)
    answer = client.cordon(node)
    jobs = {tenant["job"] for gpu in answer["gpus"] for tenant in gpu["tenants"]}
    held = f"{len(jobs)} job{'s' * (len(jobs) != 1)} still there" if jobs else "nobody is on its GPUs"
    output.answer(answer, [Text(f"{node} is cordoned: {held}")], client)


@app.command()
def uncordon(node: NodeName, as_json: AsJson = False) -> None:
    """Use a node again."""
    client, output = Client.from_environment(), Output(as_json)
    answer = client.cordon(node, on=False)
    output.answer(answer, [Text(f"{node} is used again")], client)


@app.command()
def drain(
    node: NodeName,
    force: Force = False,
    emptydir: EmptyDir = False,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="How long to wait for those who stay.")] = "5m",
    plan: Annotated[bool, typer.Option("--plan", help="Show who would leave, and do nothing.")] = False,
    as_json: AsJson = False,
) -> int:
    """Cordon a node, and have what runs there leave.

    Jobs that may be stopped wait again and start elsewhere. On Kubernetes the pods of others are evicted too,
    as their PodDisruptionBudgets allow. Who may not leave is told, and waited for; the exit code is 1 if
    somebody is left. `raysched node uncordon` uses the node again.
    """
    from raysched.cli.node_lines import drain_lines

    until, told = time.monotonic() + patience_of(timeout), ""
    client, output = Client.from_environment(), Output(as_json)
    while True:
        answer = client.drain(node, force=force, delete_emptydir_data=emptydir, plan=plan)
        if plan or not answer["left"] or time.monotonic() >= until:
            break
        told = tell_who_stays(told, answer["left"])
        time.sleep(POLL_S)
    output.answer(answer, drain_lines(node, answer["left"], output.width, plan), client)
    return int(bool(answer["left"]) and not plan)


def patience_of(timeout: str) -> float:
    """The seconds of a `--timeout`. Raises SpecError."""
    from raysched.specs.units import parse_duration

    try:
        return parse_duration(timeout) / 1000
    except ValueError as error:
        raise SpecError(f"--timeout: {error}") from None


def tell_who_stays(told: str, left: Sequence[Json]) -> str:
    """Say who stays and why, where that is not what was `told` last; what is told now."""
    why = "; ".join(f"{one['display']} stays: {one['why']}" for one in left if one["why"])
    if why and why != told:
        note(why)
    return why or told


@app.command()
def label(
    node: NodeName,
    labels: Annotated[list[str], typer.Argument(metavar="KEY=VALUE|KEY-", help="Give it, or take it away.")],
    as_json: AsJson = False,
) -> None:
    """Give a node of a Kubernetes cluster labels, or take some away."""
    changes: dict[str, str | None] = {}
    for text in labels:
        key, equals, value = text.partition("=")
        if not key or (not equals and not key.endswith("-")):
            raise SpecError(f"{text} is no label: write KEY=VALUE, or KEY- to take it away")
        changes[key if equals else key[:-1]] = value if equals else None
    client, output = Client.from_environment(), Output(as_json)
    found = client.label(node, changes)
    output.answer(
        {"name": node, "labels": found}, [Text(f"{key}={value}") for key, value in sorted(found.items())]
    )
