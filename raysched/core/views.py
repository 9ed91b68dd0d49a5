"""What the API shows, as plain JSON values: the shapes of docs/api.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from raysched.core import cutting, explain, lent, site
from raysched.core.commands import JobRequest, Submit
from raysched.core.decide import decide, grant
from raysched.core.environment import job_variables, site_variables
from raysched.core.evolve import evolve
from raysched.core.gpu_views import profile_name
from raysched.core.isolation import expected
from raysched.core.jobs import ENDED, Job
from raysched.core.lease import Place
from raysched.core.placement import possible
from raysched.core.queue import Look, survey
from raysched.core.request import Request
from raysched.core.state import State
from raysched.core.wanted import demand_of
from raysched.core.words import asks, listing, seconds, short, stamp
from raysched.core.work import Run
from raysched.errors import Conflict, NotFound, RayschedError

View = dict[str, Any]


# ---------------------------------------------------------------- jobs


def job_view(state: State, job: Job, now: int, *, why: str = "", spec: bool = True) -> View:
    """One job; `why` is what it waits for, and in a long list it is shown without its spec."""
    return {
        "id": job.id,
        "group": job.group,
        "index": job.index,
        "name": job.name,
        "display": job.display,
        "kind": job.kind,
        "user": job.user,
        "queue": job.queue,
        "priority": job.priority,
        "backend": job.backend or job.request.backends[0],
        "state": job.state,
        "reason": why or job.reason,
        "warning": job.warning,
        "attempt": job.attempt,
        "submitted": stamp(job.submitted),
        "granted": stamp(job.granted),
        "started": stamp(job.started),
        "ended": stamp(job.ended),
        "wait_s": seconds(job.submitted, job.started or job.ended, now),
        "run_s": seconds(job.started, job.ended, now),
        "exit_code": job.code,
        "asks": asks(job.request),
        "grace_s": job.grace / 1000,
        "spec": job.spec if spec else None,
        "lease": _lease_view(state, job),
        "ranks": _ranks_view(job),
        "outputs": max(1, job.runs),
    }


def _ranks_view(job: Job) -> list[View]:
    """What became of each rank of the job's attempt; none while it waits for one."""
    if job.kind != "command" or job.state == "waiting":
        return []
    return [
        {
            "rank": rank,
            "node": place.node,
            "state": _rank_state(job, 0 if job.single else rank),
            "exit_code": job.exits.get(0 if job.single else rank),
        }
        for rank, place in enumerate(job.places)
    ]


def _rank_state(job: Job, rank: int) -> str:
    if rank in job.exits:
        code = job.exits[rank]
        return "succeeded" if code == 0 else "lost" if code is None else "failed"
    if job.state in ENDED:
        return "lost" if rank in job.begun else "unstarted"
    return "running" if rank in job.begun else "starting"


def _lease_view(state: State, job: Job) -> View | None:
    """The lease that the job has, or the last one that it had."""
    if not job.attempt:
        return None
    id = f"{job.id}.{job.attempt}"
    lease = state.leases.get(id)
    return {
        "id": id,
        "state": lease.state if lease else "released",
        "sharing": job.sharing or job.request.sharing,
        "isolation": job.request.isolation,
        "mechanism": job.mechanism,
        "places": [place_view(state, place) for place in job.places],
    }


def place_view(state: State, place: Place) -> View:
    """What a lease has on one node."""
    node = state.nodes.get(place.node)
    gpus: list[View] = []
    for slice in place.slices:
        gpu = node.gpus.get(slice.gpu) if node else None
        gpus.append(
            {
                "uuid": slice.gpu,
                "index": gpu.info.index if gpu else None,
                "model": gpu.info.model if gpu else None,
                "share": slice.share,
                "memory_mib": slice.memory,
                "profile": profile_name(gpu, slice.cut),
                "start": slice.cut.start if slice.cut else None,
                "instance": slice.instance,
            }
        )
    return {"node": place.node, "cpus": place.cpus / 10_000, "memory_mib": place.memory, "gpus": gpus}


def find_jobs(state: State, text: str) -> list[Job]:
    """The jobs that `text` means: an id, the id of an array, `name[3]`, or a name.

    A name means the newest submission of that name; if several of that name have not ended, they must be told
    apart by id. Raises NotFound and Conflict.
    """
    if text in state.jobs:
        return [state.jobs[text]]
    if text in state.groups:
        return [state.jobs[id] for id in state.groups[text]]
    named = [job for job in state.jobs.values() if text in (job.name, job.display)]
    if not named:
        raise NotFound(f"no job {text}: `raysched status` lists those that are known")
    active = sorted({job.group for job in named if job.state not in ENDED})
    if len(active) > 1:
        ids = ", ".join(active[:5]) + (", ..." if len(active) > 5 else "")
        raise Conflict(f"{text} names {len(active)} jobs that have not ended: say which by id: {ids}")
    group = active[0] if active else max(named, key=lambda job: job.order).group
    return [job for job in named if job.group == group]


