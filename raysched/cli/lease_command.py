"""`raysched lease`: GPUs of a site for a time, to work on: as nodes of Ray, or as a pod."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import typer
from rich.text import Text

from raysched.cli.options import AsJson
from raysched.cli.output import Output, note
from raysched.client import Client, Json
from raysched.errors import Conflict, SpecError

POLL_S = 0.5
MORE_S = 60
"""How much longer a pod's job may take than the pod's own command, which ends it in time."""


def lease(
    duration: Annotated[
        str, typer.Option("--for", metavar="TIME", help="How long, such as 2h.", show_default=False)
    ],
    backend: Annotated[Literal["slurm", "k8s"], typer.Option(help="Where they come from.")] = "slurm",
    gpus: Annotated[str, typer.Option(metavar="N", help="How many GPUs.")] = "1",
    gpu_fraction: Annotated[str | None, typer.Option(metavar="F", help="This part of each, on k8s.")] = None,
    gpu_type: Annotated[str | None, typer.Option(metavar="TYPE", help="Of which type.")] = None,
    nodes: Annotated[str | None, typer.Option(metavar="N", help="Spread over so many nodes.")] = None,
    cpus: Annotated[str | None, typer.Option(metavar="N", help="Cores on each node.")] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Memory on each node.")] = None,
    cluster: Annotated[str | None, typer.Option(metavar="NAME", help="Which one, on k8s.")] = None,
    image: Annotated[str | None, typer.Option(metavar="IMAGE", help="Of the pods, on k8s.")] = None,
    ray: Annotated[bool, typer.Option("--ray", help="With a Ray of their own, on k8s.")] = False,
    name: Annotated[str, typer.Option(help="What people call the job.")] = "lease",
    queue: Annotated[str, typer.Option(help="The queue in which it waits.")] = "default",
    as_json: AsJson = False,
) -> None:
    """Have GPUs of a site for a time, to work on.

    Nodes of a Slurm site join Ray: decorated calls and jobs of the ray backend run there as well. On
    Kubernetes it is a pod, or several; once it runs the command is told with which to get in. It is a job:
    `raysched cancel` ends it, and a job file says more to Slurm or Kubernetes.
    """
    from raysched.cli.job_detail import submitted
    from raysched.specs.job import check_job

    asked = {
        "gpus": gpus,
        "gpu_fraction": gpu_fraction,
        "gpu_type": gpu_type,
        "nodes": nodes,
        "cpus": cpus,
        "memory": memory,
    }
    spec: dict[str, Any] = {
        "name": name,
        "working_dir": None,
        "resources": {field: value for field, value in asked.items() if value is not None},
        "backend": backend,
        "queue": queue,
    }
    if backend == "k8s":
        spec |= _pods(duration, image, {"ray": ray, "cluster": cluster})
    else:
        spec |= _nodes_of_ray(duration, image, ray, cluster)
    check_job(spec)
    client, output = Client.from_environment(), Output(as_json)
    jobs = client.submit([spec], [None])
    if backend == "slurm":
        output.answer({"jobs": jobs}, map(Text, submitted(jobs)), client)
        return
    for line in submitted(jobs):
        note(line)
    running = _until_running(client, jobs[0]["id"])
    output.answer({"jobs": client.job(jobs[0]["id"]), "enter": running["enter"]}, [Text(running["enter"])])


def _nodes_of_ray(duration: str, image: str | None, ray: bool, cluster: str | None) -> Json:
    if image is not None or ray or cluster is not None:
        raise SpecError(
            "--cluster, --image and --ray are for --backend k8s: nodes of a Slurm site join raysched's Ray"
        )
    return {
        "entrypoint": "sleep infinity",
        "max_runtime": duration,
        "slurm": {"ray": "join", "grace": "60s"},
    }


def _pods(duration: str, image: str | None, options: Json) -> Json:
    from raysched.specs.units import parse_duration

    try:
        seconds = -(-parse_duration(duration) // 1000)
    except ValueError as error:
        raise SpecError(f"--for: {error}") from None
    return {
        "entrypoint": ["sleep", str(seconds)],
        "max_runtime": f"{seconds + MORE_S}s",
        "image": image,
        "k8s": options,
    }


def _until_running(client: Client, id: str) -> Json:
    """What `explain` says of a job once one can get into it. Raises Conflict where it ended before."""
    told = ""
    while (seen := client.explain(id))["enter"] is None:
        if seen["state"] in ("succeeded", "failed", "cancelled"):
            raise Conflict(f"the lease has ended: {seen['why']}")
        if seen["why"] != told:
            told = seen["why"]
            note(told)
        time.sleep(POLL_S)
    return seen
