"""How runs are ended, and how it is made sure of that one has ended and nothing of it goes on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from raysched.backends.kube.cluster import Answered, Object
from raysched.backends.kube.manifest import seconds
from raysched.backends.kube.names import name_of
from raysched.backends.kube.objects import Objects, has_ended, is_over
from raysched.backends.kube.output import Output
from raysched.backends.kube.ray_verdict import of_role
from raysched.backends.kube.records import Record, end_text
from raysched.backends.kube.sent import Sent
from raysched.backends.kube.verdict import TOLD_TO_END, Verdict, fresh, in_kueue
from raysched.core.work import Run, Seen
from raysched.errors import Unreachable
from raysched.tasks import stop

AGAIN_S = 1.0
"""Time before the end of a run is looked at again that could not be made sure of."""
UNKNOWN = "all that Kubernetes knew of it was deleted, not by raysched"

Judge = Callable[[Record, Sequence[Object]], Verdict]

log = logging.getLogger(__name__)


class Ends:
    """Ends runs, and concludes those that have ended. `judge` tells what is to be said of a record with these
    pods, `changed` is called once one is concluded."""

    def __init__(
        self, objects: Objects, output: Output, sent: Sent, judge: Judge, changed: Callable[[], None]
    ) -> None:
        self._objects = objects
        self._output = output
        self._sent = sent
        self._judge = judge
        self._changed = changed
        self._concluding: dict[Run, asyncio.Task[None]] = {}

    async def close(self) -> None:
        """Conclude nothing any more."""
        await stop(*self._concluding.values())

    # ------------------------------------------------------------ ending one

    async def end(self, run: Run, grace: float) -> None:
        """Begin to end a run. One that has not begun never will. Raises Answered."""
        never = Seen(run, "exited", None, int(time.time() * 1000), TOLD_TO_END)
        record = await self._objects.make_record(run, "", stop="1", end=end_text(never))
        if record.end is not None:
            return
        if not record.stop:
            record = await self._objects.write(record, stop="1")
        job = await self._objects.job(record)
        if job is None or is_over(job):
            return
        if fresh(job):
            await self._objects.delete_job(record.name, ray=record.ray)
            return
        self._output.follow(run, self._objects.pods(record.name))
        # First no more pods, then the end of those that are there. Kueue would let go again what it admitted.
        if not in_kueue(job):
            with suppress(Answered):
                await self._objects.suspend(record)
        for pod in await self._objects.all_pods(record.name):
            if not has_ended(pod):
                await self._objects.delete_pod(pod, seconds(int(grace * 1000)))
        if record.ray and in_kueue(job):  # else KubeRay would make its pods anew
            await self._objects.delete_job(record.name, ray=True)

    # ------------------------------------------------------------ making sure

    def conclude(self, record: Record) -> None:
        """See to it that it is written down how a run ended."""
        self._begin(record.run, self._concluded(record))

    def look_for(self, run: Run) -> None:
        """Make sure that the record of a run that was let go is gone, and end what is left of it."""
        self._begin(run, self._lost(run))

    def _begin(self, run: Run, step: Coroutine[Any, Any, bool]) -> None:
        if run in self._concluding:
            step.close()
        else:
            self._concluding[run] = asyncio.create_task(self._once(run, step))

    async def _once(self, run: Run, step: Coroutine[Any, Any, bool]) -> None:
        try:
            if not await step:
                await asyncio.sleep(AGAIN_S)
        except (Answered, Unreachable) as error:
            log.warning("the end of %s is looked at again: %s", run, error)
            await asyncio.sleep(AGAIN_S)
        finally:
            del self._concluding[run]
            self._changed()

    async def _lost(self, run: Run) -> bool:
        if await self._objects.look_for_record(run):
            return True
        name = name_of(run, self._objects.system)
        await self._objects.delete_job(name, ray=False)
        if self._objects.knows_ray:
            await self._objects.delete_job(name, ray=True)
        if not all(map(has_ended, await self._objects.all_pods(name))):
            return False
        self._sent.lose(Seen(run, "lost", reason=UNKNOWN))
        return True

    async def _concluded(self, record: Record) -> bool:
        """Whether it is written down how a run ended."""
        job, pods = self._objects.known_job(record), self._objects.pods(record.name)
        if not _tells_all(job, pods):
            job = await self._objects.job(record)
            pods = await self._objects.all_pods(record.name)
        judged = self._judge(record, pods)
        if judged.end is None:
            return False
        if judged.early:
            await self._objects.write(record, due=end_text(judged.end))
        if job is not None and not is_over(job):
            self._output.follow(record.run, pods)
            await self._objects.delete_job(record.name, ray=record.ray)
        elif record.ray:
            await self._objects.delete_ray(record.name, submitter=_submits(pods))
        if not all(map(has_ended, pods)):
            return False
        await self._output.finish(record.run, pods)
        end = judged.end
        if end.ended is None:
            end = replace(end, ended=int(time.time() * 1000))
        await self._objects.write(record, end=end_text(end))
        self._objects.forget_pods(record.name)
        return True


def _tells_all(job: Object | None, pods: Sequence[Object]) -> bool:
    """Whether nothing can come after what is known of a Job and its pods: Kubernetes says that it is over,
    and all the pods that it counted are known, and how they ended."""
    if job is None or job.get("kind") == "RayJob" or not is_over(job):
        return False
    status = job["status"]
    counted = status.get("succeeded", 0) + status.get("failed", 0)
    goes_on = status.get("active") or status.get("terminating") or status.get("uncountedTerminatedPods")
    return not goes_on and 0 < counted <= len(pods) and all(map(has_ended, pods))


def _submits(pods: Sequence[Object]) -> bool:
    """Whether the submitter of a Ray job has not ended."""
    return not all(map(has_ended, of_role(pods, "submitter")))
