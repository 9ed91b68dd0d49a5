"""What Slurm says of our jobs: one question for all of them, asked no more often than something happens."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator

from raysched.backends import runner
from raysched.backends.slurm.controller import Controller, Target, Unanswered
from raysched.backends.slurm.records import Job
from raysched.backends.slurm.script import Identity, element
from raysched.core.work import Run

SOONEST_S = 1.0
"""Shortest time between two questions, but for those whose answer has to be new."""
LATEST_S = 15.0
"""Longest time between two questions, once nothing happens."""
SLOWER = 1.5

log = logging.getLogger(__name__)


class Listing:
    """The last answer. `at` is when it was asked for, in ms since 1970 (0: never); `error` says why the last
    question got none, and is empty where it did."""

    def __init__(self, controller: Controller, identity: Identity) -> None:
        self._controller = controller
        self._identity = identity
        self._runs: dict[str, list[Job]] = {}
        self._asking = asyncio.Lock()
        self._asked = -LATEST_S
        self._pace = SOONEST_S
        self.at = 0
        self.error = ""
        self.others: list[Job] = []

    async def look(self) -> None:
        """Demand if it is time to. Without an answer the last one stays."""
        if time.monotonic() - self._asked >= self._pace:
            await self.ask()

    async def ask(self) -> bool:
        """Demand now; whether there is an answer that was asked for after this call."""
        called = time.monotonic()
        async with self._asking:
            if self._asked >= called:  # somebody else has asked meanwhile
                return not self.error
            self._asked = time.monotonic()
            at = runner.now()
            try:
                jobs = await self._controller.jobs()
            except Unanswered as error:
                if not self.error:
                    log.warning("Slurm does not answer: %s", error)
                self.error = str(error)
                self._pace = min(LATEST_S, self._pace * SLOWER)
                return False
            self.at, self.error = at, ""
            self._take(jobs)
            return True

    def hurry(self) -> None:
        """Something was done: ask again soon."""
        self._pace = SOONEST_S

    def _take(self, jobs: list[Job]) -> None:
        runs: dict[str, list[Job]] = {}
        self.others = []
        for job in jobs:
            run = self._identity.runs(job)
            if run is None:
                self.others.append(job)
            else:
                runs.setdefault(run, []).append(job)
        self._pace = SOONEST_S if runs != self._runs else min(LATEST_S, self._pace * SLOWER)
        self._runs = runs

    def find(self, run: Run) -> Job | None:
        """The job of a run: of several, one that runs before one that waits before one that has ended."""
        found = [*self._runs.get(str(run), ()), *self._waiting(run)]
        return min(found, key=lambda job: (job.over, job.pending), default=None)

    def _waiting(self, run: Run) -> Iterator[Job]:
        """The array that a run waits in, shown as one job."""
        one = element(run)
        if one is None:
            return
        own = str(run) in self._runs
        for job in self._runs.get(f"{one[0]}.@.{run.attempt}.{run.rank}", ()):
            # Where Slurm cuts the numbers short, whatever has no job of its own still waits.
            if one[1] in job.waiting if job.waiting is not None else not own:
                yield job

    def cancels(self, run: Run) -> list[Target]:
        """What scancel takes for every job of a run that has not ended."""
        found = [job for job in (*self._runs.get(str(run), ()), *self._waiting(run)) if not job.over]
        one = element(run)
        task = one[1] if one else 0
        return [
            Target(f"{job.id.partition('_')[0]}_{task}" if job.is_waiting_array else job.id, job.name)
            for job in found
        ]

    def runs(self) -> Iterator[tuple[Run, Job]]:
        """Every job of ours that stands for one run."""
        for text, jobs in self._runs.items():
            if "@" not in text:
                try:
                    run = Run.parse(text)
                except ValueError:
                    continue
                yield from ((run, job) for job in jobs)
