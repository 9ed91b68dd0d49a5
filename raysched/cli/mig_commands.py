"""The commands about MIG: how each GPU is cut, and to cut one."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from raysched.cli.options import AsJson
from raysched.cli.output import Output, note
from raysched.client import Client, Json

POLL_S = 0.3

app = typer.Typer(
    name="mig",
    help="Show how GPUs are cut by MIG; `mig set` cuts one.",
    invoke_without_command=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def mig(context: typer.Context, as_json: AsJson = False) -> None:
    """Show each GPU that can be cut: its grid, who has which instance, and what it still has room for."""
    if context.invoked_subcommand is not None:
        return
    from raysched.cli.mig_grid import mig_lines

    client, output = Client.from_environment(), Output(as_json)
    answer = client.gpus()
    for node in answer["nodes"]:
        node["gpus"] = [gpu for gpu in node["gpus"] if gpu["mig"] is not None]
    output.answer(answer, mig_lines(answer, output.width), client)


@app.command("set")
def set_layout(
    gpu: Annotated[
        str, typer.Argument(metavar="GPU", help="NODE/INDEX, or the beginning of the GPU's UUID.")
    ],
    profiles: Annotated[
        str,
        typer.Argument(
            metavar="PROFILES", help="The profile of each instance, with commas; off: no MIG mode."
        ),
    ],
    plan: Annotated[bool, typer.Option("--plan", help="Show what would be done, and do nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Cut a GPU that nobody uses, so that it has exactly these instances.

    Instances that fit stay, the others are destroyed; where the new ones go is chosen so that most can stay.
    """
    from raysched.cli.mig_grid import step_lines
    from raysched.errors import Conflict

    client, output = Client.from_environment(), Output(as_json)
    names = None if profiles == "off" else [name.strip() for name in profiles.split(",") if name.strip()]
    answer = client.set_layout(gpu, names, plan=plan)
    if answer["job"] is not None:
        job = _until_done(client, answer["job"])
        if job["state"] != "succeeded":
            raise Conflict(f"the GPU was not cut: {job['reason']}")
    output.answer(answer, step_lines(answer, output.width, plan), client)


def _until_done(client: Client, id: str) -> Json:
    """The job that cuts a GPU, once it has ended."""
    told = False
    while (job := client.job(id)[0])["ended"] is None:
        if not told:
            note("the node's agent cuts it")
            told = True
        time.sleep(POLL_S)
    return job
