"""Hands runs to Slurm, elements of an array as one job array, and each run once, whatever goes wrong."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Literal

from raysched.backends.base import EngineRefused
from raysched.backends.slurm import script
from raysched.backends.slurm.controller import Batch, Controller, Refused, Unanswered
from raysched.backends.slurm.folder import Folder
from raysched.backends.slurm.listing import Listing
from raysched.backends.slurm.program import program
from raysched.backends.slurm.script import Defaults, Identity, element
from raysched.core.work import Launch, Run

GATHER_S = 0.03
"""How long launches are gathered before they are sent together."""
AT_ONCE = 4
"""How many sbatch run at a time: few enough that jobs come to Slurm in about their order."""
AGAIN_S = 2.0
"""Time before a controller that did not answer is asked again."""
FIRST_TASKS = 1000
"""Slurm's usual MaxArraySize is 1001, so no task may have a number above this."""

_ARRAY = re.compile(r"job array", re.IGNORECASE)

Prepare = Callable[[Launch], Literal["ready", "again", "begun"]]

log = logging.getLogger(__name__)


class Sender:
    """Sends launches. `prepare` makes a run's folder ready, in a thread."""

    def __init__(
        self,
        controller: Controller,
        listing: Listing,
        identity: Identity,
        defaults: Defaults,
        root: Path,
        prepare: Prepare,
    ) -> None:
        self._controller = controller
        self._listing = listing
        self._identity = identity
        self._defaults = defaults
        self._root = root
        self._prepare = prepare
        self._waiting: dict[Hashable, list[tuple[Launch, asyncio.Future[None]]]] = {}
        self._few = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self.sending: set[Run] = set()

    async def send(self, launch: Launch) -> None:
        """Hand a run to Slurm, unless it was before. Raises EngineRefused."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        key = _alike(launch)
        gathered = self._waiting.setdefault(key, [])
        gathered.append((launch, done))
        self.sending.add(launch.run)
        if len(gathered) == 1:
            task = asyncio.create_task(self._flush(key))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            await done
        finally:
            self.sending.discard(launch.run)

    async def _flush(self, key: Hashable) -> None:
        await asyncio.sleep(GATHER_S)
        gathered = self._waiting.pop(key)
        futures = {launch.run: done for launch, done in gathered}
        try:
            refused = await self._send_all([launch for launch, _ in gathered])
        except Exception as error:
            refused = {launch.run: error for launch, _ in gathered}
        self._listing.hurry()
        for run, done in futures.items():
            if done.done():
                continue
            if run in refused:
                done.set_exception(refused[run])
            else:
                done.set_result(None)

    async def _send_all(self, launches: list[Launch]) -> dict[Run, Exception]:
        """Prepare and send launches that can go together; those that were refused, with the reason."""
        refused: dict[Run, Exception] = {}
        fresh, again = await asyncio.to_thread(self._prepare_all, launches, refused)
        if again:
            fresh += await self._missing(again)
        if fresh:
            await self._submit(fresh, refused)
        return refused

    def _prepare_all(
        self, launches: Sequence[Launch], refused: dict[Run, Exception]
    ) -> tuple[list[Launch], list[Launch]]:
        """Those that were never handed over, and those that may have been."""
        found: dict[str, list[Launch]] = {"ready": [], "again": [], "begun": []}
        for launch in launches:
            try:
                found[self._prepare(launch)].append(launch)
            except EngineRefused as error:
                refused[launch.run] = error
        return found["ready"], found["again"]

    async def _missing(self, launches: list[Launch]) -> list[Launch]:
        """Those of which Slurm knows nothing, as it says now, and that have not begun meanwhile."""
        while not await self._listing.ask():
            await asyncio.sleep(AGAIN_S)
        missing = [launch for launch in launches if self._listing.find(launch.run) is None]
        return await asyncio.to_thread(
            lambda: [one for one in missing if not Folder(self._root / str(one.run), one.run).begun]
        )

    async def _submit(self, launches: list[Launch], refused: dict[Run, Exception]) -> None:
        """Send launches, several as one array; as smaller ones where Slurm takes no such array."""
        for batch, sent in self._batches(launches):
            while True:
                try:
                    async with self._few:
                        await self._controller.submit(batch)
                except Unanswered as error:
                    # Perhaps it was taken all the same: look before it is sent again.
                    log.warning("sbatch: %s", error)
                    await asyncio.sleep(AGAIN_S)
                    missing = await self._missing(sent)
                    if len(missing) == len(sent):
                        continue
                    if missing:
                        await self._submit(missing, refused)
                except Refused as error:
                    await self._smaller(sent, error, refused)
                break

    async def _smaller(self, sent: list[Launch], error: Refused, refused: dict[Run, Exception]) -> None:
        splits = not error.final or _ARRAY.search(error.reason)
        if len(sent) > 1 and splits:
            half = len(sent) // 2
            await self._submit(sent[:half], refused)
            await self._submit(sent[half:], refused)
        else:
            for launch in sent:
                refused[launch.run] = EngineRefused(error.reason, final=error.final)

    def batches(self, launches: Sequence[Launch]) -> list[tuple[Batch, list[Launch]]]:
        """What would be sent, were these launches started together."""
        groups: dict[Hashable, list[Launch]] = {}
        for launch in launches:
            groups.setdefault(_alike(launch), []).append(launch)
        return [batch for group in groups.values() for batch in self._batches(group)]

    def _batches(self, launches: list[Launch]) -> list[tuple[Batch, list[Launch]]]:
        copy = str(program(self._root))
        low = [one for one in launches if (found := element(one.run)) and found[1] <= FIRST_TASKS]
        together = low if len(low) > 1 else []
        batches = [(self._array(together, copy), together)] if together else []
        alone = [one for one in launches if one not in together] if together else launches
        return batches + [(self._single(one, copy), [one]) for one in alone]

    def _array(self, launches: list[Launch], copy: str) -> Batch:
        return script.array(launches, self._identity, self._defaults, str(self._root), copy)

    def _single(self, launch: Launch, copy: str) -> Batch:
        folder = str(self._root / str(launch.run))
        return script.single(launch, self._identity, self._defaults, folder, copy)


def _alike(launch: Launch) -> Hashable:
    """Equal for launches that can be one array."""
    found = element(launch.run)
    if found is None:
        return launch.run
    return found[0], launch.run.attempt, launch.order.demand if launch.order else None
