"""The commands about the system: up, down, doctor, gpus, schema."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from raysched.cli.options import AsJson
from raysched.cli.output import Output, note
from raysched.client import Client


def up(
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The configuration; by default RAYSCHED_CONFIG, or your own raysched.yaml."
        ),
    ] = None,
    simulate: Annotated[
        str | None, typer.Option(metavar="GPUS", help="Make up GPUs, such as 2xA100-80GB.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="RAY", help="The Ray cluster to use, such as 10.0.0.1:6379.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, metavar="PORT", help="The gateway's port; 0 takes a free one."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start raysched here, with a Ray of its own where none runs."""
    from raysched import cluster
    from raysched.cli.start_stop import up_lines
    from raysched.specs.config import load_config

    output = Output(as_json)
    settings = load_config(config)
    note("starting; this takes some seconds")
    answer = cluster.up(settings, simulate=simulate, address=address, port=port)
    output.answer(answer, up_lines(answer, output.width))


def down(
    cancel: Annotated[
        bool, typer.Option("--cancel", help="End all jobs first, those that wait too.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Let jobs run on; the next `up` finds them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Stop raysched, and Ray where `up` started it.

    While jobs run this is refused, unless it is said what becomes of them.
    """
    from raysched import cluster
    from raysched.cli.start_stop import down_lines

    output = Output(as_json)
    answer = cluster.down(cancel=cancel, keep=keep)
    output.answer(answer, down_lines(answer, output.width))


def doctor(as_json: AsJson = False) -> int:
    """Check this machine and the running system, and say what to do.

    The exit code is 1 if something is wrong.
    """
    from raysched import cluster
    from raysched.cli.checks import check_lines

    output = Output(as_json)
    checks = cluster.doctor()
    output.answer({"checks": [asdict(check) for check in checks]}, check_lines(checks, output.width))
    return int(not all(check.ok for check in checks))


def gpus(as_json: AsJson = False) -> None:
    """Show each GPU, how full it is, and who holds what of it."""
    from raysched.cli.gpu_map import gpu_map

    client, output = Client.from_environment(), Output(as_json)
    answer = client.gpus()
    output.answer(answer, gpu_map(answer, output.width), client)


def schema(as_json: AsJson = False) -> None:
    """Print the JSON schema of the job file, for editors."""
    from raysched.specs.schema import job_schema

    Output(as_json).document(job_schema())
