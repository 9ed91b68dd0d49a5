"""`raysched lease`: nodes of a site in Ray, for a time."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer
from rich.text import Text

from raysched.cli.options import AsJson
from raysched.cli.output import Output
from raysched.client import Client


def lease(
    duration: Annotated[
        str, typer.Option("--for", metavar="TIME", help="How long, such as 2h.", show_default=False)
    ],
    backend: Annotated[Literal["slurm"], typer.Option(help="Where they come from.")] = "slurm",
    gpus: Annotated[str, typer.Option(metavar="N", help="How many GPUs.")] = "1",
    gpu_type: Annotated[str | None, typer.Option(metavar="TYPE", help="Of which type.")] = None,
    nodes: Annotated[str | None, typer.Option(metavar="N", help="Spread over so many nodes.")] = None,
    cpus: Annotated[str | None, typer.Option(metavar="N", help="Cores on each node.")] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Memory on each node.")] = None,
    name: Annotated[str, typer.Option(help="What people call the job.")] = "lease",
    queue: Annotated[str, typer.Option(help="The queue in which it waits.")] = "default",
    as_json: AsJson = False,
) -> None:
    """Have GPUs of a site join Ray for a time.

    Decorated calls and jobs of the ray backend run there as well. It is a job: `raysched cancel` ends it,
    and `slurm: {ray: join}` in a job file says more to Slurm.
    """
    from raysched.cli.job_detail import submitted
    from raysched.specs.job import check_job

    asked = {"gpus": gpus, "gpu_type": gpu_type, "nodes": nodes, "cpus": cpus, "memory": memory}
    spec: dict[str, Any] = {
        "name": name,
        "entrypoint": "sleep infinity",
        "working_dir": None,
        "resources": {field: value for field, value in asked.items() if value is not None},
        "backend": backend,
        "queue": queue,
        "max_runtime": duration,
        "slurm": {"ray": "join", "grace": "60s"},
    }
    check_job(spec)
    client, output = Client.from_environment(), Output(as_json)
    jobs = client.submit([spec], [None])
    output.answer({"jobs": jobs}, map(Text, submitted(jobs)), client)