def jobs_view(state: State, jobs: Iterable[Job], now: int) -> View:
    """Jobs in the order in which they came; several are shown without their specs."""
    ordered = sorted(jobs, key=lambda job: job.order)
    waits = any(job.state == "waiting" for job in ordered)
    reasons = {look.job.id: why for look, why in _reasons(state, now)} if waits else {}
    spec = len(ordered) == 1
    return {"jobs": [job_view(state, job, now, why=reasons.get(job.id, ""), spec=spec) for job in ordered]}


# ---------------------------------------------------------------- the queue


def queue_view(state: State, now: int) -> View:
    """The waiting jobs in the order in which they are looked at, each with the reason why it waits; after
    them, without a position, those that wait where they were handed to, such as in Slurm's queue."""
    looks = enumerate(_reasons(state, now), 1)
    here = [_waiting_view(look.job, position, why, now) for position, (look, why) in looks]
    handed = [job for job in state.jobs.values() if job.state == "starting" and job.reason]
    return {"waiting": here + [_waiting_view(job, None, job.reason, now) for job in handed]}


def _reasons(state: State, now: int) -> Iterator[tuple[Look, str]]:
    """Each waiting job with the reason. Equal requests wait for the same one, so it is worded once."""
    known: dict[Request, str] = {}
    for look in survey(state, now):
        own = bool(look.job.reason) or look.resting
        why = None if own else known.get(look.job.request)
        if why is None:
            why = explain.waiting(state, look).why
        if not own:
            known[look.job.request] = why
        yield look, why


def _waiting_view(job: Job, position: int | None, why: str, now: int) -> View:
    return {
        "position": position,
        "id": job.id,
        "group": job.group,
        "display": job.display,
        "kind": job.kind,
        "user": job.user,
        "queue": job.queue,
        "asks": asks(job.request),
        "submitted": stamp(job.submitted),
        "waits_s": seconds(job.submitted, None, now),
        "why": why,
    }


def explain_view(state: State, job: Job, now: int) -> View:
    """Why one job waits, or what became of it."""
    view: View = {"id": job.id, "display": job.display, "state": job.state}
    if job.state == "waiting":
        look = next(look for look in survey(state, now) if look.job is job)
        return {**view, **asdict(explain.waiting(state, look, change=True))}
    why = job.reason or _told(state, job)
    return {**view, "why": why, "short_of": None, "nearest": None, "change": None}


def _told(state: State, job: Job) -> str:
    where = ", ".join(sorted({place.node for place in job.places})) or f"what {job.backend} gave it"
    if job.single and job.state == "starting":
        return f"is being handed to {job.backend}"
    if job.lease and state.leases[job.lease].state == "held":
        return f"has its lease on {where}, where a GPU is being cut for it"
    if job.state == "running" and (nodes := lent.brought(state, job)):
        return f"runs on {where}, which Ray has as {listing(nodes)}"
    return {
        "starting": f"has its lease on {where} and is being started",
        "running": f"runs on {where}",
        "succeeded": "has ended with success",
    }.get(job.state, f"is {job.state}")


# ---------------------------------------------------------------- the system


def status_view(state: State) -> View:
    """Counts of what is there."""
    there = [node for node in state.nodes.values() if node.lost is None]
    twice = lent.counted_twice(state)
    gpus = [gpu for node in there for uuid, gpu in node.gpus.items() if uuid not in twice]
    counts: dict[str, int] = {}
    for job in state.jobs.values():
        counts[job.state] = counts.get(job.state, 0) + 1
    return {
        "simulated": any(node.info.simulated for node in state.nodes.values()),
        "nodes": sum(not node.info.lease for node in there),
        "gpus": {
            "total": len(gpus),
            **{
                mode: sum(gpu.mode == mode for gpu in gpus) for mode in ("free", "shared", "exclusive", "mig")
            },
            "share_used": sum(gpu.share_used for gpu in gpus),
        },
        "jobs": counts,
    }


# ---------------------------------------------------------------- plans


