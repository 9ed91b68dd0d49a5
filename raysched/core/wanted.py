"""What must exist at each backend now, derived from the state and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from raysched.core import cutting, twins
from raysched.core.clusters import kind_of
from raysched.core.cuts import free_instances, overlapping
from raysched.core.decide import HOLDER, keeper
from raysched.core.environment import advice, job_variables, site_ranks, site_variables, variables
from raysched.core.jobs import ENDED, Job
from raysched.core.lease import Lease
from raysched.core.node import GPU
from raysched.core.placement import asked, site_of, ways
from raysched.core.site import NOWHERE, Demand
from raysched.core.state import State
from raysched.core.words import asks
from raysched.core.work import NOTHING, Hold, Launch, Order, Owned, Part, Partition, Run, Stop, Wanted


def wanted(state: State, backend: str) -> Wanted:
    """All that must exist at `backend`, and what must end there."""
    return Wanted(dict(parts(state, backend, state.leases)))


def parts(state: State, backend: str, leases: Iterable[str]) -> Iterator[tuple[str, Part]]:
    """What must exist at `backend` of those of these leases of which something must."""
    ways = twins.ways(state)
    for id in leases:
        lease = state.leases.get(id)
        if lease is not None and (part := _part(state, lease, backend, ways)) != NOTHING:
            yield id, part


def _part(state: State, lease: Lease, backend: str, ways: dict[str, str]) -> Part:
    if lease.state == "bound" and lease.backend == backend:
        work = list(_work(state, lease, ways if backend == "vm" else {}))
    else:
        work = []
    return Part(
        tuple(item for item in work if isinstance(item, Launch)),
        tuple(item for item in work if isinstance(item, Stop)),
        *_kept_there(state, _kept(state, lease, backend, ways), backend, ways),
    )


def _kept_there(
    state: State, part: Lease, backend: str, ways: dict[str, str]
) -> tuple[Hold | None, Hold | None]:
    """What is to be held, and what to be let go, of the part of a lease that a backend keeps."""
    if not part.places:
        return None, None
    if part.state != "releasing":
        return (_hold(state, part) if backend == HOLDER else None), None
    gone = _present(state, part)
    return None, (_hold(state, gone, ways) if gone.places else None)


def _kept(state: State, lease: Lease, backend: str, ways: dict[str, str]) -> Lease:
    """The part of a lease that lies on nodes where this backend keeps it. Of what ends on a node of Ray that
    is a host too, the vm backend ends its work first, and then Ray lets go."""

    def keeps(node: str) -> bool:
        if lease.state == "releasing" and twins.uncleared(lease, node, ways):
            return backend == "vm" and not state.hosts[ways[node]].reason
        return keeper(state, node) == backend

    places = tuple(place for place in lease.places if keeps(place.node))
    return lease if len(places) == len(lease.places) else replace(lease, places=places)


def _present(state: State, lease: Lease) -> Lease:
    """The part of a lease that lies on nodes which are there; on others nobody can look what is left."""
    places = tuple(place for place in lease.places if state.nodes[place.node].lost is None)
    return replace(lease, places=places)


def _work(state: State, lease: Lease, ways: dict[str, str]) -> Iterator[Launch | Stop]:
    """The runs of a bound lease: to be running, or to be ended once the job stops or one of them failed."""
    job = state.jobs[lease.job]
    if job.kind != "command" or job.lease != lease.id:
        return
    failed = any(code != 0 for code in job.exits.values())
    for rank in range(job.runs):
        if rank in job.exits:
            continue
        run = Run(job.id, lease.attempt, rank)
        if job.state == "stopping" or failed:
            node = lease.places[rank].node if rank < len(lease.places) else ""
            yield Stop(run, job.grace / 1000, ways.get(node, node))
        else:
            yield _ordered(state, job, lease, run) if job.single else _launch(state, job, lease, run, ways)


def _launch(state: State, job: Job, lease: Lease, run: Run, ways: dict[str, str]) -> Launch:
    entrypoint = job.spec["entrypoint"]
    place = lease.places[run.rank]
    real = () if state.nodes[place.node].info.simulated else place.slices
    return Launch(
        run=run,
        lease=lease.id,
        place=place,
        name=job.display,
        entrypoint=entrypoint if isinstance(entrypoint, str) else tuple(entrypoint),
        env=tuple(sorted(job_variables(job, run, lease.id, state.nodes).items())),
        package=job.package,
        image=job.spec.get("image"),
        devices=tuple(slice.device for slice in real),
        limited=bool(real) and lease.mechanism == "memory_limit",
        host=ways.get(place.node, ""),
        mark=lease.mark,
    )


def _ordered(state: State, job: Job, lease: Lease, run: Run) -> Launch:
    """A launch at a site, which finds the place itself."""
    entrypoint = job.spec["entrypoint"]
    demand = demand_of(state, job, lease.backend)
    options = job.spec.get(kind_of(lease.backend)) or {}
    return Launch(
        run=run,
        lease=lease.id,
        place=NOWHERE,
        name=job.display,
        entrypoint=entrypoint if isinstance(entrypoint, str) else tuple(entrypoint),
        env=tuple(sorted(site_variables(job, run, lease.id, demand).items())),
        package=job.package,
        image=job.spec.get("image"),
        order=Order(
            demand,
            job.max_runtime,
            tuple(sorted(options.items())),
            site_ranks(job, run, demand),
            job.queue,
        ),
    )


def demand_of(state: State, job: Job, backend: str) -> Demand:
    """What a job asks of the site of a backend, as that is now; one that shrank meanwhile refuses itself."""
    site = site_of(state, backend)
    found = (demand for way in ways(job.request) if site and (demand := asked(site, way)) is not None)
    return next(found, Demand("gpu" if job.request.gpus else "", "", job.request.gpus, 1, False, 0, 0, 0))


def _hold(state: State, lease: Lease, ways: dict[str, str] | None = None) -> Hold:
    job = state.jobs.get(lease.job)
    return Hold(
        lease=lease.id,
        job=lease.job,
        label=f"{job.display} {asks(job.request)}" if job else lease.job,
        sharing=lease.sharing,
        places=lease.places,
        resident=job is not None and job.kind == "command",
        hosts=tuple((ways or {}).get(place.node, place.node) for place in lease.places),
    )


def host_partitions(state: State, host: str) -> tuple[Partition, ...]:
    """How whoever watches a host of the inventory has to change its GPUs now; those of a node of Ray are cut
    by that node's agent."""
    known = state.hosts.get(host)
    return partitions(state, host) if known is not None and not known.node else ()


