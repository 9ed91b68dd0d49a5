"""Waiting for the end of processes that are nobody's children."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable

POLL = 0.5
"""Seconds between two looks where the system has no pidfd_open (Linux before 5.3)."""


class Exits:
    """Wakes when one of some processes ends, or when it is told to."""

    def __init__(self) -> None:
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Let the next, or present, `wait` return at once. For the thread of the event loop only."""
        self._woken.set()

    async def wait(self, pids: Iterable[int], timeout: float) -> None:
        """Return when one of `pids` has ended, after `wake`, or after `timeout` seconds."""
        if not hasattr(os, "pidfd_open"):
            timeout = min(timeout, POLL)
        descriptors = self._watch(pids)
        try:
            await asyncio.wait_for(self._woken.wait(), timeout)
        except asyncio.TimeoutError:
            pass
        finally:
            self._woken.clear()
            for descriptor in descriptors:
                asyncio.get_running_loop().remove_reader(descriptor)
                os.close(descriptor)

    def _watch(self, pids: Iterable[int]) -> list[int]:
        """A descriptor for each process, which the event loop finds readable once that has ended."""
        if not hasattr(os, "pidfd_open"):
            return []
        descriptors: list[int] = []
        for pid in pids:
            try:
                descriptor = os.pidfd_open(pid)
            except OSError:  # gone already
                self._woken.set()
                continue
            asyncio.get_running_loop().add_reader(descriptor, self._woken.set)
            descriptors.append(descriptor)
        return descriptors
