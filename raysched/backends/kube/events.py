"""Why Kubernetes makes no pod for a Job, from its events: one question about all of them, now and then."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

from raysched.backends.kube.cluster import Answered, Object
from raysched.backends.kube.moments import moment
from raysched.backends.kube.objects import Objects, is_over
from raysched.backends.kube.reasons import not_made
from raysched.errors import Unreachable

EVENTS_S = 3.0
"""How long a Job may have no pod before it is asked why, and the time between two such questions."""


class Events:
    """What was heard: `why` by the name of the Job."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._asked = 0.0
        self.why: dict[str, str] = {}

    async def ask(self, jobs: Sequence[Object]) -> None:
        """Learn why there is no pod of these Jobs, those that were let go long enough ago."""
        now = int(time.time() * 1000)
        empty = [job["metadata"]["name"] for job in jobs if _waits_for_pods(job, now)]
        if not empty or time.monotonic() - self._asked < EVENTS_S:
            self.why = {name: why for name, why in self.why.items() if name in empty}
            return
        self._asked = time.monotonic()
        query = {"fieldSelector": "reason=FailedCreate,involvedObject.kind=Job"}
        with suppress(Answered, Unreachable):
            events, _ = await self._objects.cluster.list(self._objects.at("events"), query)
            told = {event["involvedObject"]["name"]: event.get("message", "") for event in events}
            self.why = {name: not_made(told[name]) for name in empty if name in told}


def _waits_for_pods(job: Object, now: int) -> bool:
    since = moment(job.get("status", {}).get("startTime")) or now
    return not job["spec"].get("suspend") and not is_over(job) and now - since > EVENTS_S * 1000
