"""The commands about jobs: submit, plan, status, logs, cancel, queue, explain."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from raysched.cli.options import AnyJobName, AsJson, JobFile, JobName
from raysched.cli.output import Output, note
from raysched.client import Client, Json


def submit(
    file: JobFile,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show the output and wait for the end.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Submit the jobs of a file, all or none.

    With --follow the exit code is the job's: its own, 143 if it was cancelled, 1 if it failed without one; of
    several jobs, that of the first one that did not succeed. Ctrl-C ends the watching, never the job.
    """
    from raysched.cli.job_detail import submitted
    from raysched.client import submit_file

    client, output = Client.from_environment(), Output(as_json)
    jobs = submit_file(client, *_source(file))
    if follow:
        return _follow(client, output, jobs)
    output.answer({"jobs": jobs}, map(Text, submitted(jobs)), client)
    return 0


def plan(
    file: JobFile,
    env: Annotated[bool, typer.Option("--env", help="Show the variables that each job would get.")] = False,
    script: Annotated[
        bool, typer.Option("--script", "--manifest", help="Show what would be sent to a site.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Show where the jobs of a file would run, changing nothing.

    The exit code is 80 if one of them would be refused.
    """
    from raysched.cli.job_detail import plan_lines, script_lines
    from raysched.client import check_folders
    from raysched.errors import Refused
    from raysched.specs.job import load_jobs

    client, output = Client.from_environment(), Output(as_json)
    path, text = _source(file)
    specs = load_jobs(path, text)
    check_folders(specs, path.absolute().parent)
    plans = client.plan([spec.as_json() for spec in specs], script=script)
    lines = plan_lines(plans, output.width, with_env=env)
    output.answer({"jobs": plans}, [*lines, *(script_lines(plans) if script else [])], client)
    return Refused.exit_code if any(plan["outcome"] == "refused" for plan in plans) else 0


def status(
    job: AnyJobName = None,
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Show all ended jobs, and each element of arrays.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what runs and what waits, or one job in full."""
    from raysched.cli.job_detail import jobs_detail
    from raysched.cli.job_list import job_table, overview, system_summary

    client, output = Client.from_environment(), Output(as_json)
    if job is not None:
        found = client.job(job)
        output.answer({"jobs": found}, jobs_detail(found, output.width), client)
        return
    system, jobs = client.status(), client.jobs()
    lines = system_summary(system, client.address, jobs, output.width)
    lines += [Text()] if jobs else []
    lines += (job_table if everything and jobs else overview)(jobs, output.width)
    output.answer({"system": system, "jobs": jobs}, lines, client)


def logs(
    job: JobName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="The output of that attempt, not of the last.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=0, help="Only the output of that rank of a job on several nodes.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a job's output, byte for byte.

    Of an array each element's output is printed, its lines marked with its name; of a job on several nodes
    that of each rank, its lines marked with the rank.
    """
    from raysched.cli.follow import follow as follow_jobs
    from raysched.cli.follow import write_all, write_output

    client, output = Client.from_environment(), Output(as_json)
    jobs = client.job(job)
    whole = attempt is None and rank is None
    if follow and (as_json or whole):
        follow_jobs(client, jobs, output=not as_json)
    if as_json:
        told = [_output_of(client, one, attempt, n) for one in jobs for n in _ranks(one, rank)]
        output.answer({"jobs": told}, [], client)
    elif not (follow and whole):
        for one in jobs:
            marked = len(jobs) > 1
            if rank is None:
                write_all(client, one, marked=marked, follow=follow, attempt=attempt)
            else:
                pieces = client.logs(one["id"], follow=follow, attempt=attempt, rank=rank)
                write_output(pieces, one if marked else None)


def cancel(job: JobName, as_json: AsJson = False) -> None:
    """End a job, or all elements of an array.

    Its processes get SIGTERM, and SIGKILL after the job's grace.
    """
    from raysched.cli.job_list import job_table

    client, output = Client.from_environment(), Output(as_json)
    jobs = client.cancel(job)
    output.answer({"jobs": jobs}, job_table(jobs, output.width), client)


def queue(as_json: AsJson = False) -> None:
    """Show what waits, in the order in which it is looked at, and why.

    A job without a position waits where it was handed to, such as in Slurm's queue.
    """
    from raysched.cli.job_list import queue_table

    client, output = Client.from_environment(), Output(as_json)
    waiting = client.queue()
    output.answer({"waiting": waiting}, queue_table(waiting, output.width), client)


def explain(job: JobName, as_json: AsJson = False) -> None:
    """Say why a job waits, and what would let it start."""
    from raysched.cli.job_detail import explanation

    client, output = Client.from_environment(), Output(as_json)
    answer = client.explain(job)
    output.answer(answer, explanation(answer, output.width), client)


def _follow(client: Client, output: Output, jobs: list[Json]) -> int:
    from raysched.cli.follow import exit_code, follow
    from raysched.cli.job_detail import submitted

    output.say_if_simulated(client)
    for line in submitted(jobs):
        note(line)
    ended = follow(client, jobs, output=not output.as_json)
    if output.as_json:
        output.answer({"jobs": ended}, [], client)
    return next((code for job in ended if (code := exit_code(job))), 0)


def _source(file: Path) -> tuple[Path, bytes | None]:
    """The file, or what stdin holds as if it were a file of the current folder."""
    return (Path("stdin"), sys.stdin.buffer.read()) if str(file) == "-" else (file, None)


def _ranks(job: Json, rank: int | None) -> list[int]:
    """The ranks whose output is asked for."""
    return [rank] if rank is not None else list(range(job["outputs"]))


def _output_of(client: Client, job: Json, attempt: int | None, rank: int) -> dict[str, Any]:
    output = b"".join(client.logs(job["id"], attempt=attempt, rank=rank))
    return {
        "id": job["id"],
        "display": job["display"],
        "rank": rank,
        "output": output.decode(errors="replace"),
    }
