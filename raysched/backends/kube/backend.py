"""The `k8s` backend itself: makes, ends and forgets the objects of runs, and says what becomes of each."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from raysched.backends.base import EngineRefused
from raysched.backends.kube import manifest
from raysched.backends.kube.cluster import Answered, Cluster, Object
from raysched.backends.kube.files import Files
from raysched.backends.kube.mirror import Mirror
from raysched.backends.kube.moments import moment
from raysched.backends.kube.names import NAME, PART, SYSTEM, name_of
from raysched.backends.kube.output import Output
from raysched.backends.kube.reasons import not_made
from raysched.backends.kube.records import Record, end_text, new_record, read
from raysched.backends.kube.sent import Sent
from raysched.backends.kube.verdict import TOLD_TO_END, Verdict, fresh, verdict
from raysched.backends.kube.watching import Watch
from raysched.backends.tasks import stop
from raysched.core.commands import Command
from raysched.core.node import NodeInfo
from raysched.core.work import Launch, Run, Seen
from raysched.errors import Unreachable

AGAIN_S = 1.0
"""Time before the end of a run is looked at again that could not be made sure of."""
EVENTS_S = 3.0
"""How long a Job may have no pod before it is asked why, and the time between two such questions."""
LEFT_MS = 600_000
"""After how long what was made halfway, and nobody wants, is taken away."""
UNKNOWN = "all that Kubernetes knew of it was deleted, not by raysched"
QUEUE = "kueue.x-k8s.io/queue-name"
"""The label with which Kueue lets a Job go when it is its turn."""

Nodes = Callable[[], Awaitable[Mapping[str, NodeInfo]]]

log = logging.getLogger(__name__)


class KubeBackend:
    """Runs Jobs in a cluster. `system` tells the objects of this raysched from another's, `packages` holds
    packed working directories as `DIGEST.tar.gz`, `folder` the output of runs. `image` is that of jobs which
    name none; a pod whose image can't be had is given up after `patience` ms. `nodes` tells which nodes the
    ledger has."""

    name = "k8s"

    def __init__(
        self,
        cluster: Cluster,
        system: str,
        packages: Path,
        folder: Path,
        *,
        image: str | None = None,
        patience: int = 600_000,
        nodes: Nodes | None = None,
    ) -> None:
        self._cluster = cluster
        self._system = system
        self._image = image
        self._patience = patience
        self._files = Files(packages, cluster, system)
        self._output = Output(folder, cluster)
        self._sent = Sent(folder)
        self._woken = asyncio.Event()
        ours = f"{SYSTEM}={system}"
        self._records = Watch(
            cluster, lambda: self._at("configmaps"), {"labelSelector": f"{ours},{PART}=record"}, self._wake
        )
        self._jobs = Watch(cluster, lambda: self._at("jobs"), {"labelSelector": ours}, self._wake)
        self._pods = Watch(
            cluster, lambda: self._at("pods"), {"labelSelector": ours}, self._wake, keep_departed=True
        )
        self._mirror = Mirror(cluster, self._wake, nodes)
        self._read: dict[str, tuple[str, Record]] = {}
        self._starting: set[Run] = set()
        self._concluding: dict[Run, asyncio.Task[None]] = {}
        self._events: dict[str, str] = {}
        self._events_at = 0.0

    def _at(self, kind: str, name: str = "") -> str:
        """The path of our objects of a kind, or of one of them."""
        group = {"jobs": "/apis/batch/v1"}.get(kind, "/api/v1")
        path = f"{group}/namespaces/{self._cluster.namespace}/{kind}"
        return f"{path}/{name}" if name else path

    # ------------------------------------------------------------ start

    async def start(self, launch: Launch) -> None:
        """Make a run's Job, unless it was made before. Raises EngineRefused: final for what Kubernetes would
        refuse every time. Its record is made first and knows of it before it is let go, so that it runs once
        whenever this is cut off, and whoever deletes it then."""
        await self._ready()
        self._starting.add(launch.run)
        try:
            await self._start(launch)
        except Answered as error:
            if error.code == 409:
                raise Unreachable(f"Kubernetes: {error}") from None
            await self._unmake(launch.run)
            raise EngineRefused(f"Kubernetes refuses it: {error}", final=error.final) from None
        finally:
            self._starting.discard(launch.run)
            self._wake()

    async def _start(self, launch: Launch) -> None:
        if launch.run in self._sent.runs and name_of(launch.run, self._system) not in self._records.objects:
            return  # it is lost, which `observe` makes sure of
        parts = self._files.parts(launch.package)
        target = manifest.Target(self._cluster.namespace, self._system, self._image)
        job, *beside = manifest.manifests(launch, target, parts)
        record = await self._make_record(launch.run, launch.package or "")
        if record.end is not None or record.stop:
            return
        made = await self._make_job(record, job, launch.package)
        if made is None or not fresh(made):
            return
        for thing in beside:
            await self._make_beside(thing, made)
        told = await self._cluster.patch(
            self._at("configmaps", record.name), {"data": {"job": made["metadata"]["uid"]}}
        )
        self._records.put(told)
        self._sent.add(launch.run)
        if "stop" not in told["data"] and QUEUE not in made["metadata"]["labels"]:
            self._jobs.put(
                await self._cluster.patch(self._at("jobs", record.name), {"spec": {"suspend": False}})
            )

    async def _make_record(self, run: Run, files: str, **data: str) -> Record:
        """The record of a run, made if it is not there."""
        name = name_of(run, self._system)
        new = new_record(run, self._cluster.namespace, self._system, files=files, **data)
        try:
            told = await self._cluster.create(self._at("configmaps"), new)
        except Answered as error:
            if not error.exists:
                raise
            told = await self._cluster.call("GET", self._at("configmaps", name))
        self._records.put(told)
        record = read(told)
        assert record is not None, f"the record of {run} can't be read"
        return record

    async def _make_job(self, record: Record, job: Object, package: str | None) -> Object | None:
        """The Job of a run, made if it never was; None where it was made and is gone."""
        if record.job:
            return await self._cluster.get(self._at("jobs", record.name))
        await self._files.bring(package)
        try:
            made = await self._cluster.create(self._at("jobs"), job)
        except Answered as error:
            if not error.exists:
                raise
            made = await self._cluster.call("GET", self._at("jobs", record.name))
        self._jobs.put(made)
        return made

    async def _make_beside(self, thing: Object, job: Object) -> None:
        """An object that goes with the Job."""
        owner = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": job["metadata"]["name"],
            "uid": job["metadata"]["uid"],
        }
        metadata: Object = {**thing["metadata"], "ownerReferences": [owner]}
        path = self._at(f"{thing['kind'].lower()}s", job["metadata"]["name"])
        await self._cluster.apply(path, {**thing, "metadata": metadata})

    async def _unmake(self, run: Run) -> None:
        """Take the record of a run away whose Job was refused."""
        name = name_of(run, self._system)
        with suppress(Answered):
            await self._cluster.delete(self._at("configmaps", name))
            self._records.drop(name)

    async def scripts(self, launches: Sequence[Launch]) -> dict[Run, str]:
        """See `base.Scripted`: the objects as YAML, but for those with the working directory."""
        import yaml

        await self._cluster.open()
        target = manifest.Target(self._cluster.namespace, self._system, self._image)
        shown: dict[Run, str] = {}
        for launch in launches:
            try:
                made = manifest.manifests(launch, target)
            except EngineRefused as refused:
                shown[launch.run] = f"# nothing: {refused.reason}\n"
            else:
                shown[launch.run] = yaml.safe_dump_all(made, sort_keys=False, allow_unicode=True)
        return shown

    # ------------------------------------------------------------ observe

    async def observe(self) -> list[Seen]:
        """All runs, as their records, Jobs and pods tell."""
        await self._ready()
        found = self._found()
        pods = self._pods_by_run()
        await self._ask_why(found, pods)
        seen: list[Seen] = []
        for record in found.values():
            judged = self._judge(record, pods.get(record.name, ()))
            if judged.end is not None:
                self._conclude(record.run, self._concluded(record))
            if judged.seen is not None:
                seen.append(judged.seen)
        return [*seen, *self._without_record({record.run for record in found.values()})]

    def _without_record(self, found: Set[Run]) -> Iterator[Seen]:
        """Runs that were let go, and of which the cluster knows nothing any more."""
        for run, lost in list(self._sent.runs.items()):
            if run not in found and lost is None:
                self._conclude(run, self._lost(run))
                yield Seen(run, "running")
            elif run not in found and lost is not None:
                yield lost

    async def _ready(self) -> None:
        await self._cluster.open()
        await asyncio.gather(*(watch.ready() for watch in (self._records, self._jobs, self._pods)))

    def _found(self) -> dict[str, Record]:
        """All records by name, each read once."""
        found: dict[str, tuple[str, Record]] = {}
        for name, told in self._records.objects.items():
            version = told["metadata"]["resourceVersion"]
            known = self._read.get(name)
            record = known[1] if known is not None and known[0] == version else read(told)
            if record is not None and record.name == name_of(record.run, self._system):
                found[name] = (version, record)
        self._read = found
        return {name: record for name, (_, record) in found.items()}

    def _pods_by_run(self) -> dict[str, list[Object]]:
        found: dict[str, list[Object]] = {}
        for pod in (*self._pods.departed.values(), *self._pods.objects.values()):
            found.setdefault(pod["metadata"]["labels"].get(NAME, ""), []).append(pod)
        return found

    def _judge(self, record: Record, pods: Sequence[Object]) -> Verdict:
        job = self._jobs.objects.get(record.name)
        why = self._events.get(record.name, "")
        now = int(time.time() * 1000)
        return verdict(
            record, job, pods, nodes=self._mirror.nodes, not_made=why, patience=self._patience, now=now
        )

    async def _ask_why(self, found: Mapping[str, Record], pods: Mapping[str, list[Object]]) -> None:
        """Learn why there is no pod of a Job that was let go: one question for all of them."""
        now = int(time.time() * 1000)
        empty = [
            name
            for name, job in self._jobs.objects.items()
            if name in found and found[name].end is None and not pods.get(name) and _waits_for_pods(job, now)
        ]
        if not empty or time.monotonic() - self._events_at < EVENTS_S:
            self._events = {name: why for name, why in self._events.items() if name in empty}
            return
        self._events_at = time.monotonic()
        query = {"fieldSelector": "reason=FailedCreate,involvedObject.kind=Job"}
        with suppress(Answered, Unreachable):
            events, _ = await self._cluster.list(self._at("events"), query)
            told = {event["involvedObject"]["name"]: event.get("message", "") for event in events}
            self._events = {name: not_made(told[name]) for name in empty if name in told}

    # ------------------------------------------------------------ how a run ended

    def _conclude(self, run: Run, step: Coroutine[Any, Any, bool]) -> None:
        """Make sure that a run is over and that nothing of it goes on, unless somebody is doing that."""
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
            self._wake()

    async def _lost(self, run: Run) -> bool:
        """Make sure that the record of a run is gone, and end what is left of it."""
        name = name_of(run, self._system)
        told = await self._cluster.get(self._at("configmaps", name))
        if told is not None:
            self._records.put(told)
            return True
        await self._cluster.delete(self._at("jobs", name))
        if any(not _has_ended(pod) for pod in await self._all_pods(name)):
            return False
        self._sent.lose(Seen(run, "lost", reason=UNKNOWN))
        return True

    async def _concluded(self, record: Record) -> bool:
        """Whether it is written down how a run ended."""
        job = await self._cluster.get(self._at("jobs", record.name))
        if job is not None:
            self._jobs.put(job)
        else:
            self._jobs.drop(record.name)
        pods = await self._all_pods(record.name)
        judged = self._judge(record, pods)
        if judged.end is None:
            return False
        if judged.early:
            told = await self._cluster.patch(
                self._at("configmaps", record.name), {"data": {"due": end_text(judged.end)}}
            )
            self._records.put(told)
        if job is not None and not _is_over(job):
            await self._cluster.delete(self._at("jobs", record.name))
        if any(not _has_ended(pod) for pod in pods):
            return False
        await self._output.finish(record.run, pods)
        end = judged.end
        if end.ended is None:
            end = replace(end, ended=int(time.time() * 1000))
        told = await self._cluster.patch(
            self._at("configmaps", record.name), {"data": {"end": end_text(end)}}
        )
        self._records.put(told)
        for pod in pods:
            self._pods.departed.pop(pod["metadata"]["name"], None)
        return True

    async def _all_pods(self, name: str) -> list[Object]:
        """The pods of a run as they are now, and those that were there before, as they were last seen."""
        query = {"labelSelector": f"{SYSTEM}={self._system},{NAME}={name}"}
        there, _ = await self._cluster.list(self._at("pods"), query)
        names = {pod["metadata"]["name"] for pod in there}
        known = self._pods_by_run().get(name, [])
        before = [pod for pod in known if pod["metadata"]["name"] not in names]
        return [*map(_as_gone, before), *there]

    # ------------------------------------------------------------ stop

    async def stop(self, run: Run, grace: float) -> None:
        """Begin to end a run. One that has not begun never will."""
        await self._ready()
        try:
            await self._stop(run, grace)
        except Answered as error:
            raise Unreachable(f"Kubernetes: {error}") from None
        finally:
            self._wake()

    async def _stop(self, run: Run, grace: float) -> None:
        never = Seen(run, "exited", None, int(time.time() * 1000), TOLD_TO_END)
        record = await self._make_record(run, "", stop="1", end=end_text(never))
        if record.end is not None:
            return
        if not record.stop:
            told = await self._cluster.patch(self._at("configmaps", record.name), {"data": {"stop": "1"}})
            self._records.put(told)
        job = await self._cluster.get(self._at("jobs", record.name))
        if job is None or _is_over(job):
            return
        if fresh(job):
            await self._cluster.delete(self._at("jobs", record.name))
            return
        pods = self._pods_by_run().get(record.name, [])
        self._output.follow(run, pods)
        # First no more pods, then the end of those that are there.
        with suppress(Answered):
            self._jobs.put(
                await self._cluster.patch(self._at("jobs", record.name), {"spec": {"suspend": True}})
            )
        seconds = manifest.seconds(int(grace * 1000))
        there = await self._all_pods(record.name)
        for pod in there:
            if not _has_ended(pod):
                await self._cluster.delete(self._at("pods", pod["metadata"]["name"]), grace=seconds)

    # ------------------------------------------------------------ the rest of the contract

    async def logs(self, run: Run, offset: int, limit: int) -> bytes:
        """At most `limit` bytes of a run's output from `offset`. From the first question on it is brought
        along as it is written."""
        record = self._read.get(name_of(run, self._system))
        if record is not None and record[1].end is None:
            self._output.follow(run, self._pods_by_run().get(record[1].name, []))
        return await asyncio.to_thread(self._output.read, run, offset, limit)

    async def forget(self, runs: frozenset[Run]) -> None:
        """Delete what is left of these runs, but of one that has not ended; and what was made halfway and
        nobody wants."""
        await self._ready()
        found = self._found()
        ended = [record for record in found.values() if record.run in runs and record.end is not None]
        now = int(time.time() * 1000)
        left = [
            record
            for record in found.values()
            if not record.job and record.end is None and record.run not in self._starting
            if now - record.created > LEFT_MS
        ]
        for record in (*ended, *left):
            await self._delete(record)
        for run in [run for run, lost in self._sent.runs.items() if run in runs and lost is not None]:
            self._sent.delete(run)
        needed = {record.files for record in self._found().values() if record.end is None}
        if ended or left:
            await self._files.sweep(needed)

    async def _delete(self, record: Record) -> None:
        await self._cluster.delete(self._at("jobs", record.name))
        await self._cluster.delete(self._at("configmaps", record.name))
        self._jobs.drop(record.name)
        self._records.drop(record.name)
        self._read.pop(record.name, None)
        self._sent.delete(record.run)
        await asyncio.to_thread(self._output.delete, record.run)

    async def changed(self, timeout: float) -> None:
        """Return when a run may have changed, at the latest after `timeout` seconds."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._woken.wait(), timeout)
        self._woken.clear()

    async def close(self) -> None:
        """Let go of connections; what runs goes on."""
        await stop(*self._concluding.values())
        await self._output.close()
        for watch in (self._records, self._jobs, self._pods):
            await watch.close()
        await self._mirror.close()
        await self._cluster.close()

    async def mirror(self) -> Sequence[Command]:
        """The cluster as it is: its nodes, what others use, and where our pods are."""
        await self._ready()
        found = self._found()
        pods = self._pods_by_run()
        ours = {record.run: pods.get(name, []) for name, record in found.items() if record.end is None}
        return await self._mirror.tell(ours)

    async def drain(self, node: str, on: bool, reason: str) -> None:
        """See `base.Draining`: a node that is drained is cordoned; what runs there goes on."""
        try:
            await self._mirror.cordon(node, on)
        except Answered as error:
            done, how = ("cordoned", "cordon") if on else ("used again", "uncordon")
            raise EngineRefused(
                f"{node} is not {done}: Kubernetes says no ({error}); somebody who may has to: "
                f"kubectl {how} {node.partition('@')[0]}",
                final=True,
            ) from None

    def _wake(self) -> None:
        self._woken.set()


def _is_over(job: Object) -> bool:
    conditions = job.get("status", {}).get("conditions") or []
    return any(one["type"] in ("Complete", "Failed") and one["status"] == "True" for one in conditions)


def _waits_for_pods(job: Object, now: int) -> bool:
    since = moment(job.get("status", {}).get("startTime")) or now
    return not job["spec"].get("suspend") and not _is_over(job) and now - since > EVENTS_S * 1000


def _has_ended(pod: Object) -> bool:
    return pod["status"].get("phase") in ("Succeeded", "Failed")


def _as_gone(pod: Object) -> Object:
    """A pod that is gone: whatever was last seen of it, it has ended."""
    return pod if _has_ended(pod) else {**pod, "status": {**pod["status"], "phase": "Failed"}}
