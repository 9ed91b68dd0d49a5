"""What is to be said of each run: judged anew where something of it changed, and now and then where time or
the nodes may have changed it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from raysched.backends.kube.objects import Objects
from raysched.backends.kube.records import Record
from raysched.backends.kube.verdict import Verdict

WAITING_S = 1.0
"""Time between two looks at a run that waits and of which nothing changed."""


class Sights:
    """The verdicts of `judge`, by the names of the runs."""

    def __init__(self, objects: Objects, judge: Callable[[Record], Verdict]) -> None:
        self._objects = objects
        self._judge = judge
        self._verdicts: dict[str, Verdict] = {}
        self._waiting: set[str] = set()
        self._looked = 0.0

    def look(self, records: Mapping[str, Record]) -> Mapping[str, Verdict]:
        """The verdicts on all of these records, which are all that there are."""
        names = self._objects.changes() | (records.keys() - self._verdicts.keys())
        if time.monotonic() - self._looked >= WAITING_S:
            self._looked = time.monotonic()
            names |= self._waiting
        for name in names:
            self._waiting.discard(name)
            if name not in records:
                self._verdicts.pop(name, None)
                continue
            judged = self._verdicts[name] = self._judge(records[name])
            if judged.end is not None or (judged.seen is not None and judged.seen.state == "queued"):
                self._waiting.add(name)
        return self._verdicts
