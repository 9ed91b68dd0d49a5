"""Ends jobs in Slurm, together what is to end at about the same time, by what Slurm says at that moment."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from raysched.backends.slurm.controller import Controller, Unanswered
from raysched.backends.slurm.listing import Listing
from raysched.backends.slurm.records import Job
from raysched.core.work import Run

GATHER_S = 0.02
"""How long runs are gathered before they are cancelled together."""
REMEMBERED = 5000
"""How many of its last targets are remembered."""


class Cancels:
    """Cancels and signals the jobs of runs."""

    def __init__(self, controller: Controller, listing: Listing) -> None:
        self._controller = controller
        self._listing = listing
        self._wanted: dict[Run, str | None] = {}
        self._task: asyncio.Task[None] | None = None
        self.meant: dict[str, str] = {}
        """The name of the job that was meant, by the id that was cancelled."""

    def cancel(self, run: Run, signal: str | None = None) -> None:
        """Cancel a run's jobs, or signal them, together with what else is to be just now."""
        self._wanted[run] = signal
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._cancel_all())

    async def _cancel_all(self) -> None:
        """By a new answer of Slurm's: an id of a moment ago may be another job's since."""
        await asyncio.sleep(GATHER_S)
        while self._wanted and await self._listing.ask():  # else asked again as long as it is wanted
            runs, self._wanted = self._wanted, {}
            for signal in dict.fromkeys(runs.values()):
                await self._send([run for run, wanted in runs.items() if wanted == signal], signal)
        self._wanted.clear()
        self._listing.hurry()

    async def _send(self, runs: list[Run], signal: str | None) -> None:
        targets = [target for run in runs for target in self._listing.cancels(run)]
        self.meant.update((target.id, target.name) for target in targets)
        for old in list(self.meant)[:-REMEMBERED]:
            del self.meant[old]
        with suppress(Unanswered):
            await self._controller.cancel(targets, signal)

    def hit_by_mistake(self, job: Job) -> bool:
        """Whether a cancel of ours that was meant for another job may have ended this one: scancel looks at
        the name, then sends the id, and waits for a controller that is being restarted, which gives ids of
        jobs that it lost to others."""
        meant = self.meant.get(job.id)
        return "CANCELLED" in job.states and meant is not None and meant != job.name

    async def close(self) -> None:
        """Return when what was begun is done."""
        if self._task is not None:
            await self._task
