"""The files of one run (`runner.py` lists them), as everybody uses them who starts, ends or shows runs."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raysched.backends import runner
from raysched.backends.base import EngineRefused
from raysched.backends.working_dir import delete_tree
from raysched.core.work import Run


class RunFiles:
    """The folder `path` of one run, which need not exist yet."""

    def __init__(self, path: Path, run: Run) -> None:
        self.path = path
        self.run = run

    @property
    def begun(self) -> bool:
        """Whether the run was ever started, or ended without having been."""
        return runner.begun(str(self.path))

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return runner.exists(str(self.path), "exit.json")

    @property
    def prepared(self) -> bool:
        """Whether all is there that its runner needs."""
        return runner.exists(str(self.path), "launch.json")

    def read(self, name: str) -> dict[str, Any] | None:
        """The content of a file, None where there is none, and nothing where it is damaged."""
        try:
            return runner.read_json(str(self.path), name)
        except FileNotFoundError:
            return None
        except ValueError:
            return {}

    def write(self, name: str, content: Mapping[str, object]) -> None:
        """Write a file, whole or not at all."""
        runner.write_json(str(self.path), name, content)

    def write_exit(self, code: int | None, started: int | None, reason: str, **more: object) -> None:
        """Write down how the run ended."""
        exit = {"code": code, "started": started, "ended": runner.now(), "reason": reason, **more}
        try:
            runner.write_exit(str(self.path), exit)
        except FileNotFoundError:  # its runner, whose folder was deleted, was just doing the same
            if not self.ended:
                raise

    def never_start(self, reason: str = runner.STOPPED_EARLY[1]) -> None:
        """Write down that the run ended before its command began."""
        self.write_exit(runner.STOPPED_EARLY[0], None, reason)

    def ask_to_stop(self, grace: float) -> bool:
        """Write down that the run is to end, `grace` seconds after it is told; false where it has ended."""
        if self.ended:
            return False
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The shortest grace counts: the runner may read the file once for several signals.
        shortest = min(grace, (self.read("stop.json") or {}).get("grace", grace))
        with suppress(OSError):  # a full disk: the runner then takes its own grace
            self.write("stop.json", {"grace": shortest})
        return True

    def logs(self, offset: int, limit: int) -> bytes:
        """At most `limit` bytes of the output from `offset`."""
        return page(str(self.path / "output.log"), offset, limit)

    def remove(self) -> None:
        """Delete the folder; from the first moment on nobody sees any of it."""
        hidden = self.path.with_name(f".{self.path.name}.deleted")
        with suppress(FileNotFoundError):
            self.path.rename(hidden)
            delete_tree(hidden)

    @contextmanager
    def preparing(self) -> Generator[bool]:
        """Whether the run is to be prepared, which is for this process alone in the block: nobody else is
        just doing so, and it has not begun. Raises EngineRefused where the file system says no."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self.locked() as mine:
                yield mine and not self.begun
        except OSError as error:
            raise EngineRefused(f"the run can't be prepared in {self.path}: {runner.words(error)}") from error

    @contextmanager
    def locked(self) -> Generator[bool]:
        """Whether this process holds the run's lock, for the length of the block."""
        descriptor = runner.lock(str(self.path))
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                runner.unlock(descriptor)


def runs_in(root: Path) -> set[Run]:
    """The runs that have a folder in `root`; whatever else lies there is passed over."""
    try:
        names = os.listdir(root)
    except FileNotFoundError:
        return set()
    return {run for name in names if (run := _parse(name)) is not None}


def delete_hidden(root: Path) -> None:
    """Delete what is left of folders whose deletion was cut short."""
    for hidden in root.glob(".*.deleted"):
        with suppress(FileNotFoundError):
            delete_tree(hidden)


def page(path: str, offset: int, limit: int) -> bytes:
    """At most `limit` bytes of a file from `offset`; none where it is not there or not so long."""
    try:
        with open(path, "rb") as file:
            if offset >= os.fstat(file.fileno()).st_size:
                return b""  # also where no file could be so long, which `seek` refuses
            file.seek(offset)
            return file.read(limit)
    except FileNotFoundError:
        return b""


def _parse(name: str) -> Run | None:
    """The run that a folder of this name belongs to."""
    try:
        run = Run.parse(name)
    except ValueError:
        return None
    return run if str(run) == name else None
