"""Answers of the API, as docs/api.md describes them."""

from __future__ import annotations

from typing import Any

UUIDS = [
    "GPU-3f2a8c1d-0d47-4a52-9a61-5a2a0c6b7a10",
    "GPU-9b1c77e0-51ac-4a0f-8f0b-7d1c2b3a4f21",
]


def place(share: int = 2500, memory: int = 20_377, index: int = 0) -> dict[str, Any]:
    """A part of one GPU of node-a."""
    gpu = {
        "uuid": UUIDS[index],
        "index": index,
        "model": "A100-80GB",
        "share": share,
        "memory_mib": memory,
        "profile": None,
        "start": None,
        "instance": None,
    }
    return {"node": "node-a", "cpus": 4.0, "memory_mib": 15_259, "gpus": [gpu]}


def job(**changes: Any) -> dict[str, Any]:
    """A running job; `changes` replace fields."""
    sample: dict[str, Any] = {
        "id": "5d0c4be1f2",
        "group": "5d0c4be1f2",
        "index": None,
        "name": "embed",
        "display": "embed",
        "kind": "command",
        "user": "ana",
        "queue": "default",
        "priority": 0,
        "backend": "vm",
        "state": "running",
        "reason": "",
        "warning": "",
        "attempt": 1,
        "submitted": "2025-03-30T00:29:57.500Z",
        "granted": "2025-03-30T00:29:59.000Z",
        "started": "2025-03-30T00:30:00.000Z",
        "ended": None,
        "wait_s": 1.5,
        "run_s": 7200.0,
        "exit_code": None,
        "asks": "0.25 GPU, 4 CPUs",
        "grace_s": 10.0,
        "spec": {"entrypoint": "python embed.py"},
        "lease": {
            "id": "5d0c4be1f2.1",
            "state": "bound",
            "sharing": "fraction",
            "isolation": "soft",
            "mechanism": "variables",
            "places": [place()],
        },
        "ranks": [{"rank": 0, "node": "node-a", "state": "running", "exit_code": None}],
        "outputs": 1,
    }
    return sample | changes


def waiting_job(**changes: Any) -> dict[str, Any]:
    """A job that waits."""
    nothing = {"attempt": 0, "granted": None, "started": None, "run_s": None, "lease": None, "ranks": []}
    return job(state="waiting", wait_s=840.0, **nothing) | changes


def array(states: list[str], name: str = "hpo", group: str = "77aa01b2c3") -> list[dict[str, Any]]:
    """The elements of an array, one a state."""
    return [
        job(
            id=f"{group}.{index}",
            group=group,
            index=index,
            name=name,
            display=f"{name}[{index}]",
            state=state,
            reason="exit code 3" if state == "failed" else "",
            exit_code=3 if state == "failed" else 0 if state == "succeeded" else None,
        )
        for index, state in enumerate(states)
    ]


def waiting(**changes: Any) -> dict[str, Any]:
    """An entry of the queue."""
    sample: dict[str, Any] = {
        "position": 1,
        "id": "0b1c2d3e4f",
        "group": "0b1c2d3e4f",
        "display": "train-xl",
        "kind": "command",
        "user": "bo",
        "queue": "default",
        "asks": "2 GPUs",
        "submitted": "2025-03-30T00:30:00.000Z",
        "waits_s": 840.0,
        "why": "1 of 2 whole GPUs free; GPU-3f2a8c1d is shared until hpo[0] and embed end",
    }
    return sample | changes


def tenant(**changes: Any) -> dict[str, Any]:
    """Who holds a part of a GPU."""
    sample: dict[str, Any] = {
        "job": "77aa01b2c3.0",
        "display": "hpo[0]",
        "kind": "command",
        "user": "ana",
        "backend": "ray",
        "state": "running",
        "since": "2025-03-30T00:30:00.000Z",
        "for_s": 720.0,
        "share": 2500,
        "memory_mib": 20_377,
        "memory_used_mib": 18_637,
        "busy": 3100,
        "busy_mean": 2800,
        "over": None,
        "isolation": "soft",
        "mechanism": "variables",
    }
    return sample | changes


def uncut(**changes: Any) -> dict[str, Any]:
    """A GPU that could be cut by MIG and is not."""
    sample: dict[str, Any] = {
        "enabled": False,
        "switchable": True,
        "cells": 8,
        "instances": [],
        "fits": {"1g.10gb": 7, "2g.20gb": 3, "3g.40gb": 2, "7g.80gb": 1},
        "refusals": [],
    }
    return sample | changes


