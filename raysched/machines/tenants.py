"""Who uses the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from raysched.machines.record import Json


def tenants(jobs: Sequence[Json], nodes: Collection[str], *, ending: bool = True) -> set[str]:
    """The jobs, as the API shows them, that have a lease on one of the nodes; `ending`: also those that are
    being ended."""
    over = ("released",) if ending else ("releasing", "released")
    return {
        job["id"]
        for job in jobs
        if job["lease"]
        and job["lease"]["state"] not in over
        and any(place["node"] in nodes for place in job["lease"]["places"])
    }
