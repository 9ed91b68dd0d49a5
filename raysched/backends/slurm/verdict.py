"""What became of each run: its folder tells what the run did, Slurm what was done to it."""

from __future__ import annotations

import time
from collections.abc import Set
from pathlib import Path
from signal import SIGRTMAX
from typing import Any

from raysched.backends.run_files import runs_in
from raysched.backends.slurm import reasons
from raysched.backends.slurm.cancels import Cancels
from raysched.backends.slurm.folder import TOLD_TO_END, Folder
from raysched.backends.slurm.listing import Listing
from raysched.backends.slurm.records import Job
from raysched.backends.slurm.waiting import waits
from raysched.core.work import Run, Seen

LAG_S = 4.0
"""How long a file that a node wrote may take to be seen here, after Slurm says that its job is over."""
MISSING_S = 30.0
"""How long Slurm may know nothing of a run that began before that counts as lost: its controller may have
been restarted, and learns from the nodes what runs there."""
ENDING_S = 15.0
"""How long Slurm may take to say how it ended what a signal ended."""
STUCK_S = 30.0
"""How long Slurm may hold a job for running whose run is over, before it is told: a node whose word a killed
controller never got does not say it again, and what the job had would stay taken for ever."""
AT_ONCE_S = 5
"""How long a job lasts at most, by Slurm's count, that a node will not start."""
TAKEN = frozenset({"PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "LAUNCH_FAILED", "RECONFIG_FAIL", "REVOKED"})
"""States in which Slurm took a job away through no fault of its own."""
LOST_BY_SLURM = "Slurm lost sight of it and ended it"


class Verdicts:
    """Judges the runs whose folders lie in `root`; `sending` are those that are just being handed over. How a
    run ended is judged once."""

    def __init__(self, root: Path, listing: Listing, cancels: Cancels, sending: Set[Run]) -> None:
        self._root = root
        self._listing = listing
        self._cancels = cancels
        self._sending = sending
        self._ended: dict[Run, Seen] = {}
        self._doubtful: dict[Run, float] = {}

    def all(self) -> list[Seen]:
        """Every run that Slurm has or had."""
        runs = runs_in(self._root)
        for gone in self._ended.keys() - runs:
            del self._ended[gone]
        for gone in self._doubtful.keys() - runs:
            del self._doubtful[gone]
        return [seen for run in sorted(runs) if (seen := self._look(run)) is not None]

    def strays(self) -> list[Run]:
        """The runs of which Slurm has jobs that should not be there: the run is over, or its folder was
        deleted. One that Slurm holds for running is named again only after a while."""
        if self._listing.error:
            return []
        left = [(run, job) for run, job in self._listing.runs() if not job.over]
        return [run for run, job in left if self._is_stray(run, job)]

    def _is_stray(self, run: Run, job: Job) -> bool:
        ended = self._ended.get(run)
        if ended is None or self._listing.at <= (ended.ended or 0):
            return run not in self._sending and not self._folder(run).path.exists()
        if job.pending:
            return True
        stuck = self._lasts(run, STUCK_S)
        if stuck:
            del self._doubtful[run]
        return stuck

    def _look(self, run: Run) -> Seen | None:
        if run in self._ended:
            return self._ended[run]
        folder, job = self._folder(run), self._listing.find(run)
        if (exit := folder.read("exit.json")) is not None:
            seen = self._exited(folder, job, exit)
        elif (mark := folder.read("run.json")) is not None:
            seen = self._begun(folder, job, mark.get("started"))
        else:
            seen = self._waits(folder, job)
        if seen is not None and seen.state not in ("queued", "running"):
            self._ended[run] = seen
            self._doubtful.pop(run, None)
        return seen

    # ------------------------------------------------------------ by what the folder has

    def _exited(self, folder: Folder, job: Job | None, exit: dict[str, Any]) -> Seen | None:
        """A run that has written down how it ended. If Slurm told it to end, Slurm knows why."""
        code: int | None = exit.get("code")
        reason: str = exit.get("reason", f"{folder.path / 'exit.json'} is damaged")
        started, ended = exit.get("started"), exit.get("ended")
        failed = code not in (None, 0) and not reason
        by_signal = failed and code is not None and 128 < code <= 128 + SIGRTMAX
        killed = by_signal or reason == TOLD_TO_END
        doubtful = (killed or failed) and self._unsettled(job, ended, killed)
        if doubtful and not self._lasts(folder.run, ENDING_S):
            self._listing.hurry()
            return Seen(folder.run, "running", started)
        if killed or (failed and job is not None and job.preempted):
            taken, why = self._why(folder, job)
            if reason == TOLD_TO_END or (why and job is not None and (job.over or job.preempted)):
                reason = why or TOLD_TO_END
                folder.write_exit(code, started, reason, taken=taken)
                exit = {**exit, "taken": taken}
        if exit.get("taken"):
            return Seen(folder.run, "taken", started, ended, None, reason)
        return Seen(folder.run, "lost" if code is None else "exited", started, ended, code, reason)

    def _unsettled(self, job: Job | None, ended: int | None, killed: bool) -> bool:
        """Whether Slurm has not yet said how a run ended: its last answer is older than that end, or calls
        one that was killed going on. (One that fails may have been told that its nodes are taken away.)"""
        if self._listing.at <= (ended or 0):
            return True
        return killed and not (job is None or job.over or job.pending or job.preempted)

    def _begun(self, folder: Folder, job: Job | None, started: int | None) -> Seen:
        """A run whose command was started, and has not ended as far as its folder tells."""
        running = Seen(folder.run, "running", started)
        if self._listing.error or (job is not None and not job.over and not job.pending):
            self._doubtful.pop(folder.run, None)
            return running
        if not self._lasts(folder.run, MISSING_S if job is None else LAG_S):
            return running
        taken, why = self._why(folder, job)
        return self._bury(folder, why or "its runner was killed", taken)

    def _waits(self, folder: Folder, job: Job | None) -> Seen | None:
        """A run whose command was not started yet; None where Slurm has to be handed it."""
        sent = folder.sent
        if sent is None:
            return None
        if job is None:
            if folder.run in self._sending or self._listing.error or self._listing.at <= sent:
                return Seen(folder.run, "queued", reason=self._unanswered() or "is being handed to Slurm")
            return None
        if not job.over:
            self._doubtful.pop(folder.run, None)
            return Seen(folder.run, "queued", reason=self._unanswered() or _before(job))
        if not self._lasts(folder.run, LAG_S):
            return Seen(folder.run, "queued", reason=reasons.starting(job))
        taken, why = self._why(folder, job)
        said = folder.said()
        return self._bury(folder, why or f"its script did not run{f': {said}' if said else ''}", taken)

    def _bury(self, folder: Folder, reason: str, taken: bool) -> Seen:
        folder.bury(reason, taken=taken)
        exit = folder.read("exit.json") or {}
        state = "taken" if exit.get("taken") else "lost" if exit.get("code") is None else "exited"
        return Seen(folder.run, state, exit.get("started"), exit.get("ended"), exit.get("code"), reason)

    # ------------------------------------------------------------ by what Slurm says

    def _why(self, folder: Folder, job: Job | None) -> tuple[bool, str]:
        """Whether Slurm took a job away that may be started again, and the reason, where Slurm tells one."""
        if job is None or job.pending or self._cancels.hit_by_mistake(job) or self._mixed_up(folder, job):
            return True, LOST_BY_SLURM
        return job.preempted or bool(job.states & TAKEN), reasons.ended(
            job, (folder.read("launch.json") or {}).get("limit")
        )

    def _mixed_up(self, folder: Folder, job: Job) -> bool:
        """Whether Slurm itself may have ended the run: a controller that was killed starts jobs again that
        run, or gives their numbers to others, and a node that is to start a number a second time has all of
        it cancelled."""
        if folder.began not in ("", job.number):
            return True
        if "COMPLETED" in job.states:  # a script that came second; the first one would have told its end
            return folder.begun and not folder.ended
        if "CANCELLED" not in job.states:
            return False
        began = (folder.read("run.json") or {}).get("started", 0)
        if job.nodes and job.ended - job.started <= AT_ONCE_S and began < job.started * 1000:
            return True
        others = (self._folder(run) for run in runs_in(self._root) if run != folder.run)
        return folder.sent_again or any(other.began == job.number for other in others)

    def _unanswered(self) -> str:
        return f"Slurm does not answer: {self._listing.error}" if self._listing.error else ""

    def _lasts(self, run: Run, seconds: float) -> bool:
        """Whether a run has been in doubt for so long."""
        return time.monotonic() - self._doubtful.setdefault(run, time.monotonic()) >= seconds

    def _folder(self, run: Run) -> Folder:
        return Folder(self._root / str(run), run)


def _before(job: Job) -> str:
    """Why a command has not begun."""
    return waits(job.id, job.reason, job.words) if job.pending else reasons.starting(job)