def instance(**changes: Any) -> dict[str, Any]:
    """A MIG instance that a job has."""
    sample: dict[str, Any] = {
        "uuid": "MIG-5c8d7e10-8d3b-5b0c-9b7a-0f1e2d3c4b5a",
        "profile": "3g.40gb",
        "start": 4,
        "size": 4,
        "memory_mib": 40_192,
        "state": "held",
        "job": "77aa01b2c3.0",
        "display": "hpo[0]",
    }
    return sample | changes


def cut_gpu() -> dict[str, Any]:
    """A GPU that is cut into three instances, one of a job, one free, one used by a stranger."""
    nobody = {"job": None, "display": None}
    free = instance(
        uuid="MIG-1", profile="1g.10gb", start=0, size=1, memory_mib=9_728, state="free", **nobody
    )
    strange = instance(
        uuid="MIG-2", profile="2g.20gb", start=2, size=2, memory_mib=19_968, state="foreign", **nobody
    )
    cutting = uncut(
        enabled=True, instances=[free, strange, instance()], fits={"1g.10gb": 2, "2g.20gb": 1, "3g.40gb": 0}
    )
    (shared, _) = gpus()["nodes"][0]["gpus"]
    held = tenant(share=4285, memory_mib=40_192, memory_used_mib=None, isolation="soft", mechanism="mig")
    return shared | {
        "mode": "mig",
        "sharing": "mig",
        "share_used": 4285,
        "share_free": 5715,
        "memory_held_mib": 40_192,
        "memory_free_mib": 39_270,
        "foreign_mib": 2_048,
        "mig": cutting,
        "tenants": [held],
    }


def gpus() -> dict[str, Any]:
    """A node with a shared and a free GPU."""
    bo = tenant(job="1a2b3c4d5e", display="embed", user="bo", backend="vm", for_s=11_000.0, share=5000)
    shared: dict[str, Any] = {
        "uuid": UUIDS[0],
        "index": 0,
        "model": "A100-80GB",
        "pci": "00000000:07:00.0",
        "capability": "8.0",
        "links": {UUIDS[1]: "nvlink"},
        "mode": "shared",
        "sharing": "fraction",
        "present": True,
        "outside": False,
        "fault": "",
        "mechanisms": ["mig"],
        "replicas": 4,
        "share_used": 7500,
        "share_free": 2500,
        "memory_mib": 81_510,
        "memory_held_mib": 61_132,
        "memory_free_mib": 20_378,
        "memory_used_mib": 31_000,
        "foreign_mib": 0,
        "busy": 7300,
        "busy_mean": 6100,
        "power_w": 312,
        "temperature_c": 61,
        "strangers": [],
        "mig": uncut(),
        "tenants": [tenant(), bo | {"memory_mib": 40_755, "memory_used_mib": 12_698}],
    }
    free = shared | {
        "uuid": UUIDS[1],
        "index": 1,
        "mode": "free",
        "sharing": None,
        "share_used": 0,
        "share_free": 10_000,
        "memory_held_mib": 0,
        "memory_free_mib": 81_510,
        "memory_used_mib": 0,
        "busy": 0,
        "busy_mean": 0,
        "power_w": 58,
        "temperature_c": 31,
        "tenants": [],
    }
    node = {
        "name": "node-a",
        "alive": True,
        "cordoned": False,
        "closed": "",
        "lease": None,
        "simulated": False,
        "driver": "570.86",
        "cuda": "12.8",
        "problem": "",
        "backends": ["ray", "vm"],
        "cpus": {"total": 32.0, "used": 8.0},
        "memory_mib": {"total": 257_000, "used": 12_288},
        "gpus": [shared, free],
    }
    return {"simulated": False, "nodes": [node]}


def plan(**changes: Any) -> dict[str, Any]:
    """Where a job would run."""
    sample: dict[str, Any] = {
        "name": "embed",
        "display": "embed",
        "asks": "0.25 GPU, 4 CPUs",
        "backend": "vm",
        "outcome": "starts",
        "why": "node-a: GPU-3f2a8c1d (best fit beside other tenants)",
        "isolation": "soft",
        "mechanism": "variables",
        "env": {"CUDA_VISIBLE_DEVICES": UUIDS[0], "RAYSCHED_GPU_FRACTION": "0.25"},
        "places": [place()],
        "script": None,
    }
    return sample | changes


