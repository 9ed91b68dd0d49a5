"""All runs of one machine, in one folder: what the vm backend and the node agents of the ray backend use."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from raysched.backends.base import EngineRefused
from raysched.backends.leftovers import runs_left
from raysched.backends.nursery import Nursery
from raysched.backends.run_files import delete_hidden, runs_in
from raysched.backends.run_folder import OVER, RunFolder
from raysched.backends.working_dir import delete_tree, size_of
from raysched.core.work import Launch, Run, Seen
from raysched.errors import RayschedError

OVER_KEPT_S = 3600.0
"""How long it is remembered that a lease is over: far longer than any call is under way."""
END_S = 10.0
"""How long a run may take to be gone after its grace."""


@dataclass(frozen=True, slots=True)
class Keep:
    """How long working directories of runs that ended are kept: for `age` seconds, and as long as all of them
    take no more than `size` bytes of the disk, but `at_least` so many seconds."""

    age: float
    size: int
    at_least: float


class Runs:
    """The runs whose folders lie in `root`. `base_env` are the variables that jobs inherit; a `nursery`
    starts runners sooner.

    All of it is on disk: a new instance after any crash goes on with what is there. Its calls may come from
    several threads, and several processes may look after one folder at a time.
    """

    def __init__(self, root: Path, base_env: Mapping[str, str], nursery: Nursery | None = None) -> None:
        self._nursery = nursery
        self.root = root.absolute()
        self._base_env = dict(base_env)
        self._folders: dict[Run, RunFolder] = {}
        self._ended: dict[Run, Seen] = {}
        self._begun: set[str] | None = None
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def start(self, launch: Launch, package: Path | None) -> None:
        """Start a run, its working directory unpacked from the file `package`; silent where it was started
        before. Raises EngineRefused."""
        new = self._is_new(launch.run)
        self._folder(launch.run).start(launch, self._base_env, package, new)

    def _is_new(self, run: Run) -> bool:
        """Whether no process of a run can be there: nothing of it was there at the first start here, and
        nobody has asked for it since. Whoever is asked again may have to look for processes whose folder was
        deleted, which takes as long as all else that a start does. Raises EngineRefused."""
        try:
            if self._begun is None:
                self._begun = runs_left()
        except OSError as error:
            raise EngineRefused(f"no process can be looked at: {error.strerror}") from error
        new = str(run) not in self._begun
        self._begun.add(str(run))
        return new

    def look(self, run: Run) -> Seen | None:
        """What is to be seen of a run; None if it was not started."""
        return self._look(run)

    def observe(self) -> list[Seen]:
        """Every run here: running, exited, or lost. Cheap for those that have ended."""
        runs = runs_in(self.root)
        for gone in [run for run in list(self._folders) if run not in runs]:
            self._folders.pop(gone, None)
            self._ended.pop(gone, None)
        return [seen for run in runs if (seen := self._look(run)) is not None]

    def stop(self, run: Run, grace: float) -> bool:
        """Begin to end a run: SIGTERM now, SIGKILL after `grace` seconds. One that was not started never
        will be: it counts as ended, and true is returned."""
        return self._folder(run).stop(grace)

    def end(self, lease: str, grace: float) -> None:
        """Let no run of a lease start any more, not even by a call that is still under way; end those that
        did, and return once they have ended. Raises RayschedError where one does not."""
        mark = self.root / OVER / lease
        with suppress(OSError):  # a full disk: then nothing can be started either
            mark.parent.mkdir(mode=0o700, exist_ok=True)
            mark.touch(mode=0o600)
        # Whoever starts one of them has made its folder before looking for the mark.
        runs = [run for run in runs_in(self.root) if _lease(run) == lease]
        for run in runs:
            self.stop(run, grace)
        deadline = time.monotonic() + grace + END_S
        while left := [run for run in runs if (seen := self._look(run)) and seen.state == "running"]:
            if time.monotonic() > deadline:
                raise RayschedError(f"the run {left[0]} of lease {lease} does not end; it is tried again")
            time.sleep(0.02)

    def logs(self, run: Run, offset: int, limit: int) -> bytes:
        """At most `limit` bytes of a run's output from `offset`; empty at the end of what there is."""
        return self._folder(run).logs(offset, limit)

    def forget(self, runs: frozenset[Run]) -> None:
        """Delete the files of these runs, but of one that goes on."""
        for run in runs_in(self.root) & runs:
            self._folder(run).delete()
        if self._begun is not None:
            self._begun.difference_update(map(str, runs))
        delete_hidden(self.root)
        old = time.time() - OVER_KEPT_S
        for mark in self.root.glob(f"{OVER}/*"):
            if mark.stat().st_mtime < old:
                mark.unlink(missing_ok=True)

    def sweep(self, keep: Keep, now: float) -> None:
        """Delete the working directories of runs that ended long ago (`now` in seconds since 1970), and where
        all of them take too much, the oldest. What is known of a run stays, and its output."""
        ended = sorted((seen.ended or 0, seen.run) for seen in self.observe() if seen.state != "running")
        works = [(now - at / 1000, self.root / str(run) / "work") for at, run in ended]
        works = [(age, work) for age, work in works if age > keep.at_least and work.is_dir()]
        sizes = [size_of(work) for _, work in works]
        total = sum(sizes)
        for (age, work), size in zip(works, sizes, strict=True):
            if age > keep.age or total > keep.size:
                total -= size
                with suppress(OSError):
                    delete_tree(work)

    def runners(self) -> list[int]:
        """The process ids of the runners of all runs that had not ended when last looked at: the end of one
        of them is the end of its run."""
        marks = [folder.runner for run, folder in list(self._folders.items()) if run not in self._ended]
        return [mark.pid for mark in marks if mark is not None]

    def _look(self, run: Run) -> Seen | None:
        if run in self._ended:
            return self._ended[run]
        seen = self._folder(run).seen()
        if seen is not None and seen.state != "running":
            self._ended[run] = seen
        return seen

    def _folder(self, run: Run) -> RunFolder:
        return self._folders.setdefault(run, RunFolder(self.root / str(run), run, self._nursery))


def of_this_machine(folder: Path) -> Path:
    """Where this machine has its runs in a folder that others may have too, over the network: none of them
    can tell whether a runner of another lives. Runs of 0.1.0 lie in the folder itself, which is then kept.
    The name of a machine (`10.0.0.1`) may look like that of a run, but for what is put behind it."""
    return folder if runs_in(folder) else folder / f"{os.uname().nodename}.runs"


def _lease(run: Run) -> str:
    """The id of the lease that a run was started for (`core.decide.grant`)."""
    return f"{run.job}.{run.attempt}"
