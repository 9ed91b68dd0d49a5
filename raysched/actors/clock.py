"""The ledger's clock: it follows the wall clock, and no jump of that one lets time go by.

Time-outs compare times that facts hold. So a wall clock that is set (NTP, a suspended laptop, somebody's
`date`) must not move under them: the ledger goes on by the machine's uptime, which never jumps and stands
still while the machine sleeps, and once it sees that the wall clock has jumped it moves all times that it
knows by as much (`facts.ClockSet`). Durations stay what they were, and what people read is the wall clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from raysched.core.state import Reading

JUMP = 1_000
"""The wall clock jumped if it is more than so many milliseconds off; less is drift, and followed."""

DRIFT = 50
"""Milliseconds by which one look follows the wall clock."""


def wall_clock() -> int:
    """Milliseconds since 1970, as the machine believes."""
    return time.time_ns() // 1_000_000


def uptime() -> int:
    """Milliseconds that this machine has been up and awake."""
    return time.monotonic_ns() // 1_000_000


def boot_id() -> str:
    """The name of this start of the machine; empty where the system tells none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class Clock:
    """Milliseconds since 1970 that never run backwards and never jump, but by `shift`."""

    def __init__(
        self,
        wall: Callable[[], int] = wall_clock,
        uptime: Callable[[], int] = uptime,
        boot: Callable[[], str] = boot_id,
    ) -> None:
        self._wall = wall
        self.uptime = uptime
        self.boot = boot()
        self._base = wall() - uptime()
        self._last = 0

    def resume(self, reading: Reading | None, latest: int) -> None:
        """Go on from the last reading that was written down, so that time which went by since then counts
        and a jump since then does not. After another start of the machine only the wall clock can tell, but
        it is never before `latest`, the last time that a fact holds."""
        if reading is not None and reading.boot == self.boot and reading.uptime <= self.uptime():
            self._base = reading.at - reading.uptime
        self._base = max(self._base, latest - self.uptime())
        self._last = latest

    def now(self) -> int:
        """The time."""
        self._last = max(self._last, self._base + self.uptime())
        return self._last

    def look(self) -> int:
        """How far the wall clock jumped, 0 if it did not; small differences are followed."""
        gap = self._wall() - self.now()
        if abs(gap) > JUMP:
            return gap
        self._base += max(-DRIFT, min(DRIFT, gap))
        return 0

    def shift(self, by: int) -> None:
        """Jump, once all known times have been moved as far."""
        self._last = self.now() + by
        self._base = self._last - self.uptime()
