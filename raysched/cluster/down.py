"""`raysched down`."""

from __future__ import annotations

import secrets
import shutil
import time
from pathlib import Path
from typing import Any

from raysched.client import user
from raysched.cluster import home as homes
from raysched.cluster import record, system
from raysched.cluster.apart import apart
from raysched.cluster.own_ray import RayLost
from raysched.cluster.record import Record
from raysched.errors import Conflict, Unreachable
from raysched.folders import state_folder
from raysched.gpu.mps import Daemons

SETTLE_S = 30.0
"""How long no further job may end, beyond their own grace, before `down --cancel` gives up."""
ACTIVE = ("starting", "running", "stopping")

View = dict[str, Any]
NOTHING: View = {"cancelled": [], "kept": [], "waiting": 0}


def down(*, cancel: bool = False, keep: bool = False) -> View:
    """Stop raysched, and the Ray that `up` started. Waiting jobs stay in the journal for the next `up`.

    While jobs run this is refused, unless `cancel` ends all jobs first, or `keep` lets those that a runner
    looks after go on; the next `up` finds them. Answers with the displayed names of the jobs `cancelled` and
    `kept`, the number `waiting`, and whether `ray` was "stopped", "left" or had "died".

    Raises Unreachable where nothing is up, and Conflict.
    """
    home = state_folder()
    if record.read(home) is None:
        raise Unreachable(f"raysched is not up here (there is no {home / record.NAME}): nothing to stop")
    with homes.exclusive(home):
        found = record.read(home)
        if found is None or not homes.ray_alive(found):
            return _bury(home, found)
        try:
            answer = apart(found.own, home / "up.log", _settle_and_end, found, cancel, keep)
        except RayLost:
            if homes.ray_alive(found):
                raise
            return _bury(home, found)
        homes.clear(home, found)
        if not answer["kept"]:  # what runs on keeps its MIG instances
            shutil.rmtree(Path(found.folder) / "simulated", ignore_errors=True)
            Daemons().stop_all()
        return {**answer, "ray": "left" if found.own is None else "stopped"}


def _settle_and_end(found: Record, cancel: bool, keep: bool) -> View:
    system.connect(found.ray)
    try:
        answer = _settle(cancel, keep) if found.ready or system.is_there() else NOTHING
        system.end_actors()
        return answer
    finally:
        system.disconnect()


def _bury(home: Path, found: Record | None) -> View:
    if found is not None:
        homes.clear(home, found)
    return {**NOTHING, "ray": "died"}


def _settle(cancel: bool, keep: bool) -> View:
    """See that no job is cut off without a word."""
    try:
        jobs = _unfinished()
    except Unreachable:
        if not keep:
            raise Conflict(
                "the ledger does not answer, so what runs is not known: try `down --keep`"
            ) from None
        return NOTHING
    active = [job for job in jobs if job["state"] in ACTIVE]
    if cancel:
        _cancel(jobs)
        return {"cancelled": _names(jobs), "kept": [], "waiting": 0}
    _refuse(active, keep)
    return {"cancelled": [], "kept": _names(active), "waiting": len(jobs) - len(active)}


def _unfinished() -> list[View]:
    jobs: list[View] = system.ledger_call("view", "jobs")["jobs"]
    return [job for job in jobs if job["state"] == "waiting" or _holds(job)]


def _holds(job: View) -> bool:
    """Whether something of the job is still there, be it only processes that are being ended."""
    return job["state"] in ACTIVE or (job["lease"] is not None and job["lease"]["state"] != "released")


def _refuse(active: list[View], keep: bool) -> None:
    """Raises Conflict for jobs that would be cut off."""
    if not active:
        return
    if not keep:
        raise Conflict(
            f"{_listed(active)} not ended: `down --cancel` ends all jobs, `down --keep` lets what runs run on"
        )
    if leases := [job for job in active if job["kind"] == "lease"]:
        raise Conflict(f"{_listed(leases)} held by programs, which can't go on: end them, or `down --cancel`")


def _cancel(jobs: list[View]) -> None:
    """End all jobs, the waiting ones first, and wait until nothing of them is left. Raises Conflict once no
    further one ends."""
    for job in sorted(jobs, key=lambda job: job["state"] != "waiting"):
        if job["state"] == "waiting" or job["state"] in ACTIVE:
            system.ledger_call("cancel", secrets.token_hex(16), job["id"], user())
    patience = SETTLE_S + max((job["grace_s"] for job in jobs), default=0.0)
    fewest, deadline = len(jobs), time.monotonic() + patience
    while left := _unfinished():
        if len(left) < fewest:  # a site may take minutes to end a thousand
            fewest, deadline = len(left), time.monotonic() + patience
        if time.monotonic() > deadline:
            raise Conflict(f"{_listed(left)} not ended in time: see `raysched status`, and try again")
        time.sleep(0.1)


def _names(jobs: list[View]) -> list[str]:
    return [job["display"] for job in jobs]


def _listed(jobs: list[View]) -> str:
    """`hpo[0], hpo[1] and 6 more have`: the beginning of a sentence."""
    shown = ", ".join(_names(jobs[:3])) + (f" and {len(jobs) - 3} more" if len(jobs) > 3 else "")
    return f"{shown} {'has' if len(jobs) == 1 else 'have'}"
