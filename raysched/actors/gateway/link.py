"""Calls to the ledger and the backends from the gateway, which outlast their restarts."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from raysched.actors import names
from raysched.actors.gateway.past import Past
from raysched.core.clusters import cluster_of
from raysched.core.usage import By
from raysched.errors import RayschedError, Refused, Unreachable

PATIENCE_S = 20.0
"""How long an actor that is being restarted is waited for."""
CHECK_S = 90.0
"""How long it may take to reach a host, its jump hosts and its login shell included."""
RETRY_S = 0.2

View = dict[str, Any]


class Link:
    """The ledger as the API wants it. An actor that does not come back in time is Unreachable."""

    def __init__(self, journal: str) -> None:
        self._actors: dict[str, Any] = {}
        self._past = Past(journal)

    async def submit(self, key: str, user: str, jobs: list[View]) -> list[View]:
        """Accept all jobs or none."""
        return await self._ledger("submit", key, user, jobs)

    async def plan(self, user: str, jobs: list[View], script: bool) -> View:
        """What would happen to these jobs; with `script` also what would be sent to their sites."""
        view, launches = await self._ledger("plan", user, jobs)
        scripts: dict[str, str] = {}
        for backend, wanted in launches.items():
            if script and wanted:
                found = await self._call(names.backend(backend), PATIENCE_S, "scripts", wanted)
                scripts.update({run.job: text for run, text in found.items()})
        for row in view["jobs"]:
            row["script"] = scripts.get(row.pop("id", ""))
        return view

    async def view(self, what: str, **args: Any) -> View:
        """One of the views."""
        view = await self._ledger("view", what, **args)
        return {**view, "enter": await self._way_in(view)} if what == "explain" else view

    async def _way_in(self, job: View) -> str | None:
        """How one gets into a job that runs on Kubernetes; None for others."""
        if job["state"] != "running":
            return None
        found = await self._ledger("locate", job["id"], None, 0)
        if not _is_cluster(found["backend"]):
            return None
        return await self._call(names.backend(found["backend"]), PATIENCE_S, "way_in", found["run"])

    async def usage(self, by: By, seconds: float) -> View:
        """What was granted and used."""
        return await self._past.usage(by, seconds)

    async def advice(self, seconds: float) -> View:
        """Which jobs could take a smaller share."""
        return await self._past.advice(seconds)

    async def cancel(self, key: str, job: str, by: str) -> View:
        """End a job or an array."""
        return await self._ledger("cancel", key, job, by)

    async def set_layout(self, key: str, user: str, gpu: str, profiles: list[str] | None, plan: bool) -> View:
        """Cut a GPU, or say what would be done for it."""
        return await self._ledger("set_layout", key, user, gpu, profiles, plan)

    async def cordon(self, key: str, node: str, on: bool, by: str) -> View:
        """Start nothing new on a node, or use it again; a node of a site is closed by that. Raises
        Refused."""
        site = await self._ledger("at_site", node)
        if site is None:
            return await self._ledger("cordon", key, node, on)
        reason = f"raysched: drained by {by}"
        if refused := await self._call(names.backend(site), PATIENCE_S, "cordon", node, on, reason):
            raise Refused(refused)
        return await self._ledger("node", node)

    async def drain(self, key: str, node: str, by: str, how: View) -> View:
        """Cordon a node and have what runs there leave, as far as it may now; the node and who is left."""
        plan = how["plan"]
        shown = await self._ledger("node", node) if plan else await self.cordon(f"{key}/c", node, True, by)
        site = await self._ledger("at_site", node)
        if _is_cluster(site):
            stay = await self._ledger("staying", node)
            left = await self._call(names.backend(site), PATIENCE_S, "evict", node, stay, how)
        else:
            left = await self._ledger("evict", f"{key}/e", node, by, plan)
        return {"node": shown, "left": left}

    async def share(self, node: str, to: View, how: View) -> View:
        """Bring a node of a Kubernetes cluster one step further to sharing its GPUs so."""
        site = await self._ledger("at_site", node)
        if not _is_cluster(site):
            await self._ledger("node", node)
            raise Refused(f"{node} is no node of a Kubernetes cluster: see policy and `raysched mig set`")
        stay = await self._ledger("staying", node)
        return await self._call(names.backend(site), PATIENCE_S, "share", node, stay, to, how)

    async def label(self, node: str, labels: dict[str, str | None]) -> View:
        """Give a node of a Kubernetes cluster labels, or (null) take them away; all that it has then."""
        site = await self._ledger("at_site", node)
        if not _is_cluster(site):
            await self._ledger("node", node)
            raise Refused(
                f"{node} has no labels that raysched could change: only nodes of Kubernetes have; those of a "
                "host are given with `raysched vm add --label`, or in the configuration"
            )
        found = await self._call(names.backend(site), PATIENCE_S, "label", node, labels)
        return {"name": node, "labels": found}

    async def add_host(self, key: str, host: View) -> View:
        """Use a machine over SSH."""
        return await self._ledger("add_host", key, host)

    async def remove_host(self, key: str, name: str) -> View:
        """Use a machine no more."""
        return await self._ledger("remove_host", key, name)

    async def check_host(self, name: str, accept_new: bool) -> View:
        """Connect to a host anew: whether it can be used, and why not."""
        patience = PATIENCE_S + CHECK_S
        reason = await self._call(names.backend("vm"), patience, "check_host", name, accept_new)
        return {"name": name, "ok": not reason, "reason": reason}

    async def latest(self) -> int:
        """The number of the last event so far."""
        return (await self._ledger("ping"))["seq"]

    async def events(self, after: int, job: str | None, timeout: float) -> list[View]:
        """The events after that number."""
        return await self._call(names.LEDGER, PATIENCE_S + timeout, "events", after, job, timeout)

    async def locate(self, job: str, attempt: int | None, rank: int) -> View:
        """Which run's output is meant, and where it is."""
        return await self._ledger("locate", job, attempt, rank)

    async def logs(self, backend: str, run: str, offset: int, limit: int) -> bytes:
        """A piece of a run's output."""
        return await self._call(names.backend(backend), PATIENCE_S, "logs", run, offset, limit)

    async def _ledger(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return await self._call(names.LEDGER, PATIENCE_S, method, *args, **kwargs)

    async def _call(self, name: str, patience: float, method: str, *args: Any, **kwargs: Any) -> Any:
        deadline = time.monotonic() + patience
        while True:
            try:
                actor = await self._actor(name)
                call = getattr(actor, method).remote(*args, **kwargs)
                return await asyncio.wait_for(call, deadline - time.monotonic())
            except (ActorUnavailableError, ActorDiedError, LookupError):
                # Calls are idempotent, so one that may have been done can be made again.
                self._actors.pop(name, None)
                if time.monotonic() + RETRY_S > deadline:
                    raise _unreachable(name, patience) from None
                await asyncio.sleep(RETRY_S)
            except asyncio.TimeoutError:
                raise _unreachable(name, patience) from None
            except RayTaskError as error:
                raise _cause(error) from None

    async def _actor(self, name: str) -> Any:
        """A handle of the actor. Raises LookupError where there is none."""
        if name not in self._actors:
            try:
                get = asyncio.to_thread(ray.get_actor, name, namespace=names.NAMESPACE)
                self._actors[name] = await get
            except ValueError:
                raise LookupError(name) from None
        return self._actors[name]


def _is_cluster(backend: str | None) -> bool:
    return backend is not None and cluster_of(backend) is not None


def _unreachable(name: str, patience: float) -> Unreachable:
    return Unreachable(
        f"{name} did not answer for {patience:.0f} s: try again, or look at it with `raysched doctor`"
    )


def _cause(error: RayTaskError) -> Exception:
    """What the actor raised, without the traceback that Ray puts around it."""
    cause = error.cause
    return cause if isinstance(cause, RayschedError) else error
