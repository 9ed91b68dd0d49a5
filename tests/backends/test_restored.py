"""A backup that is restored, where the runs that it does not know of are still there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from raysched.actors.clock import Clock
from raysched.actors.desk import Desk
from raysched.backends.reconciler import Reconciler
from raysched.backends.runs import Runs
from raysched.backends.vm import VMBackend
from raysched.core.commands import Cordon, JobRequest, NodeSeen, Submit, Tick
from raysched.core.jobs import ENDED, Job
from raysched.store.backup import backup, restore
from raysched.store.book import Book
from raysched.store.journal import Journal
from raysched.tasks import stop
from tests.core.world import node, share

PATIENCE_S = 60.0


class Life:
    """A ledger over the journal in a folder."""

    def __init__(self, folder: Path, version: int) -> None:
        self.folder = folder
        self.journal = Journal(f"sqlite:///{folder}/journal.sqlite")
        self.ledger = Desk(Book(self.journal, version), Clock())

    async def submit(self, id: str, work: str) -> None:
        """One job that may start as soon as there is a node."""
        spec = {"name": id, "entrypoint": work, "env": {}, "resources": {}}
        asked = JobRequest(id, id, "command", share(0.5), spec, grace=0)
        await self.ledger.tell([Submit(f"key-{id}", "ana", (asked,))])

    async def use(self, on: bool) -> None:
        """Start jobs on this machine, or nothing new."""
        here = replace(node("here", 1), ray_id=None, backends=("vm",))
        await self.ledger.tell([NodeSeen(here), Cordon("here", not on)])

    async def until(self, ready: Callable[[Job], bool], id: str) -> Job:
        """The job, once it is so."""
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        while not ready(job := self.ledger.state.jobs[id]):
            assert asyncio.get_running_loop().time() < deadline, job
            await self.ledger.tell([Tick()])
            await asyncio.sleep(0.05)
        return job


@asynccontextmanager
async def life(folder: Path, version: int) -> AsyncIterator[Life]:
    """A ledger with a vm backend, from what lies in the folder."""
    made = Life(folder, version)
    backend = VMBackend(folder / "runs", {}, folder / "packages")
    tasks = [
        asyncio.create_task(each) for each in (made.ledger.serve(), Reconciler(backend, made.ledger).run())
    ]
    try:
        yield made
    finally:
        await stop(*tasks)
        await backend.close()
        made.journal.close()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where nothing runs on after the test."""
    yield tmp_path
    runs = Runs(tmp_path / "runs", {})
    for seen in runs.observe():
        runs.stop(seen.run, 0)


def ended(job: Job) -> bool:
    return job.state in ENDED


@pytest.mark.parametrize("before", ["exit 3", "exec sleep 600"])
def test_an_attempt_of_a_restored_backup_is_not_taken_for_the_one_that_was_made_after_it(
    folder: Path, before: str
) -> None:
    """Whatever the other one came to, or if it still runs, maybe on other GPUs: it is ended and deleted, and
    this one runs."""
    word = folder / "word"
    word.write_text(before)
    work = f'echo "$RAYSCHED_RUN" >> {folder}/starts; eval "$(cat {word})"'

    async def first() -> None:
        async with life(folder, 1) as made:
            await made.use(False)
            await made.submit("job", work)
            await asyncio.to_thread(backup, f"sqlite:///{folder}/journal.sqlite", folder / "backup")
            await made.use(True)
            over = before == "exit 3"
            job = await made.until(ended if over else lambda job: job.state == "running", "job")
            assert job.code == (3 if over else None)

    async def second() -> Job:
        word.write_text("exit 0")
        async with life(folder, 2) as made:
            assert made.ledger.state.jobs["job"].state == "waiting"
            await made.use(True)
            return await made.until(ended, "job")

    asyncio.run(first())
    restore(folder / "backup", f"sqlite:///{folder}/journal.sqlite")
    job = asyncio.run(second())
    assert (job.state, job.attempt, job.code) == ("succeeded", 1, 0)
    assert (folder / "starts").read_text().split() == ["job.1.0", "job.1.0"]


def test_what_ran_when_the_backup_was_made_is_found_again_after_it_was_restored(folder: Path) -> None:
    word = folder / "word"
    work = f"echo >> {folder}/starts; until [ -e {word} ]; do sleep 0.1; done"

    async def first() -> None:
        async with life(folder, 1) as made:
            await made.use(True)
            await made.submit("job", work)
            await made.until(lambda job: job.state == "running", "job")
            await asyncio.to_thread(backup, f"sqlite:///{folder}/journal.sqlite", folder / "backup")

    async def second() -> Job:
        async with life(folder, 2) as made:
            await made.use(True)
            return await made.until(ended, "job")

    asyncio.run(first())
    restore(folder / "backup", f"sqlite:///{folder}/journal.sqlite")
    word.touch()
    assert asyncio.run(second()).state == "succeeded"
    assert (folder / "starts").read_text() == "\n"
