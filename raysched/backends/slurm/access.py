"""How a site is reached."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from raysched.backends.slurm.commands import CommandController
from raysched.backends.slurm.controller import Controller
from raysched.backends.slurm.rest import RestController


def open_controller(
    login: str | None, rest: str | None, token_file: str | None, environment: Mapping[str, str]
) -> Controller:
    """The controller of a site: by slurmrestd at the URL `rest`, else by Slurm's commands, over SSH where
    there is a `login` node. The token is in the file, else in SLURM_JWT."""
    if rest is None:
        return CommandController(login, environment)

    def token() -> str:
        """Read anew each time: tokens are renewed."""
        if token_file is None:
            return environment.get("SLURM_JWT", "")
        return Path(token_file).expanduser().read_text().strip()

    return RestController(rest, token, environment)
