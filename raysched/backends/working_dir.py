"""The working directory of a run: unpacked whole or not at all, and deleted whatever the job did to it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from raysched.backends.base import EngineRefused
from raysched.errors import RayschedError, StorageError


def make_working_dir(work: Path, package: Path | None) -> None:
    """Make the folder `work` with the content of the package, or empty; silent where it is there.

    Raises OSError, and EngineRefused where the package can't be used.
    """
    if work.exists():
        return
    aside = Path(tempfile.mkdtemp(prefix="work.", dir=work.parent))
    try:
        if package is not None:
            _unpack(package, aside)
        aside.rename(work)
    except BaseException:
        delete_tree(aside)
        raise


def _unpack(package: Path, into: Path) -> None:
    from raysched.package import unpack  # not needed by runs without one

    try:
        unpack(package, into)
    except FileNotFoundError as error:
        raise EngineRefused(f"the packed working directory {package} is not there", final=True) from error
    except StorageError as error:
        raise EngineRefused(str(error)) from error
    except RayschedError as error:
        raise EngineRefused(f"the working directory can't be unpacked: {error}", final=True) from error


def delete_tree(folder: Path) -> None:
    """Delete a folder, also where a job left folders in it that can't be written."""
    try:
        shutil.rmtree(folder)
    except PermissionError:
        for path, _, _ in os.walk(folder):
            os.chmod(path, 0o700)
        shutil.rmtree(folder)
