"""One run's folder on the file system that this machine shares with the nodes. Its file `sent` is there once
the run may have been handed to Slurm."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from raysched.backends import runner
from raysched.backends.environment import environment
from raysched.backends.run_files import RunFiles
from raysched.backends.slurm import batch
from raysched.backends.slurm.script import INHERITED
from raysched.backends.working_dir import make_working_dir
from raysched.core.work import Launch

TOLD_TO_END = "its runner was told to end"
"""The reason of an exit whose SIGTERM was not raysched's (`runner.py`)."""


class Folder(RunFiles):
    """The folder of a run at a site."""

    def prepare(
        self, launch: Launch, base_env: Mapping[str, str], package: Path | None, *, watch: bool = False
    ) -> Literal["ready", "again", "begun"]:
        """Make the run ready to be handed over, and mark it so. With `watch` its script looks for itself
        whether it is to end. `again`: it may have been handed over before;
        `begun`: it began or ended already. Raises EngineRefused where its package can't be used (final), or
        the file system says no."""
        with self.preparing() as mine:
            if not mine:
                return "begun"
            if not self.prepared:
                make_working_dir(self.path / "work", package)
                content = _content(launch, base_env, self.path / "work")
                self.write("launch.json", {**content, "watch": watch})
            before = self.sent
            self.write("sent", {"at": runner.now(), "again": before is not None})
        return "ready" if before is None else "again"

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

    def stop(self, grace: float) -> bool:
        """Say that the run is to end; true where its command never began, and so never will."""
        if not self.ask_to_stop(grace):
            return False
        with self.locked() as mine:
            if not mine or self.begun:
                return False
            self.never_start()
            return True

    def bury(self, reason: str, *, taken: bool) -> None:
        """Write down that the run is lost, or was taken away, unless it was seen to end meanwhile."""
        started = (self.read("run.json") or {}).get("started")
        if not self.ended:
            self.write_exit(None, started, reason, taken=taken)

    def said(self) -> str:
        """What the script wrote before the command began, in one line."""
        with suppress(OSError):
            lines = (self.path / "slurm.log").read_text(errors="replace").split("\n")
            return next((line for line in reversed(lines) if line.strip("+ ")), "")[:500]
        return ""

    def delete(self) -> None:
        """Delete the folder of a run that has ended or never began."""
        if self.ended or self.sent is None:
            self.remove()


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
