"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raysched.client import Client
from raysched.errors import RayschedError


def complete_job(incomplete: str) -> list[str]:
    """Ids and names of jobs for the shell; none where raysched does not answer."""
    try:
        client = Client.from_environment(notice=lambda _: None)
        names = {name for job in client.jobs() for name in (job["id"], job["display"], job["name"])}
    except RayschedError:
        return []
    return sorted(name for name in names if name.startswith(incomplete))


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, errors too.")]
_JOB = typer.Argument(
    metavar="JOB",
    help="A job's id or name; name[3] is an element of an array.",
    autocompletion=complete_job,
)
JobName = Annotated[str, _JOB]
AnyJobName = Annotated[str | None, _JOB]
JobFile = Annotated[Path, typer.Argument(metavar="FILE", help="A job file (YAML); - reads it from stdin.")]