def partitions(state: State, node: str) -> tuple[Partition, ...]:
    """How the agent of a node has to change its GPUs now, for the leases that are held and wait for it.

    An MPS daemon ends with its last tenant: nothing new is granted on that GPU before (`placement.lack`).
    No instance that a tenant has or that strangers use is destroyed, and no MIG mode switched while anybody
    uses the GPU: what stands in the way of a lease is not asked for.
    """
    known = state.nodes.get(node)
    if known is None or known.lost is not None:
        return ()
    return tuple(part for gpu in known.gpus.values() if (part := _partition(state, gpu)) is not None)


def _partition(state: State, gpu: GPU) -> Partition | None:
    layout, geometry = gpu.info.layout, gpu.info.mig
    if layout.mps and not gpu.tenants and gpu.present:
        return Partition(gpu.info.uuid, layout.enabled)
    waiting = [state.leases[id] for id in gpu.tenants if state.leases[id].state == "held"]
    ready = [lease for lease in waiting if cutting.hindered(gpu, lease) is None]
    if not ready or not gpu.present:
        return None
    if gpu.sharing != "mig":
        cuts, mps = tuple(instance.cut for instance in layout.instances), gpu.sharing == "mps"
        done = not layout.enabled and bool(layout.mps) == mps
        return None if done else Partition(gpu.info.uuid, False, destroy=cuts, mps=mps)
    create = [cut for lease in ready for cut in cutting.missing_cuts(gpu, gpu.tenants[lease.id])]
    free = free_instances(gpu)
    exactly = any(cutting.is_layout(state, lease) for lease in ready)
    if geometry is None or not (create or (exactly and free)):
        return None
    destroy = dict.fromkeys(old for cut in create for old in overlapping(geometry, cut, free))
    if exactly:
        destroy.update(dict.fromkeys(instance.cut for instance in free))
    return Partition(gpu.info.uuid, True, tuple(sorted(destroy)), tuple(sorted(create)))


def known_runs(state: State, backend: str) -> frozenset[Run]:
    """Every run that the ledger remembers; the files of others may be deleted."""
    return frozenset(
        Run(job.id, attempt, rank)
        for job in state.jobs.values()
        if job.kind == "command" and job.backend == backend
        for attempt in range(1, job.attempt + 1)
        for rank in range(max(1, len(job.places)))
    )


def packages(state: State) -> set[str]:
    """The digests of the packed working directories that a job may still need."""
    return {job.package for job in state.jobs.values() if job.package and job.state not in ENDED}


def owned(state: State, owner: str) -> list[Owned]:
    """The jobs that a client process holds or waits for, and how the last few of them ended."""
    return [owned_job(state, id) for id in state.owned.get(owner, {})]


def owned_job(state: State, id: str) -> Owned:
    """One job of a client process."""
    job = state.jobs.get(id)
    if job is None:
        return Owned(id, "ended", "it ended long ago")
    if job.state in ENDED:
        return Owned(job.id, "ended", job.reason)
    lease = state.leases.get(job.lease) if job.lease else None
    if lease is None or lease.state != "bound":
        return Owned(job.id, "waiting", job.reason)
    first = lease.places[0]
    env = {**advice(lease.sharing, first), **variables(lease.id, lease.sharing, first)}
    return Owned(job.id, "bound", "", lease.id, lease.places, lease.groups, tuple(sorted(env.items())))
