"""Our objects in the cluster: the records, Jobs and pods of runs, each kind kept up to date by a watch, which
is told of what we change ourselves before it hears of it. A Job is one of Kubernetes or, of a Ray job, a
RayJob of KubeRay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from raysched.backends.kube.cluster import Answered, Cluster, Object
from raysched.backends.kube.names import LET_GO, NAME, PART, SYSTEM, name_of
from raysched.backends.kube.records import Record, new_record, read
from raysched.backends.kube.watching import Watch
from raysched.core.work import Run

GROUPS = {
    "jobs": "/apis/batch/v1",
    "rayjobs": "/apis/ray.io/v1",
    "rayclusters": "/apis/ray.io/v1",
    "resourceclaimtemplates": "/apis/resource.k8s.io/v1",
}
"""Where the API server has the kinds that are not its oldest."""

Note = Callable[[Object], None]


class Objects:
    """The objects of one raysched, `system`; `changed` is called when one of them may have. Each call raises
    what those of `Cluster` do."""

    def __init__(self, cluster: Cluster, system: str, changed: Callable[[], None]) -> None:
        self.cluster = cluster
        self.system = system
        ours = f"{SYSTEM}={system}"
        records = f"{ours},{PART}=record"

        def watch(kind: str, labels: str, note: Note = self._note_change, **named: Any) -> Watch:
            return Watch(
                cluster, lambda: self.at(kind), {"labelSelector": labels}, changed, note=note, **named
            )

        self._records = watch("configmaps", records, self._note_record)
        self._jobs = watch("jobs", ours)
        self._ray_jobs = watch("rayjobs", ours, optional=True)
        self._pods = watch("pods", ours, self._note_pod, keep_departed=True)
        # The names of runs of which something changed, and of records that have to be read again.
        self._changed: set[str] = set()
        self._unread: set[str] = set()
        self._read: dict[str, Record] = {}
        self._pods_of: dict[str, dict[str, None]] = {}

    async def ready(self) -> None:
        """Return once all of them are known. Raises Unreachable."""
        await self.cluster.open()
        await asyncio.gather(*(watch.ready() for watch in self._watches))

    async def close(self) -> None:
        """Watch no more."""
        for watch in self._watches:
            await watch.close()

    @property
    def _watches(self) -> tuple[Watch, ...]:
        return (self._records, self._jobs, self._ray_jobs, self._pods)

    def at(self, kind: str, name: str = "") -> str:
        """The path of our objects of a kind, or of one of them."""
        group = GROUPS.get(kind, "/api/v1")
        path = f"{group}/namespaces/{self.cluster.namespace}/{kind}"
        return f"{path}/{name}" if name else path

    # ------------------------------------------------------------ what changed

    def _note_change(self, told: Object) -> None:
        self._changed.add(_run_name(told))

    def _note_record(self, told: Object) -> None:
        self._unread.add(told["metadata"]["name"])
        self._note_change(told)

    def _note_pod(self, told: Object) -> None:
        self._pods_of.setdefault(_run_name(told), {})[told["metadata"]["name"]] = None
        self._note_change(told)

    def changes(self) -> set[str]:
        """The names of the runs of which an object came, changed or went since this was asked last."""
        changed, self._changed = self._changed, set()
        return changed

    # ------------------------------------------------------------ records

    def records(self) -> dict[str, Record]:
        """All records by name."""
        for name in self._unread:
            told = self._records.objects.get(name)
            record = None if told is None else read(told)
            if record is not None and record.name == name_of(record.run, self.system):
                self._read[name] = record
            else:
                self._read.pop(name, None)
        self._unread.clear()
        return dict(self._read)

    def record(self, run: Run) -> Record | None:
        """The record of a run, as far as the watch has told."""
        told = self._records.objects.get(name_of(run, self.system))
        return None if told is None else read(told)

    async def look_for_record(self, run: Run) -> bool:
        """Whether the cluster has the record of a run now."""
        told = await self.cluster.get(self.at("configmaps", name_of(run, self.system)))
        if told is not None:
            self._records.put(told)
        return told is not None

    async def make_record(self, run: Run, files: str, **data: str) -> Record:
        """The record of a run, made if it is not there."""
        name = name_of(run, self.system)
        new = new_record(run, self.cluster.namespace, self.system, files=files, **data)
        try:
            told = await self.cluster.create(self.at("configmaps"), new)
        except Answered as error:
            if not error.exists:
                raise
            told = await self.cluster.call("GET", self.at("configmaps", name))
        return self._note(told)

    async def write(self, record: Record, **data: str) -> Record:
        """Write into a record; what it says now."""
        return self._note(await self.cluster.patch(self.at("configmaps", record.name), {"data": data}))

    def _note(self, told: Object) -> Record:
        self._records.put(told)
        record = read(told)
        assert record is not None, f"the record {told['metadata']['name']} can't be read"
        return record

    async def delete_record(self, name: str) -> None:
        """Delete a record."""
        await self.cluster.delete(self.at("configmaps", name))
        self._records.drop(name)

    # ------------------------------------------------------------ Jobs

    def known_job(self, record: Record) -> Object | None:
        """The Job of a run, as far as the watch has told."""
        return self._jobs_of(record).objects.get(record.name)

    @property
    def knows_ray(self) -> bool:
        """Whether the cluster has RayJobs, and we may see them."""
        return not self._ray_jobs.absent

    def _jobs_of(self, record: Record) -> Watch:
        return self._ray_jobs if record.ray else self._jobs

    def _at_job(self, record: Record) -> str:
        return self.at("rayjobs" if record.ray else "jobs", record.name)

    async def job(self, record: Record) -> Object | None:
        """The Job of a run as it is now."""
        job = await self.cluster.get(self._at_job(record))
        if job is not None:
            self._jobs_of(record).put(job)
        else:
            self._jobs_of(record).drop(record.name)
        return job

    async def make_job(self, record: Record, job: Object) -> Object:
        """The Job of a run, made if it is not there."""
        try:
            made = await self.cluster.create(self.at("rayjobs" if record.ray else "jobs"), job)
        except Answered as error:
            if not error.exists:
                raise
            made = await self.cluster.call("GET", self._at_job(record))
        self._jobs_of(record).put(made)
        return made

    async def let_go(self, record: Record, pods: int) -> None:
        """Have Kubernetes make the pods of a Job that was made without."""
        go: Object = {"suspend": False} if record.ray else {"parallelism": pods}
        await self._change(record, {"metadata": {"annotations": {LET_GO: "true"}}, "spec": go})

    async def suspend(self, record: Record) -> None:
        """Have Kubernetes make no pods of a Job any more."""
        await self._change(record, {"spec": {"suspend": True}})

    async def label(self, record: Record, key: str, value: str) -> None:
        """Give the Job of a run a label."""
        await self._change(record, {"metadata": {"labels": {key: value}}})

    async def _change(self, record: Record, change: Object) -> None:
        self._jobs_of(record).put(await self.cluster.patch(self._at_job(record), change))

    async def delete_job(self, name: str, *, ray: bool) -> None:
        """Delete a Job with its pods."""
        await self.cluster.delete(self.at("rayjobs" if ray else "jobs", name))
        if ray:
            await self.delete_ray(name, submitter=True)

    async def delete_ray(self, name: str, *, submitter: bool) -> None:
        """Delete the Ray that KubeRay made for a RayJob, as it does itself where it runs, and what submits to
        it: once that has ended, it still has the output."""
        query = {"labelSelector": f"ray.io/originated-from-cr-name={name}"}
        clusters, _ = await self.cluster.list(self.at("rayclusters"), query)
        for cluster in clusters:
            await self.cluster.delete(self.at("rayclusters", cluster["metadata"]["name"]))
        if submitter:
            await self.cluster.delete(self.at("jobs", name))

    def drop_job(self, record: Record) -> None:
        """Take note that a Job is gone."""
        self._jobs_of(record).drop(record.name)

    # ------------------------------------------------------------ pods

    def pods(self, name: str) -> list[Object]:
        """The pods of a run, as far as the watch has told; also those that are gone, as they were last
        seen."""
        names, gone, there = self._pods_of.get(name, {}), self._pods.departed, self._pods.objects
        return [known[pod] for known in (gone, there) for pod in names if pod in known]

    async def all_pods(self, name: str) -> list[Object]:
        """The pods of a run as they are now, and those that were there before, as they were last seen."""
        query = {"labelSelector": f"{SYSTEM}={self.system},{NAME}={name}"}
        there, _ = await self.cluster.list(self.at("pods"), query)
        names = {pod["metadata"]["name"] for pod in there}
        before = [pod for pod in self.pods(name) if pod["metadata"]["name"] not in names]
        return [*map(_as_gone, before), *there]

    async def delete_pod(self, pod: Object, grace: int) -> None:
        """Delete a pod, with so many seconds between SIGTERM and SIGKILL."""
        await self.cluster.delete(self.at("pods", pod["metadata"]["name"]), grace=grace)

    def forget_pods(self, name: str) -> None:
        """Remember the pods of a run no longer that are gone."""
        names = self._pods_of.pop(name, {})
        for pod in names:
            self._pods.departed.pop(pod, None)
        if there := {pod: None for pod in names if pod in self._pods.objects}:
            self._pods_of[name] = there


def _run_name(told: Object) -> str:
    return told["metadata"]["labels"].get(NAME, "")


def is_over(job: Object) -> bool:
    """Whether Kubernetes says that a Job has ended."""
    if job.get("kind") == "RayJob":
        return job.get("status", {}).get("jobDeploymentStatus") in ("Complete", "Failed", "ValidationFailed")
    conditions = job.get("status", {}).get("conditions") or []
    return any(one["type"] in ("Complete", "Failed") and one["status"] == "True" for one in conditions)


def has_ended(pod: Object) -> bool:
    """Whether nothing of a pod runs any more."""
    return pod["status"].get("phase") in ("Succeeded", "Failed")


def _as_gone(pod: Object) -> Object:
    """A pod that is gone: whatever was last seen of it, it has ended."""
    return pod if has_ended(pod) else {**pod, "status": {**pod["status"], "phase": "Failed"}}