def plan_view(state: State, user: str, jobs: Sequence[JobRequest], now: int) -> View:
    """Where each job would run if all were submitted now. `state` is a copy and has them afterwards, under
    the `id` of each that is not refused."""
    refused = {asked.id: why for asked in jobs if (why := _refusal(state, user, asked, now)) is not None}
    outcomes = _started(state, now)
    for row in queue_view(state, now)["waiting"]:
        outcomes[row["id"]] = {"outcome": "waits", "why": row["why"]}
    return {"jobs": [view for asked in jobs for view in _planned(state, asked, refused, outcomes)]}


def _refusal(state: State, user: str, asked: JobRequest, now: int) -> str | None:
    """Why a job would be refused; otherwise it is submitted."""
    try:
        facts = decide(state, Submit(f"plan {asked.id}", user, (asked,)), now)
    except RayschedError as error:
        return str(error)
    for fact in facts:
        evolve(state, fact)
    return None


def _started(state: State, now: int) -> dict[str, View]:
    """Grant what fits to all that wait, in the order of the queue: how each job starts, by its id."""
    outcomes: dict[str, View] = {}
    for look in survey(state, now):
        if look.placement is not None:
            for fact in grant(state, look.job, look.placement, now):
                evolve(state, fact)
            outcomes[look.job.id] = _starts(state, look.job)
    return outcomes


def _planned(
    state: State, asked: JobRequest, refused: Mapping[str, str], outcomes: Mapping[str, View]
) -> Iterable[View]:
    view: View = {
        "name": asked.name,
        "display": asked.name,
        "asks": asks(asked.request),
        "backend": asked.request.backends[0],
        "isolation": asked.request.isolation,
        "mechanism": expected(possible(state, asked.request) or asked.request),
        "env": {},
        "places": [],
    }
    if asked.id in refused:
        return [{**view, "outcome": "refused", "why": refused[asked.id]}]
    ids = state.groups[asked.id]
    return [{**view, "id": id, "display": state.jobs[id].display, **outcomes[id]} for id in ids]


def _handed_over(state: State, job: Job) -> View:
    """What starting means at a site: it is asked, and finds the place."""
    demand = demand_of(state, job, job.backend or "")
    return {
        "outcome": "starts",
        "why": f"handed to {job.backend}, which finds the place: {site.worded(demand, job.request)}",
        "backend": job.backend,
        "env": {
            name: value
            for name, value in sorted(
                site_variables(job, Run(job.id, job.attempt, 0), f"{job.id}.{job.attempt}", demand).items()
            )
            if name not in (job.spec.get("env") or {})
        },
        "places": [],
    }


def _starts(state: State, job: Job) -> View:
    if job.single:
        return _handed_over(state, job)
    places = [place_view(state, place) for place in job.places]
    env = job_variables(job, Run(job.id, job.attempt, 0), f"{job.id}.{job.attempt}", state.nodes)
    spec_env = job.spec.get("env") or {}
    return {
        "outcome": "starts",
        "why": _chosen(state, job),
        "backend": job.backend,
        "env": {name: value for name, value in sorted(env.items()) if name not in spec_env},
        "places": places,
    }


def _chosen(state: State, job: Job) -> str:
    """Which rule put the job where it is, and what has to be done to its GPUs before."""
    where = "; ".join(f"{place.node}: {_devices(state, place)}" for place in job.places)
    if not job.request.gpus:
        return f"{where} (CPUs and memory are free there)"
    steps = [step for place in job.places for step in _steps(state, place)]
    if job.sharing == "mig":
        return f"{where} ({listing(steps)})"
    turned = "".join(f", {step}" for step in dict.fromkeys(steps) if step)
    if job.sharing == "exclusive":
        return f"{where} (whole and free{turned})"
    shared = any(
        len(state.nodes[place.node].gpus[slice.gpu].tenants) > 1
        for place in job.places
        for slice in place.slices
    )
    rule = "best fit beside other tenants" if shared else "no GPU in use has room, the first free one"
    return f"{where} ({rule}{turned})"


def _steps(state: State, place: Place) -> list[str]:
    """What has to be done to the GPUs of a place before its work starts."""
    gpus = state.nodes[place.node].gpus
    return list(dict.fromkeys(cutting.steps(gpus[slice.gpu], slice) for slice in place.slices))


def _devices(state: State, place: Place) -> str:
    """The GPUs and instances of a place, in a few words."""
    gpus = state.nodes[place.node].gpus
    named = [
        f"{short(slice.gpu)} {profile_name(gpus[slice.gpu], slice.cut)} at {slice.cut.start}"
        if slice.cut
        else short(slice.gpu)
        for slice in place.slices
    ]
    return ", ".join(named) or "no GPU"
