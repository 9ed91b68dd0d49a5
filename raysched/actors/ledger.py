"""The ledger actor: what of the ledger needs Ray, around its desk and its book."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import pickle
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError

from raysched import __version__
from raysched.actors import crew
from raysched.actors.clock import Clock, wall_clock
from raysched.actors.desk import Desk
from raysched.actors.heartbeats import Heartbeats
from raysched.actors.metrics import LedgerMetrics
from raysched.actors.names import NAMESPACE
from raysched.actors.settings import Settings
from raysched.backends.runner import forget_worker
from raysched.core import commands, evictions, gpu_views, host_views, hosts, layouts, views, watchdog
from raysched.core.cluster_views import cluster_view
from raysched.core.clusters import K8S, backend_of, cluster_of, kind_of
from raysched.core.commands import Command, JobRequest
from raysched.core.compile import compile_host, compile_job, compile_resources
from raysched.core.decide import known_key
from raysched.core.host import Host
from raysched.core.jobs import ENDED, Job
from raysched.core.measured import Guidance
from raysched.core.node import NodeInfo
from raysched.core.placement import site_of
from raysched.core.request import Request
from raysched.core.state import State
from raysched.core.wanted import owned_job, packages, wanted
from raysched.core.words import stamp
from raysched.core.work import Ask, Change, Launch, Partition, Run
from raysched.errors import NotFound, SpecError, StorageError
from raysched.package import PackageStore
from raysched.specs.inventory import check_host
from raysched.specs.job import JobSpec, check_job
from raysched.specs.resources import check_options
from raysched.store.book import Book
from raysched.store.journal import Journal
from raysched.store.upkeep import Upkeep

View = dict[str, Any]

TICK_S = 1.0
NODES_S = 2.0
SWEEP_S = 60.0
KEEP_S = 2.0
METRICS_S = 5.0

log = logging.getLogger(__name__)


class Ledger:
    """Knows every GPU and who holds it. Detached, on the head node, restarted for ever."""

    async def __init__(self, settings: Settings) -> None:
        forget_worker()
        self.settings = settings
        self.since = wall_clock()
        self.desk = Desk(Book(Journal(settings.journal), random.getrandbits(48)), Clock())
        self.upkeep = Upkeep(settings.journal)
        self.packages = PackageStore(settings.packages)
        self.watched: dict[str, asyncio.Task[None]] = {}
        self.heartbeats = Heartbeats(settings.silence)
        self.looked = time.monotonic()
        self.usage: dict[str, gpu_views.Usage] = {}
        self.metrics = LedgerMetrics()
        self.tasks = [
            asyncio.create_task(self._serve()),
            asyncio.create_task(self._take_inventory()),
            asyncio.create_task(self._repeat(self._tick, TICK_S)),
            asyncio.create_task(self._repeat(self._listen_for_owners, TICK_S)),
            asyncio.create_task(self._repeat(self._look_at_nodes, NODES_S)),
            asyncio.create_task(self._repeat(self._sweep, SWEEP_S)),
            asyncio.create_task(self._repeat(self._keep, KEEP_S)),
            asyncio.create_task(self._repeat(self._show_metrics, METRICS_S)),
        ]
        for owner in self._owners():
            self._watch(owner)

    def __repr__(self) -> str:
        return "Ledger"

    # ------------------------------------------------------------ commands, and waiting for changes

    async def tell(self, told: Sequence[Command]) -> None:
        """Decide commands and return once their facts are written. Raises what the first refused one raises;
        the others are decided all the same."""
        await self.desk.tell(told)

    async def wanted(self, backend: str, version: int, timeout: float) -> Change:
        """What must exist at a backend otherwise than at `version`: as soon as something does, or at the end
        of the time."""
        return await self.desk.wanted(backend, version, timeout)

    async def partitions(self, node: str, version: int, timeout: float) -> tuple[int, tuple[Partition, ...]]:
        """How the agent of a node has to cut its GPUs, and the version of that: as soon as it is not
        `version`, or at the end of the time."""
        return await self.desk.partitions(node, version, timeout)

    async def host_partitions(
        self, node: str, version: int, timeout: float
    ) -> tuple[int, tuple[Partition, ...]]:
        """The same for whoever watches a host of the inventory: nothing where the host is a node of Ray, as
        that one's agent cuts its GPUs."""
        return await self.desk.host_partitions(node, version, timeout)

    async def owned(self, owner: str, version: int, timeout: float, heard: bool = True) -> tuple[int, bytes]:
        """The jobs of a client process, a pickled list of `Owned`, and their version: as soon as it is not
        `version`. `heard` says that the process was heard of since this was asked last."""
        if heard:
            self.heartbeats.heard(owner)
        version, jobs = await self.desk.owned(owner, version, timeout)
        return version, pickle.dumps(jobs)

    async def events(self, after: int, job: str | None, timeout: float) -> list[View]:
        """The events after number `after`, at least one unless the time ends first."""
        return await self.desk.events(after, job, timeout)

    async def _serve(self) -> None:
        """Decide for ever, or end this process: Ray starts a new one, whose callers ask again."""
        try:
            await self.desk.serve()
        except Exception:
            log.exception("The journal can't be read; the ledger starts again.")
            os._exit(1)

    @property
    def state(self) -> State:
        """All that the ledger knows."""
        return self.desk.state

    # ------------------------------------------------------------ submissions

    async def submit(self, key: str, user: str, jobs: list[View]) -> list[View]:
        """Accept all these specs or none, and answer with their jobs. A repeated key gets the same jobs.
        Raises Conflict, here and below, for a key that was used for something else."""
        digest = _digest("submit", user, jobs)
        if not known_key(self.state, key, digest):
            requests = [self._job_request(job, f"jobs[{at}].spec") for at, job in enumerate(jobs)]
            await self.tell([commands.Submit(key, user, tuple(requests), digest)])
        return self._answer(key)["jobs"]

    def _answer(self, key: str) -> View:
        """The jobs that were first answered under this key, as they are now."""
        jobs = [self.state.jobs[id] for id in self.state.keys[key] if id in self.state.jobs]
        return views.jobs_view(self.state, jobs, self._now())

    def _job_request(self, job: View, field: str) -> JobRequest:
        spec = check_job(job["spec"], field)
        self._check_backend(spec)
        package = job.get("package")
        if package is not None and not self.packages.has(package):
            raise NotFound(f"package {package[:12]} was not uploaded: submit the file again")
        return compile_job(spec, _new_id(), package)

    def _check_backend(self, spec: JobSpec) -> None:
        known = dict.fromkeys(map(kind_of, self.settings.backends))
        if spec.backend != "auto" and spec.backend not in known:
            raise SpecError(
                f"{spec.name}: backend: {spec.backend} is not configured here; "
                f"choose one of {', '.join(known)}, or auto"
            )
        named = spec.k8s.cluster if spec.backend == K8S else None
        if named is not None and backend_of(named) not in self.settings.k8s:
            raise SpecError(f"{spec.name}: k8s.cluster: {named} is not configured here; {self._clusters()}")

    def _clusters(self) -> str:
        """What clusters may be named."""
        names = [name for backend in self.settings.k8s if (name := cluster_of(backend))]
        return f"choose one of {', '.join(names)}" if names else "the one that is has no name: remove it"

    async def plan(self, user: str, jobs: list[View]) -> tuple[View, dict[str, list[Launch]]]:
        """Where jobs would run if they were submitted now, and the launches of those that would be handed to
        a site, by its backend; nothing changes."""
        plain = [{**job, "package": None} for job in jobs]
        requests = [self._job_request(job, f"jobs[{at}].spec") for at, job in enumerate(plain)]
        # Copied by pickling, in a fifth of the time of `copy.deepcopy`: nothing else is decided meanwhile.
        state: State = pickle.loads(pickle.dumps(self.state))
        view = views.plan_view(state, user, requests, self._now())
        ids = {row.get("id") for row in view["jobs"]}
        wants = {name: wanted(state, name).launches for name in self.settings.sites}
        return view, {name: [one for one in all if one.run.job in ids] for name, all in wants.items()}

    async def cancel(self, key: str, job: str, by: str) -> View:
        """End a job, or all elements of an array; those that have ended stay as they are. A repeated key ends
        nothing that has come since under the same name."""
        digest = _digest("cancel", job, by)
        if not known_key(self.state, key, digest):
            ids = tuple(one.id for one in views.find_jobs(self.state, job))
            ends = tuple(commands.Cancel(id, by) for id in ids)
            await self.tell([commands.Once(key, digest, ids, ends)])
        return self._answer(key)

    async def add_host(self, key: str, host: View) -> View:
        """Use a machine over SSH; answers with it. Raises SpecError, and Conflict for a taken name."""
        spec = check_host(host)
        command = commands.AddHost(compile_host(spec))
        await self.tell([commands.Once(key, _digest("add host", host), (), (command,))])
        return host_views.host_view(self.state, spec.name)

    async def remove_host(self, key: str, name: str) -> View:
        """Use a machine no more, once nobody holds anything there; answers with the others and it while it is
        still there. Raises NotFound, and Conflict for one that the configuration names."""
        await self.tell([commands.Once(key, _digest("remove host", name), (), (commands.RemoveHost(name),))])
        return host_views.hosts_view(self.state)

    async def _take_inventory(self) -> None:
        """Tell the hosts of the configuration to the core, once."""
        try:
            await self.tell([commands.Inventory(self.settings.hosts)])
        except StorageError:
            log.exception("The inventory was not written down and is tried again.")
            await asyncio.sleep(TICK_S)
            await self._take_inventory()

    async def cordon(self, key: str, node: str, on: bool) -> View:
        """Start nothing new on a node, or use it again; answers with the node. Raises NotFound."""
        await self.tell([commands.Once(key, _digest("cordon", node, on), (), (commands.Cordon(node, on),))])
        return await self.node(node)

    async def evict(self, key: str, node: str, by: str, plan: bool) -> list[View]:
        """Have the jobs that may be stopped leave a node, but not with `plan`; who is still there. Raises
        NotFound."""
        if not plan:
            evict = commands.Evict(node, by)
            await self.tell([commands.Once(key, _digest("evict", node, by), (), (evict,))])
        return evictions.left_view(self.state, node)

    async def staying(self, node: str) -> dict[str, str]:
        """The jobs of a node that may not be ended, and why. Raises NotFound."""
        return evictions.staying(self.state, node)

    def _sharing(self, cluster: str | None) -> View:
        """What shares the GPUs of a cluster, which has to be named where there are several."""
        several = cluster is None and len(self.settings.k8s) > 1
        if several or (cluster and self.settings.k8s and backend_of(cluster) not in self.settings.k8s):
            what = "there are several Kubernetes clusters" if several else f"there is no cluster {cluster}"
            raise NotFound(f"{what}: {self._clusters()}")
        backend = backend_of(cluster) if cluster else next(iter(self.settings.k8s), K8S)
        lost = {name for name, node in self.state.nodes.items() if node.lost is not None}
        return cluster_view(site_of(self.state, backend), lost)

    async def at_site(self, node: str) -> str | None:
        """The backend whose site has this node; None for a node of no site, or that is not known."""
        known = self.state.nodes.get(node)
        return known.info.backends[0] if known is not None and known.info.site else None

    async def node(self, node: str) -> View:
        """One node as the views show it."""
        name = hosts.find_node(self.state, node).info.name
        return gpu_views.node_view(self.state, name, self._usage(), self._now())

    async def set_layout(self, key: str, user: str, gpu: str, profiles: list[str] | None, plan: bool) -> View:
        """Cut a GPU so that it has exactly these MIG instances, or (None) no MIG mode; with `plan` only say
        what would be done. Raises NotFound, Refused where it can't be, Conflict where it can't be now."""
        digest = _digest("layout", user, gpu, profiles)
        found = layouts.find_gpu(self.state, gpu)
        wanted = layouts.steps(found, profiles)
        view = gpu_views.layout_view(found, wanted, None)
        if not known_key(self.state, key, digest):
            layouts.check(self.state.nodes[found.node], found, wanted)
            if plan or wanted.nothing:
                return view
            named = None if profiles is None else tuple(profiles)
            await self.tell([commands.SetLayout(_new_id(), key, user, found.info.uuid, named, digest)])
        return {**view, "job": self.state.keys[key][0]}

    # ------------------------------------------------------------ views

    async def view(self, what: str, **args: Any) -> View:
        """One of the views of docs/api.md: status, jobs, job, queue, hosts, gpus, sharing, explain."""
        now = self._now()
        match what:
            case "status":
                return {
                    "version": __version__,
                    "since": stamp(self.since),
                    **views.status_view(self.state),
                }
            case "jobs":
                return views.jobs_view(self.state, self._selected(**args), now)
            case "job":
                return views.jobs_view(self.state, views.find_jobs(self.state, args["job"]), now)
            case "queue":
                return views.queue_view(self.state, now)
            case "hosts":
                return host_views.hosts_view(self.state)
            case "sharing":
                return self._sharing(args["cluster"])
            case "gpus":
                return gpu_views.gpus_view(self.state, self._usage(), now)
            case "explain":
                return self._explained(args["job"], now)
            case _:
                raise NotFound(f"no view {what}")

    def _selected(self, state: str | None = None, group: str | None = None) -> list[Any]:
        return [
            job
            for job in self.state.jobs.values()
            if state in (None, job.state) and group in (None, job.group)
        ]

    def _explained(self, text: str, now: int) -> View:
        found = views.find_jobs(self.state, text)
        not_yet = [job for state in ("waiting", "starting") for job in found if job.state == state]
        return views.explain_view(self.state, (not_yet or found)[0], now)

    def _usage(self) -> gpu_views.Usage:
        usages = self.usage.values()
        return gpu_views.Usage(
            {gpu: reading for usage in usages for gpu, reading in usage.gpus.items()},
            {tenant: reading for usage in usages for tenant, reading in usage.tenants.items()},
            {gpu: there for usage in usages for gpu, there in usage.strangers.items()},
        )

    async def locate(self, job: str, attempt: int | None, rank: int) -> View:
        """Which run's output is meant, the backend that has it, and whether it will still grow."""
        found = views.find_jobs(self.state, job)
        if len(found) > 1:
            names = ", ".join(one.display for one in found[:3])
            raise NotFound(f"{job} is an array: name one element of it, such as {names}")
        one = found[0]
        _check_had(one, attempt, rank)
        number = one.attempt if attempt is None else attempt
        ended = one.state in ENDED or number < one.attempt
        run = Run(one.id, number, rank)
        started = number > 0 and one.kind == "command"
        return {"run": str(run), "backend": one.backend if started else None, "ended": ended, "job": one.id}

    # ------------------------------------------------------------ backends, nodes

    async def nodes(self) -> dict[str, NodeInfo]:
        """The nodes that are there, as their agents described them."""
        return await self.desk.nodes()

    async def names(self) -> dict[str, tuple[str, ...]]:
        """The names that nodes and hosts have, and by which backends each is."""
        return await self.desk.names()

    async def hosts(self, version: int, timeout: float) -> tuple[int, tuple[Host, ...]]:
        """The inventory and its version: as soon as it is not `version`, or at the end of the time."""
        return await self.desk.hosts(version, timeout)

    async def known(self, backend: str) -> frozenset[Run]:
        """The runs that are remembered; a backend may delete the files of others."""
        return await self.desk.known(backend)

    async def sample(self, node: str, usage: gpu_views.Usage, told: Sequence[Command]) -> Guidance:
        """What an agent measured on its node just now; `usage` is kept for the views and not written down,
        `told` is what is decided on. The answer is what the agent has to know of the leases there."""
        self.usage[node] = usage
        await self.desk.tell(told)
        seen = {stranger.lease for there in usage.strangers.values() for stranger in there}
        return watchdog.guidance(self.state, node, filter(None, seen))

    async def host_sample(self, node: str, usage: gpu_views.Usage, told: Sequence[Command]) -> Guidance:
        """The same of a host of the inventory; what is a node of Ray too is measured there."""
        known = self.state.hosts.get(node)
        if known is None or known.node:
            return Guidance(elsewhere=True)
        return await self.sample(node, usage, told)

    async def endpoint(self) -> View:
        """Where the gateway is and with which token, for programs inside this Ray cluster."""
        return json.loads(self.settings.endpoint.read_text())

    async def ping(self) -> View:
        """Whether the ledger answers."""
        return {"since": self.since, "seq": self.desk.book.seq, "nodes": len(await self.nodes())}

    async def _look_at_nodes(self) -> None:
        """See that each node of the cluster has its agent, and notice those that are gone."""
        alive = await asyncio.to_thread(crew.alive_nodes)
        await asyncio.to_thread(crew.ensure_agents, self.settings, alive)
        ids = {node["NodeID"] for node in alive}
        gone = [
            name
            for name, node in self.state.nodes.items()
            if node.lost is None and node.info.ray_id is not None and node.info.ray_id not in ids
        ]
        if gone:
            await self.tell([commands.NodeGone(name) for name in gone])
            await asyncio.to_thread(crew.dismiss_agents, gone)

    # ------------------------------------------------------------ leases of programs

    async def request_leases(self, asked: bytes) -> bytes:
        """Take a client process's request, a pickled `Ask`; answers with what became of its jobs so far, a
        pickled list of `Owned`. Both come pickled: Ray's own pickler looks at each class anew, and takes
        longer for these few objects than the ledger for its decision."""
        ask: Ask = pickle.loads(asked)
        self._watch(ask.owner)
        digest = hashlib.sha256(asked).hexdigest()[:32]
        if not known_key(self.state, ask.key, digest):
            await self.tell([commands.Submit(ask.key, ask.user, _lease_jobs(ask), digest)])
        return pickle.dumps([owned_job(self.state, id) for id in self.state.keys[ask.key]])

    async def release(self, job: str) -> None:
        """Give a lease back, or a request for one."""
        await self.tell([commands.Release(job)])

    def _watch(self, owner: str) -> None:
        """Release everything of `owner`, which is a relay's name, when that dies."""
        if owner not in self.watched:
            self.watched[owner] = asyncio.create_task(self._until_dead(owner))

    async def _until_dead(self, owner: str) -> None:
        while True:
            try:
                relay = await asyncio.to_thread(ray.get_actor, owner, namespace=NAMESPACE)
                await relay.forever.remote()
            except (ActorDiedError, ValueError):  # dead, or not known any more
                break
            except RayError:  # out of reach for a moment
                await asyncio.sleep(TICK_S)
        self.watched.pop(owner, None)
        self.desk.forget(owner)
        await self.tell([commands.OwnerLost(owner)])

    async def _listen_for_owners(self) -> None:
        """Take everything from those that have been silent for too long."""
        before, self.looked = self.looked, time.monotonic()
        silent = self.heartbeats.passed(self.looked - before, self._owners())
        reason = f"its program did not answer for {self.settings.silence:g} s"
        await self.tell([commands.OwnerLost(owner, reason) for owner in silent])

    def _owners(self) -> list[str]:
        """Those that hold something or wait for it."""
        jobs = self.state.jobs
        return [
            owner
            for owner, owned in self.state.owned.items()
            if any(jobs[id].state not in ENDED for id in owned)
        ]

    # ------------------------------------------------------------ time

    def _now(self) -> int:
        return self.desk.clock.now()

    async def _tick(self) -> None:
        self.desk.look_at_clock()
        await self.tell([commands.Tick()])

    async def _sweep(self) -> None:
        await asyncio.to_thread(self.packages.sweep, packages(self.state))

    async def _keep(self) -> None:
        self.upkeep.look(self.desk.book.seq)

    async def _show_metrics(self) -> None:
        self.metrics.show(self.state, self._now())

    async def _repeat(self, step: Callable[[], Awaitable[None]], every: float) -> None:
        while True:
            try:
                await step()
            except Exception:
                log.exception("A periodic step failed and is tried again.")
            await asyncio.sleep(every)


