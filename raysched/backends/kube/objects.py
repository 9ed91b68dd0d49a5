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


class Objects:
    """The objects of one raysched, `system`; `changed` is called when one of them may have. Each call raises
    what those of `Cluster` do."""

    def __init__(self, cluster: Cluster, system: str, changed: Callable[[], None]) -> None:
        self.cluster = cluster
        self.system = system
        ours = f"{SYSTEM}={system}"
        records = f"{ours},{PART}=record"

        def watch(kind: str, labels: str, **named: Any) -> Watch:
            return Watch(cluster, lambda: self.at(kind), {"labelSelector": labels}, changed, **named)

        self._records = watch("configmaps", records)
        self._jobs = watch("jobs", ours)
        self._ray_jobs = watch("rayjobs", ours, optional=True)
        self._pods = watch("pods", ours, keep_departed=True)
        self._read: dict[str, tuple[str, Record]] = {}

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

    # ------------------------------------------------------------ records

    def records(self) -> dict[str, Record]:
        """All records by name, each read once."""
        found: dict[str, tuple[str, Record]] = {}
        for name, told in self._records.objects.items():
            version = told["metadata"]["resourceVersion"]
            known = self._read.get(name)
            record = known[1] if known is not None and known[0] == version else read(told)
            if record is not None and record.name == name_of(record.run, self.system):
                found[name] = (version, record)
        self._read = found
        return {name: record for name, (_, record) in found.items()}

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
        self._read.pop(name, None)

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

    async def let_go(self, record: Record) -> None:
        """Have Kubernetes start a Job that was made suspended."""
        await self._change(
            record, {"metadata": {"annotations": {LET_GO: "true"}}, "spec": {"suspend": False}}
        )

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

    def pods(self) -> dict[str, list[Object]]:
        """The pods by the names of their runs, as far as the watch has told; also those that are gone, as
        they were last seen."""
        found: dict[str, list[Object]] = {}
        for pod in (*self._pods.departed.values(), *self._pods.objects.values()):
            found.setdefault(pod["metadata"]["labels"].get(NAME, ""), []).append(pod)
        return found

    async def all_pods(self, name: str) -> list[Object]:
        """The pods of a run as they are now, and those that were there before, as they were last seen."""
        query = {"labelSelector": f"{SYSTEM}={self.system},{NAME}={name}"}
        there, _ = await self.cluster.list(self.at("pods"), query)
        names = {pod["metadata"]["name"] for pod in there}
        before = [pod for pod in self.pods().get(name, []) if pod["metadata"]["name"] not in names]
        return [*map(_as_gone, before), *there]

    async def delete_pod(self, pod: Object, grace: int) -> None:
        """Delete a pod, with so many seconds between SIGTERM and SIGKILL."""
        await self.cluster.delete(self.at("pods", pod["metadata"]["name"]), grace=grace)

    def forget_pods(self, name: str) -> None:
        """Remember the pods of a run no longer that are gone."""
        for gone, pod in list(self._pods.departed.items()):
            if pod["metadata"]["labels"].get(NAME) == name:
                del self._pods.departed[gone]


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
