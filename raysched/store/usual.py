"""Which journal is meant where none is named: the one of the configuration."""

from __future__ import annotations

import os
from pathlib import Path

from raysched.folders import state_folder
from raysched.specs.config import Config, load_config


def usual_url(config: Config | None = None) -> str:
    """The URL of the journal in a configuration (by default the user's own), or of the file in the state
    folder. Raises ConfigError and FileMissing as `load_config` does."""
    settings = load_config() if config is None else config
    return settings.store.url or file_url(data_folder(settings))


def file_url(folder: Path) -> str:
    """The URL of the journal in a state folder."""
    return f"sqlite:///{folder / 'journal.sqlite'}"


def data_folder(config: Config) -> Path:
    """Where journal, packages and runs are: RAYSCHED_HOME goes before the configuration."""
    if os.environ.get("RAYSCHED_HOME") or config.store.folder is None:
        return state_folder()
    return Path(config.store.folder).expanduser()
