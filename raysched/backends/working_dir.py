"""The working directory of a run: unpacked whole or not at all, and deleted whatever the job did to it."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from raysched.backends.base import EngineRefused
from raysched.errors import RayschedError, StorageError


def make_working_dir(work: Path, package: Path | None) -> None:
    """Make the folder `work` with the content of the package, or empty, whole or not at all; silent where
    it is there. Raises OSError, and EngineRefused where the package can't be used or unpacked."""
    if package is None:
        work.mkdir(mode=0o700, exist_ok=True)
        return
    if work.exists():
        return
    from raysched.package import unpack  # not needed by runs without a package

    try:
        unpack(package, work)
    except StorageError as error:
        raise EngineRefused(str(error)) from error
    except RayschedError as error:
        raise EngineRefused(str(error), final=True) from error


def size_of(folder: Path) -> int:
    """The bytes that a folder takes on its disk; what vanishes meanwhile or can't be read counts nothing."""
    total = 0
    for path, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_blocks * 512
    return total


def delete_tree(folder: Path) -> None:
    """Delete a folder, also where a job left folders in it that can't be written."""
    try:
        shutil.rmtree(folder)
    except PermissionError:
        for path, _, _ in os.walk(folder):
            os.chmod(path, 0o700)
        shutil.rmtree(folder)
