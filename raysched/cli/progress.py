"""How far several jobs are: a table that redraws itself on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from raysched.cli.job_list import ENDED, by_state, job_table
from raysched.cli.output import note
from raysched.client import Json

if TYPE_CHECKING:
    from rich.live import Live

BETWEEN_NOTES = 5.0
"""Seconds between two lines of progress in a file."""
ROWS = 12
"""Jobs that the live table shows."""


class Notes:
    """Lines on stderr: none twice in a row, and those about progress only every few seconds."""

    def __init__(self) -> None:
        self._last = ""
        self._at = float("-inf")

    def tell(self, message: str) -> None:
        """Print the line at once, unless it was the last one."""
        if message != self._last:
            self._last, self._at = message, time.monotonic()
            note(message)

    def progress(self, message: str) -> None:
        """Print the line if the last one is some seconds old."""
        if time.monotonic() - self._at >= BETWEEN_NOTES:
            self.tell(message)


class Progress(Protocol):
    """Shows how far jobs are; `clear` makes way for other output on the same terminal."""

    def show(self, jobs: Sequence[Json]) -> None: ...

    def clear(self) -> None: ...


class Lines:
    """For files and dumb terminals."""

    def __init__(self) -> None:
        self._notes = Notes()

    def show(self, jobs: Sequence[Json]) -> None:
        """Say how many jobs are in which state."""
        self._notes.progress(by_state(jobs))

    def clear(self) -> None:
        """Nothing is in the way."""


class LiveTable:
    """For terminals: the jobs that have not ended, redrawn in place on stderr."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._live: Live | None = None

    def show(self, jobs: Sequence[Json]) -> None:
        """Draw the table anew."""
        from rich.console import Group
        from rich.live import Live
        from rich.text import Text

        busy = [job for job in jobs if job["state"] not in ENDED][:ROWS]
        lines = [Text(by_state(jobs), "bold"), *(job_table(busy, self._console.width) if busy else [])]
        picture = Group(*lines[: self._console.height - 1])
        if self._live is None:
            self._live = Live(picture, console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(picture, refresh=True)

    def clear(self) -> None:
        """Take the table off the screen. The next one is drawn below what is printed then."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def progress() -> Progress:
    """The kind of progress that stderr can show."""
    redraws = sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    return LiveTable() if redraws else Lines()
