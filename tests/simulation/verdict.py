"""Whether every promise was kept, by what is left in the end and by what the journal says."""

from __future__ import annotations

from collections import Counter, defaultdict

from raysched.core import facts
from raysched.core.codec import encode_state
from raysched.core.evolve import evolve
from raysched.core.facts import Fact
from raysched.core.jobs import ENDED
from raysched.core.lease import Lease
from raysched.core.state import State
from raysched.core.wanted import wanted
from raysched.core.work import Run
from raysched.store.journal import Journal
from tests.simulation.hosts import Desk
from tests.simulation.made_up_ray import MadeUpRay
from tests.simulation.people import People, Promised


def left_over(desk: Desk | None, people: People, ray: MadeUpRay) -> list[str]:
    """What is not over yet, in words; nothing of it may be left for ever."""
    if desk is None:
        return ["the ledger is not there"]
    state = desk.state
    left = [f"{people.busy} people wait"] if people.busy else []
    left += [f"job {job.id} is {job.state}" for job in state.jobs.values() if job.state not in ENDED]
    left += [f"lease {lease.id} is {lease.state}" for lease in state.leases.values()]
    left += [f"Ray holds {lease}" for lease in ray.held]
    left += [f"{p.what} runs on {m.name}" for m in ray.machines.values() for p in m.processes]
    left += [f"node {node.info.name} is lost" for node in state.nodes.values() if node.lost is not None]
    left += [f"node {node.info.name} is drained" for node in state.nodes.values() if node.draining]
    for backend in ("vm", "ray"):
        want = wanted(state, backend)
        left += [f"{backend} is to have {len(want.launches)} launches"] if want.launches else []
    return left


def check_history(url: str, desk: Desk | None, people: People, ray: MadeUpRay) -> None:
    """Raise AssertionError where the journal does not say what was promised, or what really happened."""
    assert desk is not None
    journal = Journal(url)
    try:
        history = [fact for _, fact in journal.facts(0)]
    finally:
        journal.close()
    state = State()
    for fact in history:
        evolve(state, fact)
    assert encode_state(state) == encode_state(desk.state), "the facts do not fold to what the ledger knows"
    _check_ends(history, _check_submissions(history, people), ray)


def _check_submissions(history: list[Fact], people: People) -> list[Promised]:
    """What was acknowledged, and what was accepted under a key that had been refused: a refusal uses up no
    key, and a copy of the request may come once there is a node that can do it."""
    submitted: dict[str, list[str]] = defaultdict(list)
    for fact in history:
        if isinstance(fact, facts.Submitted):
            count = range(fact.array or 0)
            submitted[fact.key] += [f"{fact.id}.{at}" for at in count] or [fact.id]
    for key, promised in people.promised.items():
        assert submitted.pop(key, None) == promised.jobs, f"{promised.jobs} were acknowledged and are lost"
    late = {
        key: Promised(submitted.pop(key), people.refused[key])
        for key in [*submitted]
        if key in people.refused
    }
    for key, promised in late.items():
        assert len(promised.jobs) == (promised.asked.array or 1), f"{key} was accepted twice: {promised.jobs}"
    assert not submitted, f"nobody was told of {submitted}"
    return [*people.promised.values(), *late.values()]


def _check_ends(history: list[Fact], accepted: list[Promised], ray: MadeUpRay) -> None:
    """Every job ended exactly once, and as its processes really did."""
    ends = Counter(fact.job for fact in history if isinstance(fact, facts.Ended))
    last = {fact.job: fact for fact in history if isinstance(fact, facts.Ended)}
    leases = {fact.lease.job: fact.lease for fact in history if isinstance(fact, facts.Granted)}
    for promised in accepted:
        for job in promised.jobs:
            assert ends.pop(job, 0) == 1, f"{job} did not end exactly once"
            if promised.asked.kind == "command":
                _check_end(last[job], leases.get(job), promised, ray)
    assert not ends, f"{list(ends)} ended and were never promised"


def _check_end(end: facts.Ended, lease: Lease | None, promised: Promised, ray: MadeUpRay) -> None:
    codes = _really(lease, ray) if lease else []
    said = f"{end.job} ended as {end.outcome} ({end.reason!r}, code {end.code}); really: {codes}"
    if end.outcome == "cancelled":
        assert promised.cancelled, f"{said}; nobody cancelled it"
    elif end.outcome == "succeeded":
        assert lease, said
        assert all(code in (0, "forgotten") for code in codes), said
    elif end.reason.startswith("node "):
        assert lease, said
        assert any(ray.machines[place.node].gone_at for place in lease.places), f"{said}; no node was gone"
    elif end.reason.startswith("its MIG instance"):
        assert lease, said
        gpus = [(place.node, part.gpu) for place in lease.places for part in place.slices]
        assert any(ray.machines[node].cards[gpu].disturbed for node, gpu in gpus), said
    elif "max_runtime" in end.reason or "longer than" in end.reason:
        assert promised.asked.max_runtime is not None, said
    elif end.reason == "the entrypoint is no file":
        assert lease, said
        runs = {Run(lease.job, lease.attempt, rank) for rank in range(len(lease.places))}
        assert any(runs & ray.machines[place.node].refused for place in lease.places), said
    else:
        assert any(code != 0 for code in codes), said


def _really(lease: Lease, ray: MadeUpRay) -> list[int | str | None]:
    """The exit codes of a lease's runs as their machines know them; None where one never ran."""
    codes: list[int | str | None] = []
    for rank, place in enumerate(lease.places):
        run = Run(lease.job, lease.attempt, rank)
        machine = ray.machines[place.node]
        command = machine.commands[lease.backend].get(run)
        if command is None:
            codes.append("forgotten" if machine.started[run] else None)
        else:
            codes.append("lost" if command.seen.code is None else command.seen.code)
    return codes
