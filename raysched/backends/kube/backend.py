"""The `k8s` backend itself: makes, ends and forgets the objects of runs, and says what becomes of each."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Generator, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path

from raysched.backends.base import EngineRefused, Names
from raysched.backends.kube import manifest
from raysched.backends.kube.cluster import Answered, Cluster, Object
from raysched.backends.kube.ends import Ends
from raysched.backends.kube.events import Events
from raysched.backends.kube.evictions import Drain, Left, evict
from raysched.backends.kube.files import Files
from raysched.backends.kube.mirror import Mirror, name_there
from raysched.backends.kube.names import ROLE
from raysched.backends.kube.objects import Objects
from raysched.backends.kube.output import Output
from raysched.backends.kube.plugin import Sharing
from raysched.backends.kube.ray_verdict import RAY
from raysched.backends.kube.records import Record
from raysched.backends.kube.sent import Sent
from raysched.backends.kube.sharing import Look, Setter
from raysched.backends.kube.sights import Sights
from raysched.backends.kube.starts import Starts
from raysched.backends.kube.verdict import PLAIN, Verdict, verdict
from raysched.core.clusters import K8S, cluster_of
from raysched.core.commands import Command
from raysched.core.work import Launch, Run, Seen
from raysched.errors import Unreachable
from raysched.specs.k8s import MAIN

LEFT_MS = 600_000
"""After how long what was made halfway, and nobody wants, is taken away."""


class KubeBackend:
    """Runs Jobs in a cluster, under the `name` that this has as a backend. `system` tells the objects of this
    raysched from another's, `packages` holds packed working directories as `DIGEST.tar.gz`, `folder` the
    output of runs. `image` is that of jobs which name none, `kai` and `kueue` say which queue there serves a
    queue of ours. A pod whose image can't be had is given up after `patience` ms. `names` tells how the
    ledger's nodes are called."""

    def __init__(
        self,
        cluster: Cluster,
        system: str,
        packages: Path,
        folder: Path,
        *,
        name: str = K8S,
        image: str | None = None,
        kai: Mapping[str, str] | None = None,
        kueue: Mapping[str, str] | None = None,
        patience: int = 600_000,
        names: Names | None = None,
    ) -> None:
        self.name = name
        self._cluster = cluster
        # Two clusters may turn out to be one: each has its own objects there.
        system = system if name == K8S else f"{system}-{cluster_of(name)}"
        self._system = system
        self._image = image
        self._kai, self._kueue = kai or {}, kueue or {}
        self._patience = patience
        self._woken = asyncio.Event()
        self._files = Files(packages, cluster, system)
        self._output = Output(folder, cluster)
        self._sent = Sent(folder)
        self._objects = Objects(cluster, system, self._wake)
        self._mirror = Mirror(cluster, self._wake, names, name, kai=bool(kai))
        self._events = Events(self._objects)
        self._starts = Starts(self._objects, self._files, self._sent, self._target)
        self._sights = Sights(self._objects, self._judge)
        self._ends = Ends(self._objects, self._output, self._sent, self._judge, self._wake)

    def _target(self) -> manifest.Target:
        return manifest.Target(self._cluster.namespace, self._system, self._image, self._kai, self._kueue)

    def _wake(self) -> None:
        self._woken.set()

    # ------------------------------------------------------------ start and stop

    async def start(self, launch: Launch) -> None:
        """Make a run's Job, unless it was made before. Raises EngineRefused: final for what Kubernetes would
        refuse every time."""
        await self._objects.ready()
        try:
            await self._starts.start(launch)
        finally:
            self._wake()

    async def stop(self, run: Run, grace: float) -> None:
        """Begin to end a run. One that has not begun never will."""
        await self._objects.ready()
        try:
            await self._ends.end(run, grace)
        except Answered as error:
            raise Unreachable(f"Kubernetes: {error}") from None
        finally:
            self._wake()

    async def scripts(self, launches: Sequence[Launch]) -> dict[Run, str]:
        """See `base.Scripted`: the objects as YAML, but for those with the working directory."""
        import yaml

        await self._cluster.open()
        shown: dict[Run, str] = {}
        for launch in launches:
            try:
                made = manifest.manifests(launch, self._target())
            except EngineRefused as refused:
                shown[launch.run] = f"# nothing: {refused.reason}\n"
            else:
                shown[launch.run] = yaml.safe_dump_all(made, sort_keys=False, allow_unicode=True)
        return shown

    # ------------------------------------------------------------ observe

    async def observe(self) -> list[Seen]:
        """All runs, as their records, Jobs and pods tell."""
        await self._objects.ready()
        await self._events.ask(self._without_pods(self._objects.records()))
        found = self._objects.records()
        seen: list[Seen] = []
        for name, judged in self._sights.look(found).items():
            if judged.end is not None:
                self._ends.conclude(found[name])
            if judged.seen is not None:
                seen.append(judged.seen)
        return [*seen, *self._without_record({record.run for record in found.values()})]

    def _without_pods(self, found: Mapping[str, Record]) -> list[Object]:
        """The Jobs of runs that go on and have no pod."""
        waiting = [
            self._objects.known_job(record)
            for name, record in found.items()
            if record.end is None and not self._objects.pods(name)
        ]
        return [job for job in waiting if job is not None]

    def _without_record(self, found: Set[Run]) -> Iterator[Seen]:
        """Runs that were let go, and of which the cluster knows nothing any more."""
        for run, lost in list(self._sent.runs.items()):
            if run not in found and lost is None:
                self._ends.look_for(run)
                yield Seen(run, "running")
            elif run not in found and lost is not None:
                yield lost

    def _judge(self, record: Record, pods: Sequence[Object] | None = None) -> Verdict:
        """With the pods that it is known to have, or these."""
        return verdict(
            RAY if record.ray else PLAIN,
            record,
            self._objects.known_job(record),
            self._objects.pods(record.name) if pods is None else pods,
            nodes=self._mirror.nodes,
            not_made=self._events.why.get(record.name, ""),
            patience=self._patience,
            now=int(time.time() * 1000),
        )

    # ------------------------------------------------------------ the rest of the contract

    async def logs(self, run: Run, offset: int, limit: int) -> bytes:
        """At most `limit` bytes of a run's output from `offset`. From the first question on it is brought
        along as it is written."""
        record = self._objects.record(run)
        if record is not None and record.end is None:
            self._output.follow(run, self._objects.pods(record.name))
        return await asyncio.to_thread(self._output.read, run, offset, limit)

    async def forget(self, runs: frozenset[Run]) -> None:
        """Delete what is left of these runs, but of one that has not ended; and what was made halfway and
        nobody wants."""
        await self._objects.ready()
        found = self._objects.records()
        ended = [record for record in found.values() if record.run in runs and record.end is not None]
        now = int(time.time() * 1000)
        left = [
            record
            for record in found.values()
            if not record.job and record.end is None and record.run not in self._starts.going
            if now - record.created > LEFT_MS
        ]
        for record in (*ended, *left):
            await self._delete(record)
        for run in [run for run, lost in self._sent.runs.items() if run in runs and lost is not None]:
            self._sent.delete(run)
        needed = {record.files for record in self._objects.records().values() if record.end is None}
        if ended or left:
            await self._files.sweep(needed)

    async def _delete(self, record: Record) -> None:
        await self._objects.delete_job(record.name, ray=record.ray)
        await self._objects.delete_record(record.name)
        self._objects.drop_job(record)
        self._objects.forget_pods(record.name)
        self._sent.delete(record.run)
        await asyncio.to_thread(self._output.delete, record.run)

    async def changed(self, timeout: float) -> None:
        """Return when a run may have changed, at the latest after `timeout` seconds."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._woken.wait(), timeout)
        self._woken.clear()

    async def close(self) -> None:
        """Let go of connections; what runs goes on."""
        await self._ends.close()
        await self._output.close()
        await self._objects.close()
        await self._mirror.close()
        await self._cluster.close()

    async def mirror(self) -> Sequence[Command]:
        """The cluster as it is: its nodes, what others use, and where our pods are."""
        await self._objects.ready()
        found = self._objects.records().items()
        return await self._mirror.tell(
            {record.run: self._objects.pods(name) for name, record in found if record.end is None}
        )

    def way_in(self, run: Run) -> str | None:
        """The command with which one gets into the first pod of a run; None where none runs. Where the
        configuration names no context, the shell that runs it has the same cluster as its current one."""
        record = self._objects.record(run)
        pods = self._objects.pods(record.name) if record is not None else []
        names = [pod["metadata"]["name"] for pod in sorted(pods, key=_rank) if _can_be_entered(pod)]
        if not names:
            return None
        context = self._cluster.context
        where = f"--context {shlex.quote(context)} " if context else ""
        return f"kubectl {where}exec -it -n {self._cluster.namespace} {names[0]} -c {MAIN} -- sh"

    # ------------------------------------------------------------ its nodes

    async def cordon(self, node: str, on: bool, reason: str) -> None:
        """See `base.Cordoning`."""
        done, how = ("cordoned", "cordon") if on else ("used again", "uncordon")
        with _somebody_who_may(f"{node} is not {done}", f"kubectl {how} {name_there(node)}"):
            await self._mirror.cordon(node, on)

    async def evict(self, node: str, drain: Drain) -> list[Left]:
        """Ask the pods of a node to leave; those that are still there. Raises EngineRefused."""
        with _somebody_who_may(f"the pods of {node} stay", f"kubectl drain {name_there(node)}"):
            return await evict(self._cluster, self._system, name_there(node), drain)

    async def label(self, node: str, labels: Mapping[str, str | None]) -> dict[str, str]:
        """Give a node labels, or (None) take them away; all that it has then. Raises EngineRefused."""
        words = [f"{key}-" if value is None else f"{key}={value}" for key, value in labels.items()]
        how = f"kubectl label --overwrite node {name_there(node)} {' '.join(words)}"
        with _somebody_who_may(f"{node} keeps its labels", how):
            return await self._mirror.label(node, labels)

    async def share(self, node: str, sharing: Sharing, drain: Drain, *, end: bool) -> Look:
        """Bring a node one step further to sharing its GPUs so. Raises EngineRefused."""
        setter = Setter(self._cluster, self._system, lambda pod: bool(self._mirror.has(pod)))
        rights = "raysched k8s rbac --nodes | kubectl apply -f -"
        with _somebody_who_may(f"the GPUs of {node} stay as they are", rights):
            return await setter.look(name_there(node), sharing, drain, end=end)


def _can_be_entered(pod: Object) -> bool:
    running = pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]
    return running and pod["metadata"]["labels"].get(ROLE) != "submitter"


def _rank(pod: Object) -> tuple[bool, int, str]:
    """The head of a Ray first, then by the rank in a Job of several pods."""
    labels = pod["metadata"]["labels"]
    index = labels.get("batch.kubernetes.io/job-completion-index", "0")
    return labels.get(ROLE) == "worker", int(index), pod["metadata"]["name"]


@contextmanager
def _somebody_who_may(what: str, how: str) -> Generator[None]:
    """Where Kubernetes says no to what only an administrator may, the answer is the command for one."""
    try:
        yield
    except Answered as error:
        if error.code == 403:
            raise EngineRefused(
                f"{what}: Kubernetes says no ({error}); somebody who may has to: {how}", final=True
            ) from None
        raise EngineRefused(f"{what}: Kubernetes says no: {error}", final=True) from None
