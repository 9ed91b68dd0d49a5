"""What the API tells of the past: read from the journal, in the gateway's own process, so that no ledger
waits for it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from raysched.core.advice import advice_view, advise
from raysched.core.history import Records
from raysched.core.usage import By, Window, usage, usage_view
from raysched.store.reader import Reader, no_collection

View = dict[str, Any]


class Past:
    """The journal at a URL. One question is answered at a time: each reads all of it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._reading = asyncio.Lock()

    async def usage(self, by: By, seconds: float) -> View:
        """What was granted and used in the last so many seconds. Raises StorageError."""
        window, records = await self._records(seconds)
        groups = {job.job: job.group for job in records.jobs.values()}
        return usage_view(usage(records.leases.values(), by, window, groups), by, window)

    async def advice(self, seconds: float) -> View:
        """Which jobs could take a smaller share, from the last so many seconds. Raises StorageError."""
        window, records = await self._records(seconds)
        return advice_view(advise(records.leases.values(), records.jobs, window), window)

    async def _records(self, seconds: float) -> tuple[Window, Records]:
        async with self._reading:
            records = await asyncio.to_thread(self._read)
        now = time.time_ns() // 1_000_000
        return Window(now - round(seconds * 1000), now), records

    def _read(self) -> Records:
        records = Records()
        with Reader(self._url) as journal, no_collection():
            for _, fact in journal.facts():
                records.tell(fact)
        return records
