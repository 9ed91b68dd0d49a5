"""Where raysched keeps its files."""

from __future__ import annotations

import os
from pathlib import Path

NODE_FOLDER = "RAYSCHED_NODE_FOLDER"
"""The variable that names the folder for files of raysched on a node of Ray where it is not that of `up`."""


def state_folder() -> Path:
    """The folder of a system's files: `RAYSCHED_HOME`, else `raysched` in the user's state folder
    (`XDG_STATE_HOME`, by default `~/.local/state`). It need not exist yet."""
    if home := os.environ.get("RAYSCHED_HOME"):
        return Path(home).expanduser()
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "raysched"
