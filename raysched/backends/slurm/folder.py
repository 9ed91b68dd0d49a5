"""One run's folder on the file system that this machine shares with the nodes (`runner.py` lists its files;
`sent` is there once the run may have been handed to Slurm)."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from raysched.backends import runner
from raysched.backends.base import EngineRefused
from raysched.backends.environment import environment
from raysched.backends.slurm import batch
from raysched.backends.slurm.script import INHERITED
from raysched.backends.working_dir import delete_tree, make_working_dir
from raysched.core.work import Launch, Run

TOLD_TO_END = "its runner was told to end"
"""The reason of an exit whose SIGTERM was not raysched's (`runner.py`)."""


class Folder:
    """The folder `path` of one run, which need not exist yet."""

    def __init__(self, path: Path, run: Run) -> None:
        self.path = path
        self.run = run

    def prepare(
        self, launch: Launch, base_env: Mapping[str, str], package: Path | None, *, watch: bool = False
    ) -> Literal["ready", "again", "begun"]:
        """Make the run ready to be handed over, and mark it so. With `watch` its script looks for itself
        whether it is to end. `again`: it may have been handed over before;
        `begun`: it began or ended already. Raises EngineRefused where its package can't be used (final), or
        the file system says no."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked() as mine:
                if not mine or self.begun:
                    return "begun"
                if not (self.path / "launch.json").exists():
                    make_working_dir(self.path / "work", package)
                    content = _content(launch, base_env, self.path / "work")
                    self._write("launch.json", {**content, "watch": watch})
                before = self.sent
                self._write("sent", {"at": runner.now(), "again": before is not None})
        except OSError as error:
            raise EngineRefused(f"the run can't be prepared in {self.path}: {runner.words(error)}") from error
        return "ready" if before is None else "again"

    @property
    def begun(self) -> bool:
        """Whether the command was ever started, or the run ended without it."""
        return runner.begun(str(self.path))

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return runner.exists(str(self.path), "exit.json")

    @property
    def sent(self) -> int | None:
        """When the run may have been handed to Slurm last, in ms since 1970 by this machine's clock."""
        content = self.read("sent")
        return None if content is None else content.get("at", 0)

    @property
    def sent_again(self) -> bool:
        """Whether Slurm lost the run once, and it was handed over again."""
        return bool((self.read("sent") or {}).get("again"))

    @property
    def began(self) -> str:
        """The number of the Slurm job that took the run; empty where none did."""
        return (self.read(batch.BEGAN) or {}).get("job", "")

    def read(self, name: str) -> dict[str, Any] | None:
        """The content of one of its files; None where there is none, nothing where it is damaged."""
        try:
            return runner.read_json(str(self.path), name)
        except FileNotFoundError:
            return None
        except ValueError:
            return {}

    def ask_to_stop(self, grace: float) -> bool:
        """Say that the run is to end, with the shortest grace that was ever given; true where its command
        never began, and so never will."""
        if self.ended:
            return False
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        shortest = min(grace, (self.read("stop.json") or {}).get("grace", grace))
        with suppress(OSError):
            self._write("stop.json", {"grace": shortest})
        with self._locked() as mine:
            if not mine or self.begun:
                return False
            code, reason = runner.STOPPED_EARLY
            self.write_exit(code, None, reason)
            return True

    def write_exit(self, code: int | None, started: int | None, reason: str, **more: object) -> None:
        """Write down how the run ended."""
        exit = {"code": code, "started": started, "ended": runner.now(), "reason": reason, **more}
        runner.write_exit(str(self.path), exit)

    def bury(self, reason: str, *, taken: bool) -> None:
        """Write down that the run is lost, or was taken away, unless it was seen to end meanwhile."""
        started = (self.read("run.json") or {}).get("started")
        if not self.ended:
            self.write_exit(None, started, reason, taken=taken)

    def logs(self, offset: int, limit: int) -> bytes:
        """At most `limit` bytes of the output from `offset`."""
        return runner.page(str(self.path / "output.log"), offset, limit)

    def said(self) -> str:
        """What the script wrote before the command began, in one line."""
        with suppress(OSError):
            lines = (self.path / "slurm.log").read_text(errors="replace").split("\n")
            return next((line for line in reversed(lines) if line.strip("+ ")), "")[:500]
        return ""

    def delete(self) -> None:
        """Delete the folder of a run that has ended or never began."""
        if not self.ended and (self.path / "sent").exists():
            return
        hidden = self.path.with_name(f".{self.path.name}.deleted")
        with suppress(FileNotFoundError):
            self.path.rename(hidden)
            delete_tree(hidden)

    def _write(self, name: str, content: Mapping[str, object]) -> None:
        """Whole or not at all; that it outlives a power cut, the file server sees to."""
        new = self.path / f"{name}.new"
        with open(new, "wb", opener=runner.private) as file:
            file.write(json.dumps(content).encode())
        new.rename(self.path / name)

    @contextmanager
    def _locked(self) -> Generator[bool]:
        descriptor = runner.lock(str(self.path))
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                runner.unlock(descriptor)


def _content(launch: Launch, base_env: Mapping[str, str], work: Path) -> dict[str, object]:
    """What `batch.py` needs."""
    assert launch.order is not None
    entrypoint = launch.entrypoint if isinstance(launch.entrypoint, str) else list(launch.entrypoint)
    return {
        "entrypoint": entrypoint,
        "env": environment(launch, base_env),
        "cwd": str(work),
        "limit": launch.order.limit,
        "nodes": launch.order.demand.nodes,
        "ray": dict(launch.order.options).get("ray") or False,
        "inherit": list(INHERITED),
        "ranks": [dict(rank) for rank in launch.order.ranks],
    }
