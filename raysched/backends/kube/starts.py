"""How runs are started: each once, wherever its start is cut off, and whoever deletes it then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from raysched.backends.base import EngineRefused
from raysched.backends.kube.cluster import Answered, Object
from raysched.backends.kube.files import Files
from raysched.backends.kube.manifest import Target, manifests
from raysched.backends.kube.names import KUEUE_QUEUE, name_of
from raysched.backends.kube.objects import Objects
from raysched.backends.kube.records import Record
from raysched.backends.kube.sent import Sent
from raysched.backends.kube.verdict import fresh
from raysched.core.work import Launch, Run
from raysched.errors import Unreachable

AT_ONCE = 8
"""Starts that go on at a time. The first of a thousand run while the last are still being made; with more at
a time there are hardly more a second, and Kubernetes' own controllers get no turn at the API server."""
NO_KUBERAY = (
    "k8s.ray needs the KubeRay operator, and this cluster knows no RayJobs: install it (helm install "
    "kuberay-operator kuberay/kuberay-operator)"
)


class Starts:
    """Makes the objects of runs. `target` tells where they go; `going` are those at which it is just now."""

    def __init__(self, objects: Objects, files: Files, sent: Sent, target: Callable[[], Target]) -> None:
        self._objects = objects
        self._files = files
        self._sent = sent
        self._target = target
        self._room = asyncio.Semaphore(AT_ONCE)
        self.going: set[Run] = set()

    async def start(self, launch: Launch) -> None:
        """Make a run's Job, unless it was made before. Raises EngineRefused: final for what Kubernetes would
        refuse every time. Its record is made first and knows of it before it is let go."""
        self.going.add(launch.run)
        try:
            async with self._room:
                await self._start(launch)
        except Answered as error:
            if error.code == 409:
                raise Unreachable(f"Kubernetes: {error}") from None
            with suppress(Answered):
                await self._objects.delete_record(name_of(launch.run, self._objects.system))
            raise EngineRefused(f"Kubernetes refuses it: {error}", final=error.final) from None
        finally:
            self.going.discard(launch.run)

    async def _start(self, launch: Launch) -> None:
        if launch.run in self._sent.runs and self._objects.record(launch.run) is None:
            return  # it is lost, which `observe` makes sure of
        parts = self._files.parts(launch.package)
        job, *beside = manifests(launch, self._target(), parts)
        ray = "1" if job["kind"] == "RayJob" else ""
        queue = job["metadata"]["labels"].pop(KUEUE_QUEUE, "")  # with it, Kueue may let the Job go at once
        record = await self._objects.make_record(launch.run, launch.package or "", ray=ray)
        if record.end is not None or record.stop:
            return
        made = await self._make_job(record, job, launch.package)
        if made is None or not fresh(made):
            return
        for thing in beside:
            await self._make_beside(thing, made)
        record = await self._objects.write(record, job=made["metadata"]["uid"])
        self._sent.add(launch.run)
        if not record.stop and queue:
            await self._objects.label(record, KUEUE_QUEUE, queue)
        elif not record.stop:
            await self._objects.let_go(record, made["spec"].get("completions", 1))

    async def _make_job(self, record: Record, job: Object, package: str | None) -> Object | None:
        """The Job of a run, made if it never was; None where it was made and is gone."""
        if record.job:
            return await self._objects.job(record)
        await self._files.bring(package)
        try:
            return await self._objects.make_job(record, job)
        except Answered as error:
            if error.missing and record.ray:
                await self._objects.delete_record(record.name)
                raise EngineRefused(NO_KUBERAY, final=True) from None
            raise

    async def _make_beside(self, thing: Object, job: Object) -> None:
        """An object that goes with the Job."""
        owner = {
            "apiVersion": job["apiVersion"],
            "kind": job["kind"],
            "name": job["metadata"]["name"],
            "uid": job["metadata"]["uid"],
        }
        metadata: Object = {**thing["metadata"], "ownerReferences": [owner]}
        path = self._objects.at(f"{thing['kind'].lower()}s", job["metadata"]["name"])
        await self._objects.cluster.apply(path, {**thing, "metadata": metadata})