def _check_had(job: Job, attempt: int | None, rank: int) -> None:
    """Raise NotFound for an attempt or a node that the job has not had; one that waits may have its first."""
    attempts, nodes = max(1, job.attempt), job.runs
    if attempt is not None and attempt > attempts:
        raise NotFound(f"{job.display} has no attempt {attempt}: its last one is {attempts}")
    if nodes and rank >= nodes:
        raise NotFound(f"{job.display} has no node {rank}: the last of its {nodes} is {nodes - 1}")


def _lease_jobs(ask: Ask) -> tuple[JobRequest, ...]:
    """Raises SpecError."""
    request, priority = _lease_request(pickle.dumps({**ask.resources, "queue": ask.queue}))
    one = JobRequest("", ask.name, "lease", request, owner=ask.owner, queue=ask.queue, priority=priority)
    return tuple(replace(one, id=_new_id()) for _ in range(ask.count))


@lru_cache(maxsize=1000)
def _lease_request(options: bytes) -> tuple[Request, int]:
    """What these pickled options ask for, and with which priority: programs ask for the same again and again,
    and to check it takes its time. Raises SpecError."""
    spec = check_options(pickle.loads(options))
    return compile_resources(spec, "ray"), spec.priority


def _digest(*asked: Any) -> str:
    """What tells one command from another that came under the same key."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _new_id() -> str:
    return uuid.uuid4().hex[:10]
