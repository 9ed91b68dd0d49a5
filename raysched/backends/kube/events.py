"""Why there is no pod of a Job, from Kubernetes' events and from Kueue's workloads: one question about all of
them, now and then.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

from raysched.backends.kube.cluster import Answered, Object
from raysched.backends.kube.moments import moment
from raysched.backends.kube.objects import Objects, is_over
from raysched.backends.kube.reasons import in_kueue as kueue_says
from raysched.backends.kube.reasons import not_made
from raysched.backends.kube.verdict import halted, waits_in_kueue
from raysched.errors import Unreachable

EVENTS_S = 3.0
"""How long a Job may have no pod before it is asked why, and the time between two such questions."""


KUEUE = ("v1beta2", "v1beta1")
"""Versions of Kueue's API, the newest first."""


class Events:
    """What was heard: `why` by the name of the Job."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._asked = 0.0
        self.why: dict[str, str] = {}

    async def ask(self, jobs: Sequence[Object]) -> None:
        """Learn why there is no pod of these Jobs: of those that were let go long enough ago, and those
        that Kueue lets wait."""
        now = int(time.time() * 1000)
        empty = [job["metadata"]["name"] for job in jobs if _waits_for_pods(job, now)]
        queued = [job["metadata"]["name"] for job in jobs if waits_in_kueue(job)]
        names = {*empty, *queued}
        if not names or time.monotonic() - self._asked < EVENTS_S:
            self.why = {name: why for name, why in self.why.items() if name in names}
            return
        self._asked = time.monotonic()
        with suppress(Answered, Unreachable):
            told = {**(await self._not_made() if empty else {}), **(await self._queued() if queued else {})}
            self.why = {name: why for name, why in told.items() if name in names}

    async def _not_made(self) -> dict[str, str]:
        query = {"fieldSelector": "reason=FailedCreate,involvedObject.kind=Job"}
        events, _ = await self._objects.cluster.list(self._objects.at("events"), query)
        return {event["involvedObject"]["name"]: not_made(event.get("message", "")) for event in events}

    async def _queued(self) -> dict[str, str]:
        for version in KUEUE:
            group = f"/apis/kueue.x-k8s.io/{version}/namespaces/{self._objects.cluster.namespace}"
            try:
                workloads, _ = await self._objects.cluster.list(f"{group}/workloads", {})
            except Answered as error:
                if error.missing:
                    continue
                raise
            return {
                owner["name"]: kueue_says(workload)
                for workload in workloads
                for owner in workload["metadata"].get("ownerReferences") or []
                if owner["kind"] in ("Job", "RayJob")
            }
        return {}


def _waits_for_pods(job: Object, now: int) -> bool:
    """Of a RayJob, KubeRay says itself why there is none."""
    since = moment(job.get("status", {}).get("startTime")) or now
    plain = job.get("kind") != "RayJob"
    return plain and not halted(job) and not is_over(job) and now - since > EVENTS_S * 1000
