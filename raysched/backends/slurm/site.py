"""The nodes of a site: told to the ledger, drained and used again."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from raysched.backends.base import EngineRefused, Names
from raysched.backends.slurm import mirror
from raysched.backends.slurm.controller import Controller, Refused
from raysched.backends.slurm.records import Job, Node
from raysched.core.commands import Command, NodeGone, NodeSeen, Outside, Placed
from raysched.core.namesakes import gone, own_name
from raysched.core.node import NodeInfo
from raysched.core.work import Run

OURS = "raysched:"
"""How the reason of a node begins that raysched has drained."""

NODES_S = 10.0
"""Time between two questions about the nodes."""


class Site:
    """The site behind a controller. `gpu_memory` has the MiB of a GPU by its type; `names` tells how the
    ledger's nodes are called."""

    def __init__(self, controller: Controller, gpu_memory: Mapping[str, int], names: Names | None) -> None:
        self._controller = controller
        self._gpu_memory = dict(gpu_memory)
        self._names = names
        self._nodes: list[Node] = []
        self._asked = -NODES_S
        self._told: dict[str, str] = {}

    def hurry(self) -> None:
        """Something was done: ask for the nodes at the next question."""
        self._asked = -NODES_S

    async def told(self, jobs: Iterable[tuple[Run, Job]]) -> list[Command]:
        """The site as it is: its nodes, what others use, and where those `jobs` of ours are that run."""
        if time.monotonic() - self._asked >= NODES_S:
            self._nodes = await self._controller.nodes()
            self._asked = time.monotonic()
        taken = await self._names() if self._names else {}
        infos = {node.name: self._info(node, taken) for node in self._nodes}
        names = {info.name: own for own, info in infos.items()}
        left = gone("slurm", taken, names)
        self._told = names
        running = [(run, job) for run, job in jobs if job.states & {"RUNNING", "SUSPENDED"}]
        put = {f"{run.job}.{run.attempt}": mirror.places(job, infos) for run, job in running}
        ours = [job for _, job in running]
        return [
            *(NodeGone(name, "slurm") for name in left),
            *(NodeSeen(info) for info in infos.values()),
            *(_others(node, infos[node.name].name, ours) for node in self._nodes),
            *(Placed(lease, where) for lease, where in put.items() if where),
        ]

    def _info(self, node: Node, taken: Mapping[str, Sequence[str]]) -> NodeInfo:
        return mirror.node_info(node, own_name(node.name, "slurm", taken), self._gpu_memory)

    async def drain(self, node: str, on: bool, reason: str) -> None:
        """See `base.Draining`."""
        own = self._told.get(node, node)
        there = [known for known in await self._controller.nodes() if known.name == own]
        if there and on == any("DRAIN" in state for state in there[0].states):
            return
        if there and not on and not there[0].reason.startswith(OURS):
            raise EngineRefused(
                f"{node} is not used again: somebody else drained it ({there[0].reason or 'no reason'}); "
                f"whoever may has to: scontrol update NodeName={own} State=RESUME",
                final=True,
            )
        try:
            await self._controller.drain(own, reason if on else None)
        except Refused as error:
            done = "drained" if on else "used again"
            raise EngineRefused(
                f"{node} is not {done}: Slurm says no ({error.reason}); somebody who may has to: "
                f"scontrol update NodeName={own} State={'DRAIN Reason=...' if on else 'RESUME'}",
                final=True,
            ) from None
        finally:
            self.hurry()


def _others(node: Node, name: str, jobs: list[Job]) -> Outside:
    ours = {index for job in jobs for index in mirror.indices(job).get(node.name, ())}
    return Outside(name, mirror.used_by_others(node, ours))
