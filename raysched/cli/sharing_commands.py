"""The commands about how a Kubernetes cluster shares its GPUs: k8s sharing, and sharing set."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from raysched.cli.node_commands import EmptyDir, Force, patience_of, tell_who_stays
from raysched.cli.options import AsJson
from raysched.cli.output import Output, agreed, note
from raysched.cli.words import resources
from raysched.client import Client, Json
from raysched.errors import Conflict, SpecError

POLL_S = 1.0

ClusterOption = Annotated[
    str | None, typer.Option("--cluster", metavar="NAME", help="Which one, where there are several.")
]

app = typer.Typer(
    name="sharing",
    help="Show what shares the GPUs; `sharing set` changes it.",
    invoke_without_command=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def sharing(context: typer.Context, cluster: ClusterOption = None, as_json: AsJson = False) -> None:
    """Show what shares the GPUs, and what requests would become."""
    if context.invoked_subcommand is not None:
        return
    from raysched.cli.k8s_lines import sharing_lines

    client, output = Client.from_environment(), Output(as_json)
    answer = client.sharing(cluster)
    output.answer(answer, sharing_lines(answer, output.width), client)


def _replicas(how: str) -> object:
    return typer.Option(min=2, max=64, metavar="N", help=f"N pods share each GPU, by {how}.")


@app.command("set")
def set_sharing(
    nodes: Annotated[list[str], typer.Argument(metavar="NODE...", help="Nodes of the cluster.")],
    whole: Annotated[bool, typer.Option("--whole", help="Each pod has whole GPUs.")] = False,
    time_slicing: Annotated[int | None, _replicas("taking turns")] = None,
    mps: Annotated[int | None, _replicas("MPS, which limits their memory")] = None,
    mig: Annotated[
        str | None, typer.Option(metavar="LAYOUT", help="A layout of NVIDIA's MIG manager: all-1g.10gb.")
    ] = None,
    end: Annotated[
        bool, typer.Option("--drain", help="End those first who use the GPUs, as `node drain` does.")
    ] = False,
    force: Force = False,
    emptydir: EmptyDir = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="How long to wait for a node.")] = "15m",
    plan: Annotated[bool, typer.Option("--plan", help="Show what would be done, and do nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Share the GPUs of nodes in another way, one node after the other.

    A node is cordoned, NVIDIA's device plugin or MIG manager is told, and once the node says that it is so
    it is used again. While its GPUs are in use this is refused, unless --drain ends who uses them.
    """
    from raysched.cli.k8s_lines import resharing_lines

    to, patience = _wanted(whole, time_slicing, mps, mig), patience_of(timeout)
    client, output = Client.from_environment(), Output(as_json)
    how = {"drain": end, "force": force, "delete_emptydir_data": emptydir}
    planned = [client.share(node, to, **how, plan=True) for node in nodes]
    if plan:
        output.answer({"nodes": planned}, resharing_lines(planned, output.width), client)
        return
    _agreed(planned, output, yes)
    done = [_until_done(client, node, to, how, patience) for node in nodes]
    output.answer({"nodes": done}, resharing_lines(done, output.width), client)


def _wanted(whole: bool, time_slicing: int | None, mps: int | None, mig: str | None) -> Json:
    asked: list[Json] = [
        *([{"kind": "whole"}] if whole else []),
        *([{"kind": "time-slicing", "replicas": time_slicing}] if time_slicing is not None else []),
        *([{"kind": "mps", "replicas": mps}] if mps is not None else []),
        *([{"kind": "mig", "layout": mig}] if mig is not None else []),
    ]
    if len(asked) != 1:
        raise SpecError("say one of --whole, --time-slicing N, --mps N and --mig LAYOUT")
    return asked[0]


def _agreed(planned: list[Json], output: Output, yes: bool) -> None:
    """Show what is about to be done, and ask. Raises Conflict where nobody agrees."""
    from raysched.cli.k8s_lines import resharing_lines

    todo = [one for one in planned if one["state"] != "done"]
    if yes or not todo:
        return
    import sys

    if not sys.stdin.isatty():
        raise Conflict("nothing was changed: --plan shows what would be done, --yes does it")
    for line in resharing_lines(todo, output.width):
        print(line.plain, file=sys.stderr)
    if not agreed("Do this?"):
        raise Conflict("nothing was changed")


def _until_done(client: Client, node: str, to: Json, how: dict[str, bool], patience: float) -> Json:
    until, told = time.monotonic() + patience, ""
    while (look := client.share(node, to, **how, plan=False))["state"] != "done":
        if time.monotonic() >= until:
            raise Conflict(f"{node} is not done, and stays cordoned: {_waits(look)}; ask again to go on")
        told = tell_who_stays(told, look["left"]) or told
        if look["state"] == "waiting" and told != "waits":
            note(f"{node}: waiting for the device plugin to offer {resources(look['wanted'])}")
            told = "waits"
        time.sleep(POLL_S)
    return look


def _waits(look: Json) -> str:
    if look["left"]:
        return "its GPUs are in use by " + ", ".join(one["display"] for one in look["left"])
    return f"it offers {resources(look['offers'])}, and should offer {resources(look['wanted'])}"