def explanation(**changes: Any) -> dict[str, Any]:
    """Why a job waits."""
    sample: dict[str, Any] = {
        "id": "0b1c2d3e4f",
        "display": "train-xl",
        "state": "waiting",
        "why": waiting()["why"],
        "short_of": "gpus",
        "nearest": "GPU-9b1c77e0 (A100-80GB) on node-a: free, 1 of its share and 81510 MiB free",
        "change": "gpus: 1 would start now",
        "enter": None,
    }
    return sample | changes


def status() -> dict[str, Any]:
    """What runs."""
    return {
        "version": "0.2.0",
        "since": "2025-03-30T00:00:00.000Z",
        "simulated": False,
        "nodes": 1,
        "gpus": {"total": 2, "free": 1, "shared": 1, "exclusive": 0, "mig": 0, "share_used": 7500},
        "jobs": {"running": 3, "waiting": 1},
    }


def over(**changes: Any) -> dict[str, Any]:
    """A tenant is over its memory and will be ended."""
    sample: dict[str, Any] = {
        "used_mib": 21_000,
        "held_mib": 20_377,
        "since": "2025-03-30T00:31:00.000Z",
        "action": "end",
        "ends": "2025-03-30T00:32:00.000Z",
    }
    return sample | changes


def stranger(**changes: Any) -> dict[str, Any]:
    """A process without a lease."""
    sample: dict[str, Any] = {
        "pid": 4711,
        "name": "python3",
        "user": "eve",
        "memory_mib": 2_048,
        "lease": None,
    }
    return sample | changes


def busy_gpus() -> dict[str, Any]:
    """The same GPUs with one tenant that is over its memory, and strangers."""
    answer = gpus()
    shared, free = answer["nodes"][0]["gpus"]
    shared["tenants"][0] |= {"over": over(), "memory_used_mib": 21_000}
    shared["strangers"] = [stranger(), stranger(pid=12, lease="0b1c2d3e4f.1", memory_mib=None)]
    free |= {"busy": None, "busy_mean": None, "power_w": None, "temperature_c": None, "memory_used_mib": None}
    return answer


def usage(by: str = "queue") -> dict[str, Any]:
    """What two of them were granted and used."""
    row: dict[str, Any] = {
        "name": "nlp/search",
        "id": "77aa01b2c3" if by == "job" else None,
        "jobs": 12,
        "leases": 14,
        "gpu_hours": 1234.5,
        "gpu_hours_measured": 1200.0,
        "gpu_hours_used": 402.25,
        "busy": 3352,
        "memory": 6100,
        "memory_peak_mib": 18_637,
    }
    nothing = {"gpu_hours_measured": 0.0, "gpu_hours_used": None, "busy": None, "memory": None}
    other = (
        row
        | nothing
        | {"name": "vision", "jobs": 1, "leases": 1, "gpu_hours": 0.0123, "memory_peak_mib": None}
    )
    times = {"from": "2025-03-23T00:30:00.000Z", "to": "2025-03-30T00:30:00.000Z"}
    return {"by": by, **times, "rows": [row, other]}


def advice() -> dict[str, Any]:
    """Two jobs that could take less."""
    first: dict[str, Any] = {
        "name": "embed",
        "user": "ana",
        "queue": "nlp",
        "leases": 31,
        "measured_s": 86_400.0,
        "share": 10_000,
        "memory_mib": 81_920,
        "memory_peak_mib": 9_300,
        "busy_mean": 1_250,
        "busy_peak": 4_000,
        "gpu_fraction": 0.2,
        "gpu_memory": None,
        "frees": 8_000,
        "gpu_hours": 120.0,
        "gpu_hours_freed": 96.0,
    }
    second = first | {"name": "serve", "user": "bo", "leases": 1, "share": 2_500, "memory_mib": 20_480}
    second |= {
        "gpu_fraction": None,
        "gpu_memory": "12GiB",
        "frees": 1_000,
        "gpu_hours": 3.5,
        "gpu_hours_freed": 1.4,
    }
    return {"from": "2025-03-23T00:30:00.000Z", "to": "2025-03-30T00:30:00.000Z", "advice": [first, second]}
